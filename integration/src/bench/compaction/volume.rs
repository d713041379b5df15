//! How much is written, and what is in proportion to it. Pure.

use palimpsest_types::ByteCount;

/// How much WAL is written. With less of it everything else is smaller, too, so that a quick run
/// shows the same picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Volume {
    mebibytes: u64,
}

/// WAL of one round, in MiB; more or less of it if rounds would be fewer or more than these.
const ROUND: u64 = 512;
const FEWEST_ROUNDS: u64 = 6;
const MOST_ROUNDS: u64 = 10;
/// A layer is such a part of all WAL.
const LAYERS: u64 = 20;
/// Layers that a wal-ingest makes by default.
const LARGEST_LAYER: u64 = 256;
/// Below that, layers are too small to tell anything.
const SMALLEST_LAYER: u64 = 8;

impl Volume {
    pub(super) const fn of(mebibytes: u64) -> Self {
        Self { mebibytes }
    }

    /// After each of so many parts is measured.
    pub(super) fn rounds(self) -> u64 {
        (self.mebibytes / ROUND).clamp(FEWEST_ROUNDS, MOST_ROUNDS)
    }

    /// WAL that so many rounds write.
    pub(super) fn after(self, rounds: u64) -> u64 {
        (self.mebibytes << 20) / self.rounds() * rounds
    }

    /// Changes in one layer as it is made of WAL.
    pub(super) fn layer_mebibytes(self) -> u64 {
        (self.mebibytes / LAYERS).clamp(SMALLEST_LAYER, LARGEST_LAYER)
    }

    /// The compactor's `target-size`.
    pub(super) fn target(self) -> ByteCount {
        ByteCount::mib(self.layer_mebibytes() / 2)
    }

    /// The source's `max_wal_size`; PostgreSQL takes no less than two segments.
    pub(super) fn checkpoint_mebibytes(self) -> u64 {
        (self.mebibytes / 5).clamp(64, 1024)
    }

    /// Of pgbench: its table has about 13 MB for each.
    pub(super) fn scale(self) -> u64 {
        (self.mebibytes / 51).clamp(1, 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_gibibytes_are_taken_in_as_by_default_and_less_in_proportion() {
        let whole = Volume::of(5120);
        assert_eq!((whole.rounds(), whole.after(3)), (10, 1536 << 20));
        assert_eq!(whole.layer_mebibytes(), 256);
        assert_eq!(whole.target(), ByteCount::mib(128));
        assert_eq!((whole.checkpoint_mebibytes(), whole.scale()), (1024, 100));
        let quick = Volume::of(512);
        assert_eq!((quick.rounds(), quick.after(6) >> 20), (6, 511));
        assert_eq!((quick.layer_mebibytes(), quick.scale()), (25, 10));
        let least = Volume::of(1);
        assert_eq!((least.layer_mebibytes(), least.scale()), (8, 1));
    }
}
