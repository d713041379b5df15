//! Settings that a tenant may have of its own, where a service has them for all.
//!
//! The storage-broker keeps them and everybody hears of them; a service goes by its own setting of the same name where a
//! tenant has none. People write them as in a settings file, `layer-size=64MiB`; services get numbers.

use std::{num::NonZeroU32, ops::RangeInclusive, time::Duration};

use clap::Args;
use palimpsest_proto::{admin::v1 as admin, common::v1 as wire};
use palimpsest_settings::{PortBase, Problem, Service, Settings, Sources, duration, merge};
use palimpsest_types::{ByteCount, Percent};
use serde::{Deserialize, Serialize};

pub use palimpsest_settings::Setting;

/// What a tenant has set, or what a service does with a tenant that has set nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TenantSettings {
    /// Changes of a timeline that become one layer, as they are in memory; at least 1MiB
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_size: Option<ByteCount>,
    /// Changes become a layer after so long, however few they are
    #[arg(long, value_parser = duration::parse)]
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub layer_age: Option<Duration>,
    /// WAL that a slot of ours may hold back on the source's disk before it is dropped
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot_retention_limit: Option<ByteCount>,
    /// Whether a timeline whose slot was dropped goes on by itself, from a new base backup, when the WAL that it needs is gone
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reattach_after_drop: Option<bool>,
    /// Part of the memory for changes, of a wal-ingest and of a page-serve, that the tenant's timelines may have together
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_share: Option<Percent>,
    /// Layers that are compacted together, at least; 2 or more
    #[arg(long)]
    #[serde(with = "number", skip_serializing_if = "Option::is_none")]
    pub compaction_threshold: Option<NonZeroU32>,
    /// Compacted layers since the last image of some pages that are worth another image
    #[arg(long)]
    #[serde(with = "number", skip_serializing_if = "Option::is_none")]
    pub image_threshold: Option<NonZeroU32>,
    /// Pages that a page-serve answers in a second, of all clients together; who asks for more waits
    #[arg(long)]
    #[serde(with = "number", skip_serializing_if = "Option::is_none")]
    pub pages_per_second: Option<NonZeroU32>,
    /// How long a lease lasts of which nobody says so; from 1m to 30d
    #[arg(long, value_parser = duration::parse)]
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub lease_length: Option<Duration>,
}

/// A setting, and what holds for a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveSetting {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub description: String,
    /// What holds; `None` if services differ, none is there, or there is no such bound.
    pub value: Option<String>,
    /// Who says so.
    pub origin: SettingOrigin,
    /// What services do with a tenant that has not set it, and which do so.
    pub defaults: Vec<(String, Vec<String>)>,
}

/// Who says what a setting is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingOrigin {
    /// It was set for the tenant.
    Tenant,
    /// The services that go by it.
    Service,
    /// Nobody.
    Nobody,
}

/// Settings that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTenantSettingsError {
    /// There is no such setting.
    #[error("tenants have no setting {name:?}; they have {known}")]
    Unknown {
        /// What was named.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A setting can't have such a value.
    #[error("{name}: {problem}")]
    Value {
        /// The setting.
        name: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// More is asked for than there can be.
    #[error(
        "that is too much: {MOST_CHANGES} settings at once, with names and values of {LONGEST_TEXT} bytes, are the most"
    )]
    TooMuch,
    /// A setting is to have a value, and none, or two.
    #[error("{0} is named twice; give each setting one value, or take it back")]
    Twice(String),
}

