//! Where a branch comes from: what it does not have itself is there.
//!
//! ```text
//!  c                     ├── c ──▶            branched from b at 70
//!  b            ├── b ───┴─────▶              branched from a at 40
//!  a  ── a ─────┴──────────────────▶
//!               40       70
//! ```
//!
//! The history of `c` is that of `a` up to 40, of `b` up to 70, and its own.

use std::{ops::RangeInclusive, sync::Arc};

use palimpsest_manifest::LsnSpan;
use palimpsest_redo::Engine;
use palimpsest_types::{Lsn, SystemIdentifier};

use super::TimelineReader;

/// The point on another timeline at which a branch begins.
#[derive(Debug)]
pub(super) struct Ancestor<E> {
    pub(super) reader: Arc<TimelineReader<E>>,
    /// Versions up to here are shared.
    pub(super) lsn: Lsn,
}

/// What a history is pieced together from, newest first. See [`TimelineReader::history`].
#[derive(Debug)]
pub(super) struct History<'a, E> {
    next: Option<&'a TimelineReader<E>>,
    from: Lsn,
    up_to: Lsn,
}

impl<E: Engine> TimelineReader<E> {
    /// The timelines that have versions of this one at these LSNs, newest first, each with the LSNs at
    /// which it has them.
    pub(super) fn history(&self, lsns: &RangeInclusive<Lsn>) -> History<'_, E> {
        History {
            next: (!lsns.is_empty()).then_some(self),
            from: *lsns.start(),
            up_to: *lsns.end(),
        }
    }

    /// The oldest LSN from which on all can be read.
    pub(super) fn oldest(&self) -> Lsn {
        let mut oldest = self.layers().oldest();
        let mut reader = self;
        // Once something of a timeline is gone, so is what came before.
        while let Some(ancestor) = &reader.ancestor
            && oldest <= ancestor.lsn
        {
            reader = &ancestor.reader;
            oldest = oldest.min(reader.layers().oldest());
        }
        oldest
    }

    /// Whether an LSN stays readable where it is, whatever the oldest is.
    pub(super) fn is_pinned(&self, lsn: Lsn) -> bool {
        self.inherited(|branch| lsn < branch)
            .layers()
            .is_pinned(lsn)
    }

    /// What was lost around an LSN, where it is, or around where one begins of those between: a branch may have been made
    /// there before that was lost.
    pub(super) fn hole_at(&self, lsn: Lsn) -> Option<LsnSpan> {
        let stretches = self.history(&(Lsn::ZERO..=lsn));
        let mut holes = stretches.map(|(reader, lsns)| {
            let layers = reader.layers();
            LsnSpan::around(layers.holes(), *lsns.end())
        });
        holes.find_map(|hole| hole)
    }

    /// The timeline that has an LSN, given whether what begins at another has it from what that begins on.
    fn inherited(&self, is_before: impl Fn(Lsn) -> bool) -> &Self {
        let mut reader = self;
        while let Some(ancestor) = &reader.ancestor
            && is_before(ancestor.lsn)
        {
            reader = &ancestor.reader;
        }
        reader
    }

    /// The cluster that wrote what ends at an LSN: of a branch, at its beginning and before, the one of what it begins
    /// on. Of one that was written by several it is the newest.
    pub fn cluster_at(&self, lsn: Lsn) -> SystemIdentifier {
        self.inherited(|branch| lsn <= branch).layers().cluster()
    }

    /// PostgreSQL timelines that were left for another before an LSN, each with where, rising.
    pub fn left_pg_timelines(&self, before: Lsn) -> Vec<(u32, Lsn)> {
        let layers = self.layers();
        let left = layers.left().iter().copied();
        left.filter(|(_, at)| *at < before).collect()
    }

    /// The newest LSN that can be read: where the first timeline ends that has not come as far here as
    /// the branch on it.
    pub(super) fn newest_arrived(&self) -> Lsn {
        let mut newest = self.tail.newest();
        let mut reader = self;
        while let Some(ancestor) = &reader.ancestor {
            reader = &ancestor.reader;
            let here = reader.tail.newest();
            if here < ancestor.lsn {
                newest = here;
            }
        }
        newest
    }

    /// Waits until everything up to an LSN is here. If it never comes, for ever.
    pub(super) async fn arrival(&self, lsn: Lsn) {
        for (reader, lsns) in self.history(&(Lsn::ZERO..=lsn)) {
            let mut newest = reader.tail.watch();
            // The sender is in the tail, so it does not go away.
            let _ = newest.wait_for(|newest| newest >= lsns.end()).await;
        }
    }
}

impl<'a, E> Iterator for History<'a, E> {
    type Item = (&'a TimelineReader<E>, RangeInclusive<Lsn>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let reader = self.next.take()?;
            let up_to = self.up_to;
            let Some(ancestor) = &reader.ancestor else {
                return Some((reader, self.from..=up_to));
            };
            if self.from <= ancestor.lsn {
                self.next = Some(&ancestor.reader);
                self.up_to = up_to.min(ancestor.lsn);
            }
            // Behind the last LSN there is nothing.
            let own = ancestor
                .lsn
                .checked_add(1)
                .map(|first| first.max(self.from));
            if let Some(first) = own.filter(|first| *first <= up_to) {
                return Some((reader, first..=up_to));
            }
        }
    }
}
