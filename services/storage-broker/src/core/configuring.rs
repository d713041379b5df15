//! Settings of tenants: changing them, and telling which hold.

use palimpsest_api::{
    broker::{Member, Role},
    tenant_settings::{EffectiveSetting, SettingOrigin, TenantSettings},
};

use super::{
    broker::Broker,
    catalog::{CatalogError, Change, SettingsChange},
    catalog_writer::ChangeError,
    leasing,
    tenant::Name,
};

impl Broker {
    /// Changes the settings of a tenant durably. It is done even if the future is dropped.
    ///
    /// # Errors
    /// If there is no such tenant or setting, a value can't be, or the catalog can't be changed.
    pub async fn configure(&self, name: Name, change: SettingsChange) -> Result<(), ChangeError> {
        self.change(Change::Configure { name, change }).await?;
        Ok(())
    }

    /// The settings of a tenant, and what holds where it has none.
    ///
    /// # Errors
    /// If there is no such tenant.
    pub fn settings(&self, name: &Name) -> Result<Vec<EffectiveSetting>, CatalogError> {
        let catalog = self.catalog();
        let own = catalog
            .named(name)
            .ok_or_else(|| CatalogError::Unknown(name.clone()))?;
        let view = self.watch();
        let view = view.borrow();
        let services = view.members.iter().map(described);
        let services: Vec<_> = services
            .chain([("storage-broker".to_owned(), leasing::TENANT_DEFAULTS)])
            .collect();
        Ok(effective(&own.settings, &services))
    }
}

fn described(member: &Member) -> (String, TenantSettings) {
    let service = match member.role {
        Role::WalIngest => "wal-ingest",
        Role::PageServe => "page-serve",
        Role::RedoWorker => "redo-worker",
        Role::Compactor => "compactor",
    };
    let who = format!("{service} at {}", member.address);
    (who, member.tenant_defaults)
}

/// What holds for a tenant that has these settings, with these services.
fn effective(own: &TenantSettings, services: &[(String, TenantSettings)]) -> Vec<EffectiveSetting> {
    let (own, all) = (own.written(), TenantSettings::all());
    let said: Vec<_> = services
        .iter()
        .map(|(who, defaults)| (who, defaults.written()))
        .collect();
    let value_in = |written: &[(String, String)], name: &str| {
        let pair = written.iter().find(|(key, _)| key == name);
        pair.map(|(_, value)| value.clone())
    };
    let setting = |name: String, description: String| {
        let mut defaults: Vec<(String, Vec<String>)> = Vec::new();
        for (who, written) in &said {
            let Some(value) = value_in(written, &name) else {
                continue;
            };
            match defaults.iter_mut().find(|(same, _)| *same == value) {
                Some((_, services)) => services.push((*who).clone()),
                None => defaults.push((value, vec![(*who).clone()])),
            }
        }
        let (value, origin) = match (value_in(&own, &name), defaults.as_slice()) {
            (Some(value), _) => (Some(value), SettingOrigin::Tenant),
            (None, []) => (None, SettingOrigin::Nobody),
            (None, [(value, _)]) => (Some(value.clone()), SettingOrigin::Service),
            (None, _) => (None, SettingOrigin::Service),
        };
        EffectiveSetting {
            name,
            description,
            value,
            origin,
            defaults,
        }
    };
    all.into_iter()
        .map(|known| setting(known.key, known.help))
        .collect()
}

#[cfg(test)]
mod tests {
    use palimpsest_types::ByteCount;

    use super::*;

    fn with_layers_of(size: ByteCount) -> TenantSettings {
        TenantSettings {
            layer_size: Some(size),
            ..TenantSettings::default()
        }
    }

    fn layer_size(own: TenantSettings, services: &[(&str, ByteCount)]) -> EffectiveSetting {
        let services: Vec<_> = services
            .iter()
            .map(|(who, size)| ((*who).to_owned(), with_layers_of(*size)))
            .collect();
        let all = effective(&own, &services);
        assert_eq!(all.len(), TenantSettings::all().len());
        let named = |setting: &EffectiveSetting| setting.name == "layer-size";
        all.into_iter().find(named).unwrap()
    }

    #[test]
    fn what_a_tenant_has_set_holds_else_what_all_services_do() {
        let (small, large) = (ByteCount::mib(4), ByteCount::mib(64));
        let none = TenantSettings::default();
        let told = layer_size(none, &[("a", large), ("b", large)]);
        assert_eq!(told.value.as_deref(), Some("64MiB"));
        assert_eq!(told.origin, SettingOrigin::Service);
        let both = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(told.defaults, [("64MiB".to_owned(), both)]);
        let differ = layer_size(none, &[("a", large), ("b", small)]);
        assert_eq!((differ.value, differ.defaults.len()), (None, 2));
        let own = layer_size(with_layers_of(small), &[("a", large)]);
        assert_eq!(own.value.as_deref(), Some("4MiB"));
        assert_eq!(own.origin, SettingOrigin::Tenant);
        assert_eq!(own.defaults.len(), 1);
        let nobody = layer_size(none, &[]);
        assert_eq!((nobody.value, nobody.origin), (None, SettingOrigin::Nobody));
    }
}