/// Numbers as a person writes them. What else the text of a setting might mean as a number, "on" or "yes", it does not here.
mod number {
    use std::num::NonZeroU32;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(
        number: &Option<NonZeroU32>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match number {
            Some(number) => serializer.collect_str(number),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<NonZeroU32>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_number = text.bytes().all(|sign| sign.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_number);
        let wrong = || D::Error::custom(format!("{text:?} is not a number from 1 on"));
        number.map(Some).ok_or_else(wrong)
    }
}

/// Nobody has so much to say at once, or a name or value that is so long.
const MOST_CHANGES: usize = 100;
const LONGEST_TEXT: usize = 100;
/// With less, a timeline would have layers without number.
const LEAST_LAYER: ByteCount = ByteCount::mib(1);
/// It would take more than there is.
const LARGEST_LAYER: ByteCount = ByteCount::gib(16);
const AGES: RangeInclusive<Duration> = Duration::from_millis(100)..=DAY;
/// Below it a slot would be dropped with the first segment that is written while nobody reads.
const LEAST_SLOT: ByteCount = ByteCount::mib(16);
const SHORTEST_LEASE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl TenantSettings {
    /// Nothing is set.
    pub const NONE: Self = Self {
        layer_size: None,
        layer_age: None,
        slot_retention_limit: None,
        reattach_after_drop: None,
        memory_share: None,
        compaction_threshold: None,
        image_threshold: None,
        pages_per_second: None,
        lease_length: None,
    };
    /// No lease lasts longer.
    pub const LONGEST_LEASE: Duration = DAY.saturating_mul(30);

    /// All that there are, in their order.
    pub fn all() -> Vec<Setting> {
        // Nothing is set, so nothing can't be written.
        palimpsest_settings::inventory(&Self::default()).unwrap_or_default()
    }

    /// Those that are set, as a person writes them.
    pub fn written(&self) -> Vec<(String, String)> {
        // Numbers are below 2^63: they were read from text, or are bounded.
        palimpsest_settings::written(self).unwrap_or_default()
    }

    /// The same, but that some have these values, and some none.
    ///
    /// # Errors
    /// If there is no such setting, a value can't be, or one is named twice.
    pub fn changed(
        &self,
        set: &[(String, String)],
        unset: &[String],
    ) -> Result<Self, InvalidTenantSettingsError> {
        let texts = set.iter().flat_map(|(name, value)| [name, value]);
        let is_long = texts.chain(unset).any(|text| text.len() > LONGEST_TEXT);
        if is_long || set.len().saturating_add(unset.len()) > MOST_CHANGES {
            return Err(InvalidTenantSettingsError::TooMuch);
        }
        let mut named: Vec<_> = set.iter().map(|(name, _)| name).chain(unset).collect();
        named.sort();
        if let Some([name, _]) = named.array_windows().find(|[one, next]| one == next) {
            return Err(InvalidTenantSettingsError::Twice((*name).clone()));
        }
        let known = Self::all();
        let is_known = |name: &String| known.iter().any(|setting| setting.key == *name);
        if let Some(name) = unset.iter().find(|name| !is_known(name)) {
            return Err(unknown(name, &known));
        }
        let kept = self.written();
        let kept = kept.into_iter().filter(|(name, _)| !named.contains(&name));
        let flags = kept.chain(set.iter().cloned()).collect();
        let merged = merge(&Self::default(), &Sources::default().with_flags(flags));
        let checked = merged.and_then(palimpsest_settings::Effective::checked);
        match checked {
            Ok(effective) => Ok(effective.settings),
            Err(problems) => Err(problems.0.first().map_or_else(
                || unknown("", &known),
                |problem| InvalidTenantSettingsError::of(problem, &known),
            )),
        }
    }
}

impl Settings for TenantSettings {
    const SERVICE: Option<Service> = None;

    fn defaults(_: PortBase) -> Self {
        Self::default()
    }

