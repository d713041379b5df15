//! Going on from a later base backup, where the WAL before it was lost.
//!
//! ```text
//! ────────────┤E             S├────────┤B─────────▶
//!   as before   layers of the   WAL,      as before
//!               backup          torn pages
//!             └──── the hole ──────────┘
//! ```
//!
//! The layers are delta layers like any other: what the backup has instead of what was at E, as if one change at
//! LSNs up to S had made it so. What it does not have is dropped there. Between E and B nothing can be read: what
//! was there nobody knows, and until B pages are torn.

use palimpsest_types::Lsn;

use super::{PgTimelineBegin, SourceCluster, TimelineManifest};
use crate::{
    layer_entry::{LayerEntry, LsnSpan},
    validate::InvalidManifestError,
};

/// What a timeline goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reread {
    /// Where the base backup was begun; WAL is applied from here on.
    pub start: Lsn,
    /// From here on it can be read.
    pub end: Lsn,
    /// Of what.
    pub source: SourceCluster,
    /// PostgreSQL timelines that the source has begun since.
    pub begun: Vec<PgTimelineBegin>,
    /// What is different at `start` from what was at the timeline's end: changes without a gap between.
    pub layers: Vec<LayerEntry>,
}

impl TimelineManifest {
    /// Goes on from a base backup. What lies between the end of the timeline and that of the backup is a hole.
    ///
    /// # Errors
    /// If the backup does not come after the timeline's end, or its layers don't reach from there to its start.
    pub fn go_on_from(&mut self, reread: Reread) -> Result<(), InvalidManifestError> {
        let hole = LsnSpan {
            after: self.lsn,
            up_to: reread.end,
        };
        if reread.start <= self.lsn || reread.end < reread.start {
            return Err(InvalidManifestError::Hole { hole });
        }
        let mut changed = self.clone();
        changed.add_layers(reread.layers)?;
        changed.lsn = reread.start;
        changed.holes.push(hole);
        changed.source = reread.source;
        changed.pg_timeline_history.extend(reread.begun);
        changed.check()?;
        *self = changed;
        Ok(())
    }

    /// Whether it went on from a base backup where it ended at this LSN, or later.
    pub fn was_reread_after(&self, lsn: Lsn) -> bool {
        self.holes.iter().any(|hole| hole.after >= lsn)
    }

    /// What was lost, in the order of its beginnings.
    pub fn holes(&self) -> &[LsnSpan] {
        &self.holes
    }

    /// What was lost around an LSN. The edges are not lost.
    pub fn hole_at(&self, lsn: Lsn) -> Option<LsnSpan> {
        LsnSpan::around(&self.holes, lsn)
    }

    /// From where on pages are not torn, as far as WAL is applied from the manifest's LSN on.
    pub fn consistent_from(&self) -> Lsn {
        let ends = self.holes.iter().map(|hole| hole.up_to);
        ends.fold(self.oldest_readable, Ord::max)
    }

