//! How long values may be, so that nobody makes room for more because a file says so.

use std::ops::RangeInclusive;

use palimpsest_types::{Key, PAGE_SIZE};
use palimpsest_wal::{CommitTime, ControlData, NextMultiXact, RecordReader, v15::Parameters};

/// The longest relation map. PostgreSQL keeps it to about a disk sector, so that writing it is atomic:
/// `RelMapFile` has 512 bytes in version 15 (62 mappings), 524 since 16 (64).
pub const MAX_RELATION_MAP: usize = 524;

/// For the same reason what counts in a control file is no longer (`PG_CONTROL_MAX_SAFE_SIZE`).
const MAX_CONTROL_FILE: usize = 512;

/// PostgreSQL reads what it can allocate (`MaxAllocSize`, 1 GiB), but has written it as one record,
/// whose header is longer than the file's checksum, and longer records are not taken.
const MAX_TWO_PHASE_FILE: usize = RecordReader::MAX_RECORD_LEN as usize;

/// A number of blocks.
const SIZE: usize = size_of::<u32>();

/// A position at the origin.
const ORIGIN_PROGRESS: usize = size_of::<u64>();

/// Lengths that a value may have as it is stored; `None` if image layers have no such key.
pub(super) const fn lengths(key: Key) -> Option<RangeInclusive<usize>> {
    Some(match key {
        Key::RelBlock(..) | Key::SlruBlock(..) => 1..=PAGE_SIZE,
        Key::RelSize(_) | Key::SlruSegment(..) => SIZE..=SIZE,
        Key::RelMap { .. } => 0..=MAX_RELATION_MAP,
        Key::TwoPhase(_) => 0..=MAX_TWO_PHASE_FILE,
        Key::Parameters => 0..=Parameters::LEN,
        Key::ControlFile => 0..=MAX_CONTROL_FILE,
        Key::ControlData => 0..=ControlData::LEN,
        Key::NextMultiXact => 0..=NextMultiXact::LEN,
        Key::CommitTime => 0..=CommitTime::LEN,
        Key::Origin(_) => 0..=ORIGIN_PROGRESS,
        // An image has what a database holds, not where that came from.
        Key::Database { .. } => return None,
    })
}
