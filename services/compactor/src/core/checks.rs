//! What was found out about parts that are not worn, so that it is not found out again.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

use palimpsest_api::TimelineRef;
use palimpsest_manifest::KeySpan;
use palimpsest_types::{Key, Lsn};
use tokio::time::Instant;

use super::lock::lock;

/// How many layers really have changes of parts, and of which parts no image could be made. Only a memory:
/// without it everything is read, and tried, again.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// By the first key of a part, with its last.
    checks: Mutex<HashMap<(TimelineRef, Key), (Key, Check)>>,
    /// By the first key of a part, when that was.
    failed: Mutex<HashMap<(TimelineRef, Key), Instant>>,
}

/// Of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Check {
    /// Where its newest image is.
    pub(super) since: Lsn,
    /// Layers were looked at up to here.
    pub(super) up_to: Lsn,
    /// So many had a change of it.
    pub(super) layers: usize,
}

/// Parts that are remembered: at the usual size of layers so many are 12 TiB of pages.
const REMEMBERED: usize = 100_000;

impl Checks {
    /// What is known of a part whose newest image is there.
    pub(super) fn get(&self, timeline: TimelineRef, keys: KeySpan, since: Lsn) -> Check {
        let known = lock(&self.checks).get(&(timeline, keys.first)).copied();
        let known = known.filter(|(last, check)| *last == keys.last && check.since == since);
        known.map_or(
            Check {
                since,
                up_to: since,
                layers: 0,
            },
            |(_, check)| check,
        )
    }

    /// Remembers a check.
    pub(super) fn note(&self, timeline: TimelineRef, keys: KeySpan, check: Check) {
        let mut known = lock(&self.checks);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert((timeline, keys.first), (keys.last, check));
    }

    /// An image of a part could not be made.
    pub(super) fn note_failed(&self, timeline: TimelineRef, keys: KeySpan, now: Instant) {
        let mut failed = lock(&self.failed);
        if failed.len() < REMEMBERED {
            failed.insert((timeline, keys.first), now);
        }
    }

    /// It was made.
    pub(super) fn note_made(&self, timeline: TimelineRef, keys: KeySpan) {
        lock(&self.failed).remove(&(timeline, keys.first));
    }

    /// When it could not be made the last time; `None` if it was never tried, or made since.
    pub(super) fn failed(&self, timeline: TimelineRef, keys: KeySpan) -> Option<Instant> {
        lock(&self.failed).get(&(timeline, keys.first)).copied()
    }

    /// Forgets timelines that there are no more.
    pub(super) fn retain(&self, known: &HashSet<TimelineRef>) {
        lock(&self.checks).retain(|(timeline, _), _| known.contains(timeline));
        lock(&self.failed).retain(|(timeline, _), _| known.contains(timeline));
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    #[test]
    fn what_is_known_is_of_the_same_part_since_the_same_image() {
        let timeline = TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        };
        let keys = KeySpan::IMAGED[0];
        let checks = Checks::default();
        let check = Check {
            since: Lsn::new(10),
            up_to: Lsn::new(50),
            layers: 1,
        };
        checks.note(timeline, keys, check);
        assert_eq!(checks.get(timeline, keys, Lsn::new(10)), check);
        assert_eq!(checks.get(timeline, keys, Lsn::new(20)).up_to, Lsn::new(20));
        let longer = KeySpan {
            last: KeySpan::IMAGED[1].last,
            ..keys
        };
        assert_eq!(checks.get(timeline, longer, Lsn::new(10)).layers, 0);
        assert_eq!(checks.failed(timeline, keys), None);
        let now = Instant::now();
        checks.note_failed(timeline, keys, now);
        assert_eq!(checks.failed(timeline, keys), Some(now));
        checks.note_made(timeline, keys);
        assert_eq!(checks.failed(timeline, keys), None);
        checks.retain(&HashSet::new());
        assert_eq!(checks.get(timeline, keys, Lsn::new(10)).layers, 0);
    }
}
