//! A branch in the catalog.

use palimpsest_api::broker::BranchWriter;
use palimpsest_types::{Lsn, SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};

use super::tenant::{Name, Source};

/// A timeline that begins on another of its tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    /// The branch.
    pub id: TimelineId,
    /// What people call it.
    pub name: Name,
    /// The timeline that it begins on.
    pub parent: TimelineId,
    /// What ends at or before it is shared.
    pub lsn: Lsn,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// When it goes by itself, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<u64>,
    /// Whether it can't be deleted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_protected: bool,
    /// Whether it goes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub deleting: bool,
    /// Where it ends, if somebody wrote it and nobody does any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Lsn>,
    /// Who writes it. Without one it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<BranchSource>,
}

/// A PostgreSQL whose WAL is the history of a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BranchSource {
    /// How to reach it.
    pub conninfo: Source,
    /// The replication slot there.
    pub slot: String,
    /// Its system identifier, which no other cluster has.
    pub cluster: SystemIdentifier,
    /// Its PostgreSQL timeline.
    pub pg_timeline: u32,
    /// Where its WAL begins.
    pub begin: Lsn,
}

impl BranchSource {
    /// What a wal-ingest must know of it besides how to reach it.
    pub fn writer(&self) -> BranchWriter {
        BranchWriter {
            system_identifier: self.cluster,
            pg_timeline: self.pg_timeline,
            begin: self.begin,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's way")]
fn is_false(flag: &bool) -> bool {
    !flag
}
