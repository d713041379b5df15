//! Forks that a base backup has shorter than the log says.

use std::collections::BTreeMap;

use palimpsest_types::{BlockNumber, Oid, RelTag};

use super::Reason;

/// Forks that grew by more than a record may make them grow, before the base was consistent.
///
/// A backup reads each file at some moment between its start and its end. If a relation is dropped,
/// rewritten or truncated before that moment, records from before name blocks far beyond the file
/// that the backup has. The log then says so before the backup's end, and nobody reads at an LSN
/// before it; so the blocks in between get no versions, however many they are. A fork that is not
/// cut back by the backup's end did have the gap, and the timeline must stop.
///
/// This is not kept over a restart before the backup's end; the size is. The blocks of a gap that is
/// forgotten so have no versions, and to read one is an error, never a page of zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct TornForks {
    gaps: BTreeMap<RelTag, Gap>,
}

/// Blocks without versions.
#[derive(Debug, Clone, Copy)]
struct Gap {
    from: BlockNumber,
    to: BlockNumber,
}

impl TornForks {
    /// Blocks between the end of the fork and a new one have no versions.
    pub(super) fn note(&mut self, rel: RelTag, from: BlockNumber, to: BlockNumber) {
        self.gaps.entry(rel).or_insert(Gap { from, to });
    }

    /// The fork has this many blocks now.
    pub(super) fn cut(&mut self, rel: RelTag, blocks: BlockNumber) {
        if self.gaps.get(&rel).is_some_and(|gap| blocks <= gap.from) {
            self.gaps.remove(&rel);
        }
    }

    /// A database is gone from a tablespace.
    pub(super) fn drop_database(&mut self, spc: Oid, db: Oid) {
        self.gaps.retain(|rel, _| (rel.spc, rel.db) != (spc, db));
    }

    /// A database has what another has, and so its gaps.
    pub(super) fn copy_database(&mut self, from: (Oid, Oid), to: (Oid, Oid)) {
        let of_source = |(rel, _): &(&RelTag, &Gap)| (rel.spc, rel.db) == from;
        let gaps: Vec<_> = self.gaps.iter().filter(of_source).collect();
        let gaps: Vec<_> = gaps.into_iter().map(|(rel, gap)| (*rel, *gap)).collect();
        let (spc, db) = to;
        self.drop_database(spc, db);
        for (rel, gap) in gaps {
            self.gaps.insert(RelTag { spc, db, ..rel }, gap);
        }
    }

    /// Whether this fork has a gap.
    pub(super) fn has(&self, rel: RelTag) -> bool {
        self.gaps.contains_key(&rel)
    }

    /// What is left when the base is consistent.
    ///
    /// # Errors
    /// If a fork has a gap.
    pub(super) fn expect_none(&self) -> Result<(), Reason> {
        match self.gaps.first_key_value() {
            None => Ok(()),
            Some((rel, gap)) => Err(Reason::Gap {
                rel: *rel,
                from: gap.from,
                to: gap.to,
            }),
        }
    }
}
