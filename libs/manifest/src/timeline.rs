//! What a timeline consists of, in memory and as the body of its object.

mod branch;
mod claim;
mod layers;
mod pins;
mod replace;
mod reread;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use palimpsest_types::{ByteCount, Lsn, SystemIdentifier, TimelineId, WriterEpoch};
use serde::{Deserialize, Serialize};

pub use branch::BranchPointError;
pub use claim::{ClaimError, CompactorClaim};
pub use pins::{Pin, PinError, PinKind};
pub use reread::Reread;

use crate::{
    layer_entry::{LayerEntry, LsnSpan},
    layer_list::{Edit, ListRef, ObsoleteList},
};

/// What a timeline consists of in the object store. One object decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimelineManifest {
    /// Differs in every manifest ever written, so that a writer recognises its own.
    pub(crate) nonce: u128,
    /// Generation of the writer; a lower one may not publish any more.
    pub writer_epoch: WriterEpoch,
    /// Generation of the compactor, likewise.
    pub compactor_epoch: CompactorEpoch,
    /// Who compacts now, if anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compactor_claim: Option<CompactorClaim>,
    /// Where the writer's generation began: the LSN when it took over. Readers drop what an older
    /// generation fed them above it.
    pub epoch_start: Lsn,
    /// The layers hold all versions up to here (`remote_consistent`).
    pub lsn: Lsn,
    /// The oldest LSN that can be read: the end of the base backup, before which pages are torn.
    pub oldest_readable: Lsn,
    /// Below this versions may have been removed unless pinned; zero if none were.
    pub gc_cutoff: Lsn,
    /// Where versions from before this timeline's own are found, if it is a branch.
    pub ancestor: Option<Ancestor>,
    /// LSNs that are read although they are below the cutoff.
    pins: Vec<Pin>,
    /// Changes that were lost for good with a slot, and what is torn behind them. What is read after them comes from
    /// a later base backup; an LSN within is refused.
    pub(crate) holes: Vec<LsnSpan>,
    /// The cluster that the timeline came from.
    pub source: SourceCluster,
    /// The PostgreSQL timelines that the WAL came from, beginning with the base backup's.
    pub pg_timeline_history: Vec<PgTimelineBegin>,
    /// Immutable objects with most of the edits that make up the layers, oldest and biggest first.
    pub(crate) lists: Vec<ListRef>,
    /// Lists that older manifests refer to.
    pub(crate) obsolete: Vec<ObsoleteList>,
    /// Edits that are in no list yet.
    pub(crate) edits: Vec<Edit>,
    /// What lists and edits come to, in LSN order. Clones share it until one is changed.
    #[serde(skip)]
    layers: Arc<Vec<LayerEntry>>,
}

/// The generation of a timeline's compactor. A higher epoch supersedes every lower one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct CompactorEpoch(u64);

/// The point on another timeline at which a branch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    /// The other timeline, of the same tenant.
    pub timeline: TimelineId,
    /// Versions up to here are shared with it.
    pub lsn: Lsn,
}

/// What is fixed about a PostgreSQL cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceCluster {
    /// From its control file.
    pub system_identifier: SystemIdentifier,
    /// 15 for PostgreSQL 15.
    pub pg_version: u32,
    /// The PostgreSQL timeline that the base backup was taken on.
    pub pg_timeline: u32,
    /// Size of its WAL segment files.
    pub wal_segment_size: ByteCount,
    /// Some records set page LSNs only if `wal_log_hints` or data checksums are on.
    pub wal_log_hints: bool,
}

/// From where on the WAL is of which PostgreSQL timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PgTimelineBegin {
    /// PostgreSQL's number of it.
    pub pg_timeline: u32,
    /// The first LSN that was taken from it.
    pub begin: Lsn,
}

impl TimelineManifest {
    /// The first manifest of a timeline, without layers yet: a base backup that was begun at `lsn`
    /// and is consistent from `oldest_readable` on.
    pub fn new(source: SourceCluster, lsn: Lsn, oldest_readable: Lsn) -> Self {
        Self {
            nonce: 0,
            writer_epoch: WriterEpoch::FIRST,
            compactor_epoch: CompactorEpoch::default(),
            compactor_claim: None,
            epoch_start: lsn,
            lsn,
            oldest_readable,
            gc_cutoff: Lsn::ZERO,
            ancestor: None,
            pins: Vec::new(),
            holes: Vec::new(),
            source,
            pg_timeline_history: vec![PgTimelineBegin {
                pg_timeline: source.pg_timeline,
                begin: lsn,
            }],
            lists: Vec::new(),
            obsolete: Vec::new(),
            edits: Vec::new(),
            layers: Arc::default(),
        }
    }

    /// From the end of its history on, WAL is of this cluster.
    pub(crate) fn go_on_with(&mut self, source: SourceCluster) {
        let begun = PgTimelineBegin {
            pg_timeline: source.pg_timeline,
            begin: self.lsn,
        };
        if source.pg_timeline != self.source.pg_timeline {
            self.pg_timeline_history.push(begun);
        }
        self.source = source;
    }
}

impl CompactorEpoch {
    /// An epoch from its number; 0 is that of a timeline nobody has compacted.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The epoch that supersedes this one.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for CompactorEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
