//! A tenant of the catalog.

use std::{fmt, str::FromStr};

use palimpsest_api::{TimelineRef, broker::MAIN, tenant_settings::TenantSettings};
use palimpsest_postgres::{ConnInfo, ConnInfoError, InvalidSlotNameError, SlotName};
use palimpsest_types::{Lsn, RequestId, SystemIdentifier, TenantId, TimelineId};
use serde::{Deserialize, Serialize};

use super::branch::Branch;

/// A tenant and its timelines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// The tenant.
    pub id: TenantId,
    /// What people call it.
    pub name: Name,
    /// Its first timeline.
    pub timeline: TimelineId,
    /// What people call that.
    pub timeline_name: String,
    /// How to reach the PostgreSQL that it comes from.
    pub source: Source,
    /// The replication slot there.
    pub slot: String,
    /// The cluster that it is, once an attach has found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<SystemIdentifier>,
    /// Where its first timeline ends, if nobody writes that any more: what the source has since is on a branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Lsn>,
    /// What is to be removed of who read its source, if that is read no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<LeavingSource>,
    /// What is to go on from a base backup of its source, if somebody has asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reattach: Option<AskedReattach>,
    /// The branch that stands in for what its source was read to, if that is read no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_in: Option<TimelineId>,
    /// What was set for it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub settings: TenantSettings,
    /// Whether it comes or goes.
    pub state: TenantState,
    /// Its other timelines, in the order in which they were made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<Branch>,
}

/// Where a tenant is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TenantState {
    /// It exists, or is being attached.
    Attached,
    /// Slot and files are being removed; then it leaves the catalog.
    Deleting {
        /// Do not insist on dropping the slot: the source is gone for good.
        forget_slot: bool,
    },
}

/// The source of a tenant is read no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeavingSource {
    /// What it was read to.
    pub timeline: TimelineId,
    /// Do not insist on dropping the slot: the source is gone for good.
    pub forget_slot: bool,
}

/// Somebody has asked that a timeline goes on from a base backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedReattach {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it ended.
    pub after: Lsn,
    /// How often somebody has asked.
    pub request: u64,
    /// By this somebody has asked the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<RequestId>,
}

/// Of a tenant or a branch: a letter, then letters, digits, '-' and '_'; at most 40 bytes. Of a timeline that was left
/// with `@` and an LSN after it, which nobody else is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A connection string. Neither `Debug` nor `Display` shows its password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Source(String);

/// What is asked for when a tenant is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTenant {
    /// What people will call it.
    pub name: Name,
    /// How to reach the source.
    pub source: Source,
    /// The slot to make there; `None` is `palimpsest_NAME`.
    pub slot: Option<SlotName>,
}