    /// Whether each hole begins behind the one before, and none behind the manifest's LSN. They may overlap: what comes
    /// after a base backup may be lost before all of that has come.
    pub(crate) fn check_holes(&self) -> Result<(), InvalidManifestError> {
        let mut before = None;
        for &hole in &self.holes {
            if hole.is_empty() || Some(hole.after) <= before || hole.after >= self.lsn {
                return Err(InvalidManifestError::Hole { hole });
            }
            before = Some(hole.after);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{ByteCount, SystemIdentifier};

    use super::*;
    use crate::test_layers::{base, delta, image};

    fn source(pg_timeline: u32) -> SourceCluster {
        SourceCluster {
            system_identifier: SystemIdentifier::new(7),
            pg_version: 15,
            pg_timeline,
            wal_segment_size: ByteCount::mib(16),
            wal_log_hints: false,
        }
    }

    /// Up to 120.
    fn manifest() -> TimelineManifest {
        let mut manifest = TimelineManifest::new(source(1), Lsn::new(100), Lsn::new(110));
        manifest.lsn = Lsn::new(120);
        let layers = vec![base("base", 100), delta("a", 100, 120)];
        manifest.add_layers(layers).unwrap();
        manifest
    }

    fn reread(start: u64, end: u64, layers: Vec<LayerEntry>) -> Reread {
        Reread {
            start: Lsn::new(start),
            end: Lsn::new(end),
            source: source(2),
            begun: vec![PgTimelineBegin {
                pg_timeline: 2,
                begin: Lsn::new(150),
            }],
            layers,
        }
    }

    #[test]
    fn p1_what_was_lost_is_a_hole_and_its_edges_are_not() {
        let mut manifest = manifest();
        let layers = vec![delta("x", 120, 128), delta("y", 128, 200)];
        manifest.go_on_from(reread(200, 240, layers)).unwrap();
        let hole = LsnSpan {
            after: Lsn::new(120),
            up_to: Lsn::new(240),
        };
        for (lsn, lost) in [(120, false), (121, true), (239, true), (240, false)] {
            let lsn = Lsn::new(lsn);
            assert_eq!(manifest.hole_at(lsn), lost.then_some(hole), "{lsn}");
            assert_eq!(manifest.check_point(lsn).is_err(), lost, "{lsn}");
        }
        assert_eq!(manifest.lsn, Lsn::new(200));
        assert_eq!(manifest.source.pg_timeline, 2);
        assert_eq!(manifest.consistent_from(), Lsn::new(240));
        let asked = [119, 120, 121].map(|lsn| manifest.was_reread_after(Lsn::new(lsn)));
        assert_eq!(asked, [true, true, false]);
    }

    #[test]
    fn a_base_backup_comes_after_the_end_and_its_layers_leave_no_gap() {
        let whole = || vec![delta("x", 120, 200)];
        let refused = [
            reread(120, 130, vec![delta("x", 119, 120)]),
            reread(200, 199, whole()),
            reread(200, 240, vec![delta("x", 128, 200)]),
            reread(200, 240, vec![delta("x", 120, 192)]),
            reread(200, 240, vec![delta("x", 120, 208)]),
            reread(200, 240, vec![]),
        ];
        for reread in refused {
            let mut manifest = manifest();
            let before = manifest.clone();
            manifest.go_on_from(reread.clone()).expect_err("refused");
            assert_eq!(manifest, before, "{reread:?}");
        }
        manifest().go_on_from(reread(200, 240, whole())).unwrap();
    }

    #[test]
    fn p1_no_image_is_of_what_was_lost() {
        let mut manifest = manifest();
        let layers = vec![delta("x", 120, 200)];
        manifest.go_on_from(reread(200, 240, layers)).unwrap();
        manifest.lsn = Lsn::new(250);
        manifest.add_layers(vec![delta("z", 200, 250)]).unwrap();
        manifest.check().unwrap();
        let mut torn = manifest.clone();
        torn.add_layers(vec![image("i", 200)]).unwrap();
        torn.check().unwrap_err();
        manifest.add_layers(vec![image("i", 240)]).unwrap();
        manifest.check().unwrap();
    }

    #[test]
    fn p1_wal_may_be_lost_again_before_the_backup_s_end_has_come() {
        let mut manifest = manifest();
        let layers = vec![delta("x", 120, 200)];
        manifest.go_on_from(reread(200, 240, layers)).unwrap();
        let again = Reread {
            begun: vec![],
            ..reread(300, 310, vec![delta("y", 200, 300)])
        };
        manifest.go_on_from(again).unwrap();
        let lost = [121, 200, 240, 309].map(|lsn| manifest.hole_at(Lsn::new(lsn)).is_some());
        assert_eq!(lost, [true; 4]);
        assert!(manifest.was_reread_after(Lsn::new(200)));
        assert_eq!(manifest.consistent_from(), Lsn::new(310));
    }
}
