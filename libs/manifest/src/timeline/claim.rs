//! Who compacts a timeline.

use std::time::{Duration, SystemTime};

use palimpsest_types::unix_ms;
use serde::{Deserialize, Serialize};

use super::{CompactorEpoch, TimelineManifest};

/// A compactor's word that it works on a timeline, so that others work elsewhere.
///
/// It saves work and keeps nothing safe: clocks differ, and who was thought dead may come back. What
/// keeps the layers safe is the epoch, which every claim raises: what a compactor of an older one made
/// is not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompactorClaim {
    /// The process that claims, by a number that differs at every start.
    pub by: u128,
    /// When others may claim the timeline unless this was renewed, in milliseconds since 1970.
    pub until_unix_ms: u64,
}

/// No claim is longer, with some room for clocks that differ.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// A timeline can't be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Somebody else works on it.
    #[error("another compactor works on the timeline, for {holds_for:?} more unless it goes on")]
    Taken {
        /// How long its claim holds, by the clock of whoever asks.
        holds_for: Duration,
    },
    /// A generation can't be raised.
    #[error("there are no more epochs")]
    NoMoreEpochs,
}

impl CompactorClaim {
    /// A claim from now on, for so long unless it is renewed.
    pub fn new(by: u128, now: SystemTime, holds_for: Duration) -> Self {
        Self {
            by,
            until_unix_ms: unix_ms(now).saturating_add(millis(holds_for)),
        }
    }
}

impl TimelineManifest {
    /// For how long the timeline is claimed, by whomever: zero if it is not. A claim that would hold for
    /// longer than any does is by a clock that is far ahead, and counts for nothing.
    pub fn claimed_for(&self, now: SystemTime) -> Duration {
        let until = self.compactor_claim.map(|claim| claim.until_unix_ms);
        let for_ms = until.map_or(0, |until| until.saturating_sub(unix_ms(now)));
        let holds_for = Duration::from_millis(for_ms);
        match holds_for <= LONGEST {
            true => holds_for,
            false => Duration::ZERO,
        }
    }

    /// Claims the timeline for a compactor, with a generation of its own: whoever compacted it before
    /// can't publish any more, be it dead or only slow.
    ///
    /// # Errors
    /// If the claim of another holds.
    pub fn claim(
        &mut self,
        claim: CompactorClaim,
        now: SystemTime,
    ) -> Result<CompactorEpoch, ClaimError> {
        let is_of_another = self
            .compactor_claim
            .is_some_and(|other| other.by != claim.by);
        let holds_for = self.claimed_for(now);
        if is_of_another && !holds_for.is_zero() {
            return Err(ClaimError::Taken { holds_for });
        }
        let next = self.compactor_epoch.next();
        self.compactor_epoch = next.ok_or(ClaimError::NoMoreEpochs)?;
        self.compactor_claim = Some(claim);
        Ok(self.compactor_epoch)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use palimpsest_types::{ByteCount, Lsn, SystemIdentifier};

    use super::*;
    use crate::SourceCluster;

    fn manifest() -> TimelineManifest {
        let source = SourceCluster {
            system_identifier: SystemIdentifier::new(7),
            pg_version: 15,
            pg_timeline: 1,
            wal_segment_size: ByteCount::mib(16),
            wal_log_hints: false,
        };
        TimelineManifest::new(source, Lsn::new(100), Lsn::new(120))
    }

    const LONG: Duration = Duration::from_secs(40);

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    fn claim(by: u128, second: u64) -> CompactorClaim {
        CompactorClaim::new(by, at(second), LONG)
    }

    #[test]
    fn p4_each_claim_supersedes_the_one_before() {
        let mut manifest = manifest();
        assert_eq!(manifest.claimed_for(at(10)), Duration::ZERO);
        let first = manifest.claim(claim(1, 10), at(10)).unwrap();
        let holds_for = Duration::from_secs(10);
        assert_eq!(manifest.claimed_for(at(40)), holds_for);
        assert_eq!(
            manifest.claim(claim(2, 40), at(40)),
            Err(ClaimError::Taken { holds_for })
        );
        assert_eq!(
            manifest.compactor_epoch, first,
            "refused, so nothing changed"
        );
        let own = manifest.claim(claim(1, 10), at(40)).unwrap();
        assert!(own > first, "its own claim holds nobody up");
        assert_eq!(manifest.claimed_for(at(50)), Duration::ZERO);
        let second = manifest.claim(claim(2, 50), at(50)).unwrap();
        assert!(second > own);
    }

    #[test]
    fn a_claim_by_a_clock_that_is_far_ahead_counts_for_nothing() {
        let mut manifest = manifest();
        let ahead = CompactorClaim::new(2, at(80), LONGEST);
        manifest.claim(ahead, at(80)).unwrap();
        assert_eq!(manifest.claimed_for(at(80)), LONGEST);
        assert_eq!(manifest.claimed_for(at(79)), Duration::ZERO);
        manifest.claim(claim(1, 79), at(79)).unwrap();
    }
}
