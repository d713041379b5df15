//! When a timeline is looked at the next time. Pure.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use palimpsest_api::TimelineRef;
use palimpsest_types::Lsn;
use tokio::time::Instant;

use super::error::CompactError;

/// What the last look at each timeline told.
#[derive(Debug, Default)]
pub(super) struct Looks(HashMap<TimelineRef, Look>);

#[derive(Debug, Clone, Copy)]
enum Look {
    /// There was nothing to do with layers up to here.
    Idle(Lsn),
    /// Something else was to be done first.
    Later(Instant),
    /// It failed so many times on end, the last time then.
    Failed { times: u32, at: Instant },
}

/// When to look at a timeline again that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// At once: there may be more to do.
    Now,
    /// In a moment: something else is to be done first.
    Later,
    /// When there are other layers.
    WhenChanged,
}

/// After the first failure; twice as long after each more.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// A damaged layer does not get better, and each attempt reads and writes a lot.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

impl Looks {
    /// Forgets timelines that there are no more.
    pub(super) fn retain(&mut self, known: &[(TimelineRef, Lsn)]) {
        let known: HashSet<_> = known.iter().map(|(timeline, _)| *timeline).collect();
        self.0.retain(|timeline, _| known.contains(timeline));
    }

    /// A timeline is worth a look, whatever the last one told.
    pub(super) fn forget(&mut self, timeline: TimelineRef) {
        self.0.remove(&timeline);
    }

    /// Whether a timeline whose layers reach up to `lsn` is worth a look.
    pub(super) fn is_due(&self, timeline: TimelineRef, lsn: Lsn, now: Instant) -> bool {
        match self.0.get(&timeline) {
            None => true,
            Some(Look::Idle(looked)) => *looked != lsn,
            Some(Look::Later(at)) => now.duration_since(*at) >= FIRST_PAUSE,
            Some(Look::Failed { times, at }) => now.duration_since(*at) >= pause(*times),
        }
    }

    /// A look had this outcome.
    pub(super) fn note(
        &mut self,
        timeline: TimelineRef,
        lsn: Lsn,
        outcome: &Result<Again, CompactError>,
        now: Instant,
    ) {
        let before = self.0.remove(&timeline);
        let look = match outcome {
            Ok(Again::Now) => return,
            Ok(Again::Later) => Look::Later(now),
            Ok(Again::WhenChanged) => Look::Idle(lsn),
            Err(error) => {
                let times = match before {
                    Some(Look::Failed { times, .. }) if !error.is_of_another() => times + 1,
                    _ => 1,
                };
                Look::Failed { times, at: now }
            }
        };
        self.0.insert(timeline, look);
    }
}

fn pause(times: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(times.saturating_sub(1));
    FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    #[test]
    fn what_fails_is_tried_less_and_less_and_what_is_idle_when_there_is_more() {
        let timeline = TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        };
        let (lsn, later) = (Lsn::new(10), Lsn::new(20));
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let mut looks = Looks::default();
        looks.note(timeline, lsn, &Ok(Again::Now), begun);
        assert!(looks.is_due(timeline, lsn, begun));
        looks.note(timeline, lsn, &Ok(Again::Later), begun);
        assert!(!looks.is_due(timeline, later, begun + second));
        assert!(looks.is_due(timeline, lsn, begun + 2 * second));
        looks.note(timeline, lsn, &Ok(Again::WhenChanged), begun);
        assert!(!looks.is_due(timeline, lsn, begun + 9999 * second));
        assert!(looks.is_due(timeline, later, begun));
        for pause in [2, 4, 8] {
            looks.note(timeline, lsn, &Err(CompactError::Inconsistent), begun);
            assert!(!looks.is_due(timeline, later, begun + (pause - 1) * second));
            assert!(looks.is_due(timeline, later, begun + pause * second));
        }
        for _ in 0..40 {
            looks.note(timeline, lsn, &Err(CompactError::Inconsistent), begun);
        }
        assert!(looks.is_due(timeline, lsn, begun + 3600 * second));
        looks.note(timeline, lsn, &Err(CompactError::Deleted), begun);
        assert!(looks.is_due(timeline, lsn, begun + 2 * second));
        looks.retain(&[]);
        assert!(looks.is_due(timeline, lsn, begun));
    }
}
