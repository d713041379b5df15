//! Names in the store.

use std::fmt;

use object_store::path::Path as RawPath;
use palimpsest_types::{TenantId, TimelineId};

/// A name in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(pub(crate) RawPath);

impl StorePath {
    /// What the storage-broker keeps.
    pub fn catalog() -> Self {
        Self(RawPath::from_iter(["catalog"]))
    }

    /// Everything of a tenant.
    pub fn tenant(tenant: TenantId) -> Self {
        Self(RawPath::from_iter(["tenants", &tenant.to_string()]))
    }

    /// Everything of a timeline.
    pub fn timeline(tenant: TenantId, timeline: TimelineId) -> Self {
        Self::tenant(tenant)
            .child("timelines")
            .child(&timeline.to_string())
    }

    /// A name below this one; separators in `name` are escaped.
    pub fn child(&self, name: &str) -> Self {
        Self(self.0.clone().join(name))
    }

    /// The part after the last separator.
    pub fn file_name(&self) -> Option<&str> {
        self.0.filename()
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
