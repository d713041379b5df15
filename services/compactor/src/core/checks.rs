//! What was found out about parts that are not worn, so that it is not found out again.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use palimpsest_api::TimelineRef;
use palimpsest_manifest::KeySpan;
use palimpsest_types::{Key, Lsn};

/// How many layers really have changes of parts. Only a memory: without it everything is read again.
#[derive(Debug, Default)]
pub(super) struct Checks(Mutex<HashMap<(TimelineRef, Key), (Key, Check)>>);

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
        let known = self.lock().get(&(timeline, keys.first)).copied();
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
        let mut known = self.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert((timeline, keys.first), (keys.last, check));
    }

    /// Forgets timelines that there are no more.
    pub(super) fn retain(&self, known: &HashSet<TimelineRef>) {
        self.lock()
            .retain(|(timeline, _), _| known.contains(timeline));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(TimelineRef, Key), (Key, Check)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        checks.retain(&HashSet::new());
        assert_eq!(checks.get(timeline, keys, Lsn::new(10)).layers, 0);
    }
}
