//! A timeline that begins on another.

use palimpsest_types::{Lsn, TimelineId};

use super::{Ancestor, TimelineManifest};
use crate::layer_entry::LsnSpan;

/// A branch can't begin there, nor can anything be read there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BranchPointError {
    /// Nobody can read there, or not any more.
    #[error("{lsn} is below {oldest}, the oldest LSN that can be read")]
    BelowOldest {
        /// Where nothing can be read.
        lsn: Lsn,
        /// The oldest LSN that can be read.
        oldest: Lsn,
    },
    /// Changes before it were lost.
    #[error("the changes of {hole} were lost, so nothing can be read at {lsn}")]
    InHole {
        /// Where nothing can be read.
        lsn: Lsn,
        /// What was lost.
        hole: LsnSpan,
    },
}

impl TimelineManifest {
    /// On which timeline this LSN of the timeline's history is, if that is not its own: what came before
    /// its branch point.
    pub fn inherited_at(&self, lsn: Lsn) -> Option<TimelineId> {
        let ancestor = self.ancestor.filter(|ancestor| lsn < ancestor.lsn);
        ancestor.map(|ancestor| ancestor.timeline)
    }

    /// Whether an LSN of the timeline's own history can be read, if it has arrived.
    ///
    /// # Errors
    /// If it can't.
    pub fn check_point(&self, lsn: Lsn) -> Result<(), BranchPointError> {
        let oldest = self.oldest_readable.max(self.gc_cutoff);
        if lsn < oldest && !self.is_pinned(lsn) {
            return Err(BranchPointError::BelowOldest { lsn, oldest });
        }
        match self.hole_at(lsn) {
            None => Ok(()),
            Some(hole) => Err(BranchPointError::InHole { lsn, hole }),
        }
    }

    /// The first manifest of a branch of this timeline, whose id is `timeline`, at an LSN of its own
    /// history. It has no layers: what came before is read here.
    ///
    /// Whether the LSN has arrived is not asked: this manifest may not have it yet.
    ///
    /// # Errors
    /// If it can't be read at that LSN.
    pub fn branch(&self, timeline: TimelineId, lsn: Lsn) -> Result<Self, BranchPointError> {
        self.check_point(lsn)?;
        let mut pg_timeline_history = self.pg_timeline_history.clone();
        pg_timeline_history.retain(|begun| begun.begin <= lsn);
        Ok(Self {
            ancestor: Some(Ancestor { timeline, lsn }),
            pg_timeline_history,
            ..Self::new(self.source, lsn, lsn)
        })
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{ByteCount, SystemIdentifier};

    use super::*;
    use crate::{
        test_layers::delta,
        timeline::{PgTimelineBegin, Pin, PinKind, SourceCluster},
    };

    const MAIN: TimelineId = TimelineId::from_bytes([1; 16]);

    /// Readable from 120.
    fn parent() -> TimelineManifest {
        let source = SourceCluster {
            system_identifier: SystemIdentifier::new(7),
            pg_version: 15,
            pg_timeline: 1,
            wal_segment_size: ByteCount::mib(16),
            wal_log_hints: false,
        };
        TimelineManifest::new(source, Lsn::new(100), Lsn::new(120))
    }

    fn branch(parent: &TimelineManifest, lsn: u64) -> Result<TimelineManifest, BranchPointError> {
        parent.branch(MAIN, Lsn::new(lsn))
    }

    #[test]
    fn a_branch_is_whole_without_layers_and_needs_all_of_its_own() {
        let mut branch = branch(&parent(), 160).unwrap();
        assert_eq!(branch.lsn, Lsn::new(160));
        branch.check().unwrap();
        branch.lsn = Lsn::new(200);
        branch.add_layers(vec![delta("b", 170, 200)]).unwrap();
        branch.check().unwrap_err();
        branch.add_layers(vec![delta("a", 160, 170)]).unwrap();
        branch.check().unwrap();
    }

    #[test]
    fn what_came_before_the_branch_point_is_the_ancestors() {
        let branch = branch(&parent(), 160).unwrap();
        assert_eq!(branch.inherited_at(Lsn::new(159)), Some(MAIN));
        assert_eq!(branch.inherited_at(Lsn::new(160)), None);
        assert_eq!(parent().inherited_at(Lsn::new(1)), None);
    }

    #[test]
    fn a_branch_begins_only_where_one_can_read() {
        let mut parent = parent();
        let below = |lsn, oldest| {
            let (lsn, oldest) = (Lsn::new(lsn), Lsn::new(oldest));
            Err(BranchPointError::BelowOldest { lsn, oldest })
        };
        assert_eq!(branch(&parent, 119), below(119, 120));
        branch(&parent, 120).unwrap();
        let pin = Pin {
            id: 1,
            kind: PinKind::Lease,
            lsn: Lsn::new(130),
            expires_unix_ms: None,
        };
        parent.add_pin(pin).unwrap();
        parent.gc_cutoff = Lsn::new(150);
        assert_eq!(branch(&parent, 131), below(131, 150));
        branch(&parent, 130).unwrap();
        let (after, up_to) = (Lsn::new(160), Lsn::new(170));
        let hole = LsnSpan { after, up_to };
        parent.holes.push(hole);
        let lsn = Lsn::new(165);
        assert_eq!(
            branch(&parent, 165),
            Err(BranchPointError::InHole { lsn, hole })
        );
        for edge in [160, 170] {
            branch(&parent, edge).unwrap();
        }
    }

    #[test]
    fn a_branch_does_not_know_what_its_parent_followed_later() {
        let mut parent = parent();
        let begun = |pg_timeline, begin| PgTimelineBegin {
            pg_timeline,
            begin: Lsn::new(begin),
        };
        parent.pg_timeline_history = vec![begun(1, 100), begun(2, 150), begun(3, 180)];
        let history = branch(&parent, 150).unwrap().pg_timeline_history;
        assert_eq!(history, [begun(1, 100), begun(2, 150)]);
    }
}
