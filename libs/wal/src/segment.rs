use std::fmt;

use palimpsest_types::Lsn;

/// Size of a WAL page (`XLOG_BLCKSZ`).
pub const WAL_PAGE_SIZE: u64 = 8192;

/// Size of a WAL segment file (`wal_segment_size`): a power of two from 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSize(u32);

/// Not a size that PostgreSQL allows for WAL segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a WAL segment size; it is a power of two from 1 MiB to 1 GiB")]
pub struct InvalidSegmentSizeError(pub u64);

/// Number of a WAL segment since the beginning of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(u64);

impl SegmentSize {
    /// PostgreSQL's default, 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// A size of `bytes`.
    ///
    /// # Errors
    /// If PostgreSQL would not accept it (`IsValidWalSegSize`).
    pub fn new(bytes: u64) -> Result<Self, InvalidSegmentSizeError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => {
                Ok(Self(size))
            }
            _ => Err(InvalidSegmentSizeError(bytes)),
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// The segment that holds the byte at `lsn`.
    pub const fn number_of(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.get() / self.bytes())
    }

    /// Where a segment begins; `None` past the end of the address space.
    pub fn start_of(self, segment: SegmentNumber) -> Option<Lsn> {
        segment.0.checked_mul(self.bytes()).map(Lsn::new)
    }

    /// The first segment start at or after `lsn`.
    pub fn round_up(self, lsn: Lsn) -> Option<Lsn> {
        let past = lsn.checked_add(self.bytes() - 1)?;
        Some(past.floor_to(self.bytes()))
    }

    /// Name of a segment's file on a PostgreSQL timeline (`XLogFileName`).
    pub fn file_name(self, timeline: u32, segment: SegmentNumber) -> String {
        let per_id = 0x1_0000_0000 / self.bytes();
        format!(
            "{timeline:08X}{:08X}{:08X}",
            segment.0 / per_id,
            segment.0 % per_id
        )
    }
}

impl SegmentNumber {
    /// The segment after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_files_as_postgres_does() {
        let size = SegmentSize::DEFAULT;
        let segment = size.number_of("1/2A000028".parse().unwrap());
        assert_eq!(size.file_name(1, segment), "00000001000000010000002A");
        let small = SegmentSize::new(1 << 20).unwrap();
        let segment = small.number_of("0/1000000".parse().unwrap());
        assert_eq!(small.file_name(2, segment), "000000020000000000000010");
    }

    #[test]
    fn accepts_only_what_initdb_accepts() {
        for bytes in [0, 1, (1 << 20) - 1, 3 << 20, 2 << 30, u64::MAX] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
        assert!(SegmentSize::new(1 << 30).is_ok());
    }

    #[test]
    fn rounds_up_to_segment_starts() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(size.round_up(Lsn::new(1)), Some(Lsn::new(16 << 20)));
        assert_eq!(size.round_up(Lsn::new(16 << 20)), Some(Lsn::new(16 << 20)));
        assert_eq!(size.round_up(Lsn::MAX), None);
    }
}