    /// What each can be is said here, also to a service that has such a setting for all tenants.
    fn check(&self) -> Vec<(&'static str, String)> {
        let sizes = [
            ("layer-size", self.layer_size, LEAST_LAYER),
            (
                "slot-retention-limit",
                self.slot_retention_limit,
                LEAST_SLOT,
            ),
        ];
        let small = sizes.into_iter().filter_map(|(name, size, least)| {
            let size = size.filter(|size| *size < least)?;
            Some((
                name,
                format!("{size} is too little to work with; give it at least {least}"),
            ))
        });
        let mut wrong: Vec<_> = small.collect();
        if self.layer_size.is_some_and(|size| size > LARGEST_LAYER) {
            wrong.push(("layer-size", format!("give at most {LARGEST_LAYER}")));
        }
        if self.layer_age.is_some_and(|age| !AGES.contains(&age)) {
            // Until a layer is made, WAL stays on a disk that others need, too.
            wrong.push(("layer-age", "give something from 100ms to 1day".to_owned()));
        }
        if self.compaction_threshold == Some(NonZeroU32::MIN) {
            let problem = "one layer alone needs no compaction; give 2 or more";
            wrong.push(("compaction-threshold", problem.to_owned()));
        }
        let lengths = SHORTEST_LEASE..=Self::LONGEST_LEASE;
        if self
            .lease_length
            .is_some_and(|length| !lengths.contains(&length))
        {
            wrong.push(("lease-length", "give something from 1m to 30d".to_owned()));
        }
        wrong
    }
}

impl InvalidTenantSettingsError {
    fn of(problem: &Problem, known: &[Setting]) -> Self {
        match problem {
            Problem::UnknownSetting { key, .. } => unknown(key, known),
            Problem::Value { key, message, .. } => Self::Value {
                name: key.clone(),
                problem: message.clone(),
            },
            other => Self::Value {
                name: "settings".to_owned(),
                problem: other.in_full(),
            },
        }
    }
}

fn unknown(name: &str, known: &[Setting]) -> InvalidTenantSettingsError {
    let known: Vec<_> = known.iter().map(|setting| setting.key.as_str()).collect();
    InvalidTenantSettingsError::Unknown {
        name: name.chars().take(80).collect(),
        known: known.join(", "),
    }
}

impl From<TenantSettings> for wire::TenantSettings {
    fn from(settings: TenantSettings) -> Self {
        let ms = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        Self {
            layer_size_bytes: settings.layer_size.map(ByteCount::get),
            layer_age_ms: settings.layer_age.map(ms),
            slot_retention_limit_bytes: settings.slot_retention_limit.map(ByteCount::get),
            reattach_after_drop: settings.reattach_after_drop,
            memory_share_percent: settings.memory_share.map(|share| share.get().into()),
            compaction_threshold: settings.compaction_threshold.map(NonZeroU32::get),
            image_threshold: settings.image_threshold.map(NonZeroU32::get),
            pages_per_second: settings.pages_per_second.map(NonZeroU32::get),
            lease_length_ms: settings.lease_length.map(ms),
        }
    }
}

impl From<wire::TenantSettings> for TenantSettings {
    /// What can't be is as if it was not set: who goes by a setting is not stopped by another version's idea of it.
    fn from(message: wire::TenantSettings) -> Self {
        let percent = |share: u32| Percent::new(u8::try_from(share).ok()?);
        Self {
            layer_size: message.layer_size_bytes.map(ByteCount::new),
            layer_age: message.layer_age_ms.map(Duration::from_millis),
            slot_retention_limit: message.slot_retention_limit_bytes.map(ByteCount::new),
            reattach_after_drop: message.reattach_after_drop,
            memory_share: message.memory_share_percent.and_then(percent),
            compaction_threshold: message.compaction_threshold.and_then(NonZeroU32::new),
            image_threshold: message.image_threshold.and_then(NonZeroU32::new),
            pages_per_second: message.pages_per_second.and_then(NonZeroU32::new),
            lease_length: message.lease_length_ms.map(Duration::from_millis),
        }
    }
}

impl From<EffectiveSetting> for admin::EffectiveSetting {
    fn from(setting: EffectiveSetting) -> Self {
        let origin = match setting.origin {
            SettingOrigin::Tenant => admin::SettingOrigin::Tenant,
            SettingOrigin::Service => admin::SettingOrigin::Service,
            SettingOrigin::Nobody => admin::SettingOrigin::Nobody,
        };
        let default = |(value, services)| admin::effective_setting::Default { value, services };
        Self {
            name: setting.name,
            description: setting.description,
            value: setting.value.unwrap_or_default(),
            origin: origin.into(),
            defaults: setting.defaults.into_iter().map(default).collect(),
        }
    }
}

impl From<admin::EffectiveSetting> for EffectiveSetting {
    fn from(message: admin::EffectiveSetting) -> Self {
        let origin = match message.origin() {
            admin::SettingOrigin::Tenant => SettingOrigin::Tenant,
            admin::SettingOrigin::Service => SettingOrigin::Service,
            admin::SettingOrigin::Nobody | admin::SettingOrigin::Unspecified => {
                SettingOrigin::Nobody
            }
        };
        let default =
            |default: admin::effective_setting::Default| (default.value, default.services);
        Self {
            name: message.name,
            description: message.description,
            value: Some(message.value).filter(|value| !value.is_empty()),
            origin,
            defaults: message.defaults.into_iter().map(default).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(written: &[(&str, &str)]) -> Vec<(String, String)> {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        written.iter().map(pair).collect()
    }

    fn all_set() -> TenantSettings {
        let written = pairs(&[
            ("layer-size", "64MiB"),
            ("layer-age", "1m"),
            ("slot-retention-limit", "2GiB"),
            ("reattach-after-drop", "false"),
            ("memory-share", "25%"),
            ("compaction-threshold", "6"),
            ("image-threshold", "2"),
            ("pages-per-second", "5000"),
            ("lease-length", "1h"),
        ]);
        let settings = TenantSettings::default().changed(&written, &[]).unwrap();
        assert_eq!(settings.written().len(), TenantSettings::all().len());
        settings
    }

    #[test]
    fn all_of_them_are_read_written_and_sent() {
        let settings = all_set();
        assert_eq!(settings.layer_size, Some(ByteCount::mib(64)));
        assert_eq!(settings.layer_age, Some(Duration::from_secs(60)));
        let sent = wire::TenantSettings::from(settings);
        assert_eq!(TenantSettings::from(sent), settings);
        let again = TenantSettings::default().changed(&settings.written(), &[]);
        assert_eq!(again, Ok(settings));
        let none = TenantSettings::default();
        assert_eq!(TenantSettings::from(wire::TenantSettings::from(none)), none);
        assert!(none.written().is_empty());
    }

    #[test]
    fn a_change_leaves_the_others_as_they_are() {
        let settings = all_set();
        let set = pairs(&[("layer-age", "5s")]);
        let changed = settings.changed(&set, &["layer-size".to_owned()]).unwrap();
        let expected = TenantSettings {
            layer_size: None,
            layer_age: Some(Duration::from_secs(5)),
            ..settings
        };
        assert_eq!(changed, expected);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_could() {
        let refused = |name: &str, value: &str| {
            let set = pairs(&[(name, value)]);
            let changed = TenantSettings::default().changed(&set, &[]);
            changed.unwrap_err().to_string()
        };
        for (name, value, part) in [
            ("layersize", "64MiB", "layer-size, layer-age"),
            ("layer-size", "64 MB", "for example 64KiB"),
            ("layer-size", "64KiB", "at least 1.0 MiB"),
            ("layer-age", "5", "for example 500ms"),
            ("layer-age", "0s", "from 100ms"),
            ("layer-age", "2days", "to 1day"),
            (
                "layer-age",
                "18446744073709551615s 1000ms",
                "for example 500ms",
            ),
            ("layer-size", "1TiB", "at most 16.0 GiB"),
            ("slot-retention-limit", "1MiB", "at least 16.0 MiB"),
            ("reattach-after-drop", "maybe", "reattach-after-drop"),
            ("memory-share", "0%", "for example 25%"),
            ("compaction-threshold", "1", "2 or more"),
            ("compaction-threshold", "0", "compaction-threshold"),
            ("image-threshold", "-1", "image-threshold"),
            ("pages-per-second", "many", "pages-per-second"),
            ("pages-per-second", "on", "not a number"),
            ("pages-per-second", "+5", "not a number"),
            ("image-threshold", "true", "not a number"),
            ("pages-per-second", "4294967296", "not a number"),
            ("lease-length", "31d", "from 1m to 30d"),
        ] {
            let error = refused(name, value);
            assert!(error.contains(part) && error.contains(name), "{error}");
        }
        let name = || "layer-age".to_owned();
        let twice = TenantSettings::default().changed(&pairs(&[("layer-age", "5s")]), &[name()]);
        assert_eq!(twice, Err(InvalidTenantSettingsError::Twice(name())));
        let unset = TenantSettings::default().changed(&[], &["nothing".to_owned()]);
        assert!(unset.is_err());
        let long = "x".repeat(1 << 20);
        let changed = TenantSettings::default().changed(&pairs(&[("layer-age", &long)]), &[]);
        assert_eq!(changed, Err(InvalidTenantSettingsError::TooMuch));
        let many: Vec<_> = (0..1000).map(|number| format!("s{number}")).collect();
        let changed = TenantSettings::default().changed(&[], &many);
        assert_eq!(changed, Err(InvalidTenantSettingsError::TooMuch));
    }

    #[test]
    fn what_another_version_sends_and_cannot_be_is_not_set() {
        let message = wire::TenantSettings {
            memory_share_percent: Some(300),
            image_threshold: Some(0),
            ..wire::TenantSettings::default()
        };
        assert_eq!(TenantSettings::from(message), TenantSettings::default());
    }
}