/// A tenant can't be described like that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantError {
    /// Not a name.
    #[error("{0:?} is not a name; use a letter, then letters, digits, '-' and '_', at most 40")]
    Name(String),
    /// Not a connection string.
    #[error("the source can't be understood")]
    Source(#[from] ConnInfoError),
    /// Not a slot name.
    #[error(transparent)]
    Slot(#[from] InvalidSlotNameError),
}

fn is_default(settings: &TenantSettings) -> bool {
    *settings == TenantSettings::default()
}

const MAX_NAME: usize = 40;
/// Between a name and where what it named was left.
const LEFT: char = '@';

impl Tenant {
    /// A tenant that is to be attached.
    pub fn attached(new: NewTenant, ids: TimelineRef) -> Self {
        Self {
            id: ids.tenant,
            timeline: ids.timeline,
            timeline_name: MAIN.to_owned(),
            slot: new.slot(),
            source: new.source,
            cluster: None,
            left: None,
            leaving: None,
            stands_in: None,
            reattach: None,
            settings: TenantSettings::default(),
            name: new.name,
            state: TenantState::Attached,
            branches: Vec::new(),
        }
    }

    /// The tenant's first timeline.
    pub fn timeline(&self) -> TimelineRef {
        TimelineRef {
            tenant: self.id,
            timeline: self.timeline,
        }
    }

    /// Its timelines that somebody writes, or is to remove the slot of.
    pub fn written(&self) -> impl Iterator<Item = TimelineRef> {
        let written = |branch: &&Branch| branch.source.is_some();
        let branches = self.branches.iter().filter(written);
        let first = self.left.is_none() || self.state != TenantState::Attached;
        let first = first.then(|| self.timeline());
        first
            .into_iter()
            .chain(branches.map(|branch| self.at(branch)))
            .chain(self.leaving_timeline())
    }

    /// What its source was read to, while something of that is to be removed where it was read.
    pub fn leaving_timeline(&self) -> Option<TimelineRef> {
        let leaving = self
            .leaving
            .filter(|_| self.state == TenantState::Attached)?;
        Some(TimelineRef {
            tenant: self.id,
            timeline: leaving.timeline,
        })
    }

    /// Whether there is a PostgreSQL that it comes from, and that is read.
    pub fn has_source(&self) -> bool {
        self.left.is_none() || self.branches.iter().any(|branch| self.goes_on(branch))
    }

    /// Branches that are to go, of which a writer has something on its disk.
    pub fn going_writers(&self) -> impl Iterator<Item = TimelineRef> {
        let goes = |branch: &&Branch| branch.deleting && branch.source.is_some();
        let branches = self.branches.iter().filter(goes);
        branches.map(|branch| self.at(branch))
    }

    /// Whether a branch is what the tenant's source is read to, since that was promoted.
    pub fn goes_on(&self, branch: &Branch) -> bool {
        let cluster = branch.source.as_ref().map(|source| source.cluster);
        self.left.is_some() && cluster.is_some() && cluster == self.cluster
    }

    /// What its source is read to; its first timeline if there is none.
    pub fn main(&self) -> TimelineRef {
        let mut branches = self.branches.iter();
        let goes_on = branches.find(|branch| self.goes_on(branch));
        goes_on.map_or_else(|| self.timeline(), |branch| self.at(branch))
    }

    fn at(&self, branch: &Branch) -> TimelineRef {
        TimelineRef {
            tenant: self.id,
            timeline: branch.id,
        }
    }

    /// All its timelines, the first one first.
    pub fn timelines(&self) -> impl Iterator<Item = TimelineRef> {
        let tenant = self.id;
        let branches = self.branches.iter().map(|branch| branch.id);
        let all = std::iter::once(self.timeline).chain(branches);
        all.map(move |timeline| TimelineRef { tenant, timeline })
    }
}

impl NewTenant {
    /// Understands what a person wrote.
    ///
    /// # Errors
    /// If a part of it can't be.
    pub fn parse(name: &str, source: &str, slot: Option<&str>) -> Result<Self, TenantError> {
        Ok(Self {
            name: name.parse()?,
            source: source.parse()?,
            slot: slot.map(str::parse).transpose()?,
        })
    }

    /// The slot's name: the one asked for, else one made of the tenant's name.
    pub fn slot(&self) -> String {
        let default = || {
            format!("palimpsest_{}", self.name.0)
                .to_ascii_lowercase()
                .replace('-', "_")
        };
        let asked_for = self.slot.as_ref().map(SlotName::to_string);
        asked_for.unwrap_or_else(default)
    }
}

impl Name {
    /// The name of a timeline that was left at an LSN for another, which has its name now.
    pub fn left_at(name: &str, lsn: Lsn) -> Self {
        Self(format!("{name}{LEFT}{lsn}"))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = TenantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let good = text.len() <= MAX_NAME
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.bytes().all(allowed);
        match good {
            true => Ok(Self(text.to_owned())),
            false => Err(TenantError::Name(text.chars().take(2 * MAX_NAME).collect())),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = TenantError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        // As often as a promotion was followed.
        let mut name = text.as_str();
        while let Some((before, lsn)) = name.rsplit_once(LEFT)
            && lsn.parse::<Lsn>().is_ok()
        {
            name = before;
        }
        name.parse::<Self>()?;
        Ok(Self(text))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Source {
    /// The whole string, for the one who connects.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The string for people and logs.
    pub fn redacted(&self) -> String {
        // A string that another version accepted may hold its password anywhere.
        let unknown = |_| "(not understood by this version)".to_owned();
        let conninfo = self.0.parse::<ConnInfo>();
        conninfo.map_or_else(unknown, |conninfo| conninfo.redacted())
    }
}

impl FromStr for Source {
    type Err = ConnInfoError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<ConnInfo>()?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.redacted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_letters_digits_and_two_signs() {
        let longest = "a".repeat(40);
        for name in ["a", "Shop-2_x", longest.as_str()] {
            assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
        }
        let too_long = "a".repeat(41);
        for name in ["", "1a", "-a", "a b", "a/b", "ä", too_long.as_str()] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
        let left = Name::left_at("main", Lsn::new(0x300_0060));
        assert_eq!(left.as_str(), "main@0/3000060");
        assert!(left.as_str().parse::<Name>().is_err(), "nobody chooses it");
        let json = serde_json::to_string(&left).unwrap();
        assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), left);
        assert!(serde_json::from_str::<Name>("\"main@0/x\"").is_err());
    }

    #[test]
    fn a_slot_is_named_after_its_tenant_unless_told() {
        let slot = |name, slot| {
            let new = NewTenant::parse(name, "host=h user=u", slot).unwrap();
            new.slot().parse::<SlotName>().unwrap().to_string()
        };
        assert_eq!(slot("My-Shop_1", None), "palimpsest_my_shop_1");
        assert_eq!(slot("shop", Some("other")), "other");
        slot(&"Z-".repeat(20), None);
        assert!(NewTenant::parse("a", "host=h user=u", Some("Bad Slot")).is_err());
    }

    #[test]
    fn a_source_is_shown_without_anything_that_nobody_wrote() {
        let text = "host=localhost user=postgres";
        assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
    }

    #[test]
    fn a_password_is_not_shown() {
        for text in [
            "host=h user=u password=hunter2 port=5433",
            "host=h user=u password = 'hun\\'ter2 hunter2'",
            "postgresql://u:hunter2@h:5433/db",
            "postgresql://u@h/?password=hunter2",
        ] {
            let source: Source = text.parse().unwrap();
            for shown in [source.redacted(), source.to_string(), format!("{source:?}")] {
                assert!(!shown.contains("ter2"), "{shown}");
                assert!(shown.contains("***"), "{shown}");
            }
            assert_eq!(source.expose(), text);
        }
        let error = "host=h user=u passwort=hunter2".parse::<Source>();
        assert!(!error.unwrap_err().to_string().contains("hunter2"));
        let foreign = Source("password=hunter2 news=1".to_owned());
        assert!(!foreign.redacted().contains("hunter2"));
    }
}
