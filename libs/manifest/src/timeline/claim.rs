//! Who compacts a timeline.

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
const LONGEST_MS: u64 = 15 * 60 * 1000;

/// A timeline can't be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Somebody else works on it.
    #[error("another compactor works on the timeline, for {for_ms} ms more unless it goes on")]
    Taken {
        /// How long its claim holds, by the clock of whoever asks.
        for_ms: u64,
    },
    /// A generation can't be raised.
    #[error("there are no more epochs")]
    NoMoreEpochs,
}

impl CompactorClaim {
    /// Whether it still holds at this time. One that would hold for longer than any claim is by a clock
    /// that is far ahead, and counts for nothing.
    fn holds_at(&self, now_unix_ms: u64) -> bool {
        let for_ms = self.until_unix_ms.saturating_sub(now_unix_ms);
        for_ms > 0 && for_ms <= LONGEST_MS
    }
}

impl TimelineManifest {
    /// Claims the timeline for a compactor, with a generation of its own: whoever compacted it before
    /// can't publish any more, be it dead or only slow.
    ///
    /// # Errors
    /// If the claim of another holds.
    pub fn claim(
        &mut self,
        claim: CompactorClaim,
        now_unix_ms: u64,
    ) -> Result<CompactorEpoch, ClaimError> {
        if let Some(other) = self.compactor_claim
            && other.by != claim.by
            && other.holds_at(now_unix_ms)
        {
            let for_ms = other.until_unix_ms - now_unix_ms;
            return Err(ClaimError::Taken { for_ms });
        }
        let next = self.compactor_epoch.next();
        self.compactor_epoch = next.ok_or(ClaimError::NoMoreEpochs)?;
        self.compactor_claim = Some(claim);
        Ok(self.compactor_epoch)
    }

    /// Whether anybody may claim the timeline at this time.
    pub fn is_claimable(&self, by: u128, now_unix_ms: u64) -> bool {
        let holds = |claim: CompactorClaim| claim.by != by && claim.holds_at(now_unix_ms);
        !self.compactor_claim.is_some_and(holds)
    }
}

#[cfg(test)]
mod tests {
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

    fn claim(by: u128, until_unix_ms: u64) -> CompactorClaim {
        CompactorClaim { by, until_unix_ms }
    }

    #[test]
    fn p4_each_claim_supersedes_the_one_before() {
        let mut manifest = manifest();
        let first = manifest.claim(claim(1, 50), 10).unwrap();
        assert_eq!(
            manifest.claim(claim(2, 90), 40),
            Err(ClaimError::Taken { for_ms: 10 })
        );
        assert!(!manifest.is_claimable(2, 40) && manifest.is_claimable(1, 40));
        assert_eq!(
            manifest.compactor_epoch, first,
            "refused, so nothing changed"
        );
        assert!(manifest.is_claimable(2, 50));
        let second = manifest.claim(claim(2, 90), 50).unwrap();
        assert!(second > first);
        let renewed = manifest.claim(claim(2, 120), 80).unwrap();
        assert!(renewed > second);
        let ahead = claim(2, 80 + LONGEST_MS + 1);
        manifest.claim(ahead, 80).unwrap();
        assert!(manifest.is_claimable(1, 80), "by a clock that is far ahead");
    }
}
