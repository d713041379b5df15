//! The settings that tenants have of their own.

use palimpsest_api::TimelineRef;

use super::{Catalog, CatalogError};
use crate::core::tenant::{Name, TenantState};

/// What is to be different about a tenant's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SettingsChange {
    /// Names and values, as a person writes them.
    pub set: Vec<(String, String)>,
    /// Names of those that are to be as the services have them.
    pub unset: Vec<String>,
}

impl Catalog {
    /// All of it or, if anything can't be, nothing.
    pub(super) fn configure(
        &mut self,
        name: &Name,
        change: &SettingsChange,
    ) -> Result<TimelineRef, CatalogError> {
        let tenant = self.named_mut(name)?;
        if let TenantState::Deleting { .. } = tenant.state {
            return Err(CatalogError::BeingDeleted(name.clone()));
        }
        tenant.settings = tenant.settings.changed(&change.set, &change.unset)?;
        Ok(tenant.timeline())
    }
}
