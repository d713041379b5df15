//! How much forks may grow over blocks that no record names.

use palimpsest_types::Lsn;

/// A record that makes its forks grow by more (4 GiB) is refused rather than believed.
///
/// Every page of a gap becomes a change, and all of a record's changes are held at once: here some
/// 200 MB, and 15 MB in one message of the feed. PostgreSQL leaves gaps where it makes room for
/// many pages and logs only the last: a hash index that doubles does so in four steps, each this
/// large when the index has 16 GiB.
pub(super) const MAX_GAP_BLOCKS: u32 = 1 << 19;

/// What records may still leave out, over all of them.
///
/// A record of 60 bytes can leave the largest gap there is, and some megabytes of such records are
/// decoded before anybody asks for room. So gaps are paid for with WAL: what has come earns blocks, up
/// to four of the largest gaps. PostgreSQL does not run out of it: between two steps of a hash index it
/// splits as many buckets as the step before made room for, and each split is a record. Indexes of one
/// table that were built alike take their steps together: room for four of 16 GiB, or eight of 8 GiB.
#[derive(Debug, Clone)]
pub(super) struct GapAllowance {
    blocks: u32,
    /// Earned up to here, from the first record on.
    up_to: Option<Lsn>,
}

/// What can be saved up, and there is at the beginning.
const MAX_SAVED: u32 = 4 * MAX_GAP_BLOCKS;
/// WAL that earns a block.
const BYTES_FOR_BLOCK: u64 = 16;

impl Default for GapAllowance {
    fn default() -> Self {
        Self {
            blocks: MAX_SAVED,
            up_to: None,
        }
    }
}

impl GapAllowance {
    /// The log has come so far.
    pub(super) fn refill(&mut self, up_to: Lsn) {
        let from = *self.up_to.get_or_insert(up_to);
        let earned = up_to.saturating_sub(from) / BYTES_FOR_BLOCK;
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.blocks = self.blocks.saturating_add(earned).min(MAX_SAVED);
            self.up_to = Some(up_to);
        }
    }

    /// Whether a gap of so many blocks is within it.
    pub(super) fn has(&self, blocks: u32) -> bool {
        blocks <= self.blocks
    }

    /// A gap of so many blocks is there.
    pub(super) fn take(&mut self, blocks: u32) {
        self.blocks = self.blocks.saturating_sub(blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_earned_by_the_log_between_them() {
        let mut gaps = GapAllowance::default();
        gaps.refill(Lsn::new(1 << 30));
        gaps.take(MAX_SAVED);
        assert!(gaps.has(0) && !gaps.has(1));
        // What is less than a block is not lost.
        gaps.refill(Lsn::new((1 << 30) + 8));
        gaps.refill(Lsn::new((1 << 30) + 16));
        assert!(gaps.has(1) && !gaps.has(2));
        gaps.refill(Lsn::MAX);
        assert!(gaps.has(MAX_SAVED) && !gaps.has(MAX_SAVED + 1));
    }
}
