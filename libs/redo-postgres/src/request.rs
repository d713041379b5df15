//! What the engine is asked for and gives.

use bytes::Bytes;
use palimpsest_types::{BlockNumber, Lsn, RelTag};

/// One WAL record: header and body, without the page headers that WAL files interleave.
#[derive(Debug, Clone)]
pub struct RedoRecord {
    /// Where its header begins. Used in messages only.
    pub start_lsn: Lsn,
    /// Where the next record may begin (aligned to 8). Becomes the page's `pd_lsn`, so it must be
    /// exact.
    pub end_lsn: Lsn,
    /// The record. Its CRC must have been checked: redo does not.
    pub bytes: Bytes,
}

/// A page as it was, and what happened to it since.
#[derive(Debug, Clone)]
pub struct ApplyRequest {
    /// The page's relation fork.
    pub rel: RelTag,
    /// Its number there.
    pub block: BlockNumber,
    /// The page before the first record; none if a record of the chain initialises it.
    pub base: Option<Bytes>,
    /// In WAL order. Each must refer to the page, unless it belongs to a visibility map.
    pub records: Vec<RedoRecord>,
}

/// A page rebuilt under comparison with the images that `wal_consistency_checking` adds to records.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The page after the last record.
    pub page: Bytes,
    /// Records whose image was compared with the page after them.
    pub compared: u32,
    /// How many of these differed after masking. Anything but 0 is a defect or damage.
    pub differing: u32,
}
