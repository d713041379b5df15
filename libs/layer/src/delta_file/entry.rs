//! The codec of an entry: one version of one key.
//!
//! ```text
//! 0   key                          18 bytes
//! 18  LSN                          u64
//! 26  kind                         u8
//! 27  flag                         u8, 0 or 1
//! 28  body, as the kind says
//! ```

use bytes::{BufMut, Bytes};
use palimpsest_codec::{Cursor, TruncatedError};
use palimpsest_types::{BlockNumber, Key, Lsn};
use palimpsest_wal::{PagePatches, RawRecord, TransactionEnd, Value};

use super::{
    error::{DeltaLayerError, ensure},
    index::{BlockNo, Version, decode_version},
};

/// A version as its entry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// The value itself. Its bytes are a slice of the whole unpacked block and keep it in memory;
    /// who keeps a value for long should copy them.
    Value(Value),
    /// A [`Value::Record`] whose record stands elsewhere, because other entries refer to it, too.
    Shared {
        /// Where it stands.
        at: RecordPlace,
        /// The page before does not matter: the record builds the page from nothing.
        will_init: bool,
    },
}

/// Where a shared record stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordPlace {
    /// The record block that has it.
    pub block: BlockNo,
    /// Its first byte in the unpacked block.
    pub(super) offset: u32,
}

/// What is written for an entry.
#[derive(Debug, Clone, Copy)]
pub(super) enum ToStore<'a> {
    Value(&'a Value),
    Shared { at: RecordPlace, will_init: bool },
}

/// Length of what precedes the body: key, LSN, kind, flag. No entry is shorter.
pub(super) const HEAD_LEN: usize = Key::LEN + 8 + 1 + 1;

/// Length of a record before its bytes: start LSN, end LSN, length. No record is shorter.
pub(super) const RECORD_HEAD_LEN: usize = 8 + 8 + 4;

const KIND_IMAGE: u8 = 1;
const KIND_ZERO_PAGE: u8 = 2;
const KIND_RECORD: u8 = 3;
const KIND_SHARED_RECORD: u8 = 4;
const KIND_TRUNCATE_VISIBILITY_MAP: u8 = 5;
const KIND_TRANSACTIONS_ENDED: u8 = 6;
const KIND_REL_SIZE: u8 = 7;
const KIND_FILE: u8 = 8;
const KIND_DROPPED: u8 = 9;
const KIND_PATCHED: u8 = 10;
const KIND_COPY_OF: u8 = 11;

impl ToStore<'_> {
    /// Length of its entry, computed before it is encoded, as a block must have room for it.
    pub(super) fn entry_len(&self) -> usize {
        let body = match self {
            Self::Shared { .. } => 8,
            Self::Value(value) => match value {
                Value::Image(bytes) | Value::File(bytes) => 4 + bytes.len(),
                Value::Patched(patches) => 4 + patches.encoded().len(),
                Value::Record { record, .. } => record_len(record),
                Value::TransactionsEnded { xids, .. } => 4 + size_of_val::<[_]>(xids),
                Value::TruncateVisibilityMap { .. } | Value::RelSize(_) => 4,
                Value::CopyOf { .. } => 8,
                Value::ZeroPage | Value::Dropped => 0,
            },
        };
        HEAD_LEN + body
    }

    /// Appends the entry. Lengths fit, as no entry is longer than a block may be.
    pub(super) fn encode(&self, (key, lsn): Version, to: &mut Vec<u8>) {
        to.put_slice(&key.to_bytes());
        to.put_u64_le(lsn.get());
        to.put_u8(self.kind());
        to.put_u8(self.flag().into());
        match self {
            Self::Shared { at, .. } => {
                to.put_u32_le(at.block.get());
                to.put_u32_le(at.offset);
            }
            Self::Value(value) => match value {
                Value::Image(bytes) | Value::File(bytes) => put_counted(bytes, to),
                Value::Patched(patches) => put_counted(patches.encoded(), to),
                Value::Record { record, .. } => encode_record(record, to),
                Value::TransactionsEnded { xids, .. } => {
                    to.put_u32_le(xids.len() as u32);
                    for xid in xids.iter() {
                        to.put_u32_le(*xid);
                    }
                }
                Value::TruncateVisibilityMap { heap_blocks } => to.put_u32_le(heap_blocks.get()),
                Value::RelSize(blocks) => to.put_u32_le(blocks.get()),
                Value::CopyOf { spc, db } => {
                    to.put_u32_le(*spc);
                    to.put_u32_le(*db);
                }
                Value::ZeroPage | Value::Dropped => {}
            },
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Shared { .. } => KIND_SHARED_RECORD,
            Self::Value(value) => match value {
                Value::Image(_) => KIND_IMAGE,
                Value::ZeroPage => KIND_ZERO_PAGE,
                Value::Record { .. } => KIND_RECORD,
                Value::TruncateVisibilityMap { .. } => KIND_TRUNCATE_VISIBILITY_MAP,
                Value::TransactionsEnded { .. } => KIND_TRANSACTIONS_ENDED,
                Value::RelSize(_) => KIND_REL_SIZE,
                Value::File(_) => KIND_FILE,
                Value::Dropped => KIND_DROPPED,
                Value::Patched(_) => KIND_PATCHED,
                Value::CopyOf { .. } => KIND_COPY_OF,
            },
        }
    }

    /// Of a record: that it builds its page. Of transactions: that they aborted.
    fn flag(&self) -> bool {
        match self {
            Self::Shared { will_init, .. } | Self::Value(Value::Record { will_init, .. }) => {
                *will_init
            }
            Self::Value(Value::TransactionsEnded { end, .. }) => *end == TransactionEnd::Aborted,
            Self::Value(_) => false,
        }
    }
}

/// Reads the entry that begins here.
pub(super) fn decode_entry(cursor: &mut Cursor) -> Result<(Version, Stored), DeltaLayerError> {
    let version = decode_version(cursor)?;
    let kind = cursor.u8("kind")?;
    let flag = match cursor.u8("flag")? {
        0 => false,
        1 => true,
        _ => return Err(malformed("its flag is neither 0 nor 1")),
    };
    let has_flag = [KIND_RECORD, KIND_SHARED_RECORD, KIND_TRANSACTIONS_ENDED].contains(&kind);
    ensure(
        has_flag || !flag,
        "entry",
        "it has a flag that its kind does not have",
    )?;
    let value = match kind {
        KIND_IMAGE => Value::Image(counted_bytes(cursor, "page image")?),
        KIND_ZERO_PAGE => Value::ZeroPage,
        KIND_RECORD => Value::Record {
            will_init: flag,
            record: decode_record(cursor)?,
        },
        KIND_SHARED_RECORD => {
            let at = RecordPlace {
                block: BlockNo::new(cursor.u32("record block")?),
                offset: cursor.u32("record offset")?,
            };
            let will_init = flag;
            return Ok((version, Stored::Shared { at, will_init }));
        }
        KIND_TRUNCATE_VISIBILITY_MAP => Value::TruncateVisibilityMap {
            heap_blocks: BlockNumber::new(cursor.u32("heap length")?),
        },
        KIND_TRANSACTIONS_ENDED => decode_transactions(cursor, flag)?,
        KIND_REL_SIZE => Value::RelSize(BlockNumber::new(cursor.u32("relation size")?)),
        KIND_FILE => Value::File(counted_bytes(cursor, "file")?),
        KIND_DROPPED => Value::Dropped,
        KIND_COPY_OF => Value::CopyOf {
            spc: cursor.u32("tablespace copied from")?,
            db: cursor.u32("database copied")?,
        },
        KIND_PATCHED => {
            let patches = PagePatches::decode(counted_bytes(cursor, "patches of a page")?);
            Value::Patched(patches.map_err(|_| malformed("its patches are not of a page"))?)
        }
        _ => return Err(malformed("its kind is unknown")),
    };
    Ok((version, Stored::Value(value)))
}

/// Length of an encoded record.
pub(super) fn record_len(record: &RawRecord) -> usize {
    RECORD_HEAD_LEN + record.bytes.len()
}

/// Appends a record: start LSN u64, end LSN u64, length u32, bytes.
pub(super) fn encode_record(record: &RawRecord, to: &mut Vec<u8>) {
    to.put_u64_le(record.start_lsn.get());
    to.put_u64_le(record.end_lsn.get());
    put_counted(&record.bytes, to);
}

/// Reads the record that begins here, sharing its bytes.
pub(super) fn decode_record(cursor: &mut Cursor) -> Result<RawRecord, TruncatedError> {
    Ok(RawRecord {
        start_lsn: Lsn::new(cursor.u64("record start")?),
        end_lsn: Lsn::new(cursor.u64("record end")?),
        bytes: counted_bytes(cursor, "record")?,
    })
}

fn decode_transactions(cursor: &mut Cursor, aborted: bool) -> Result<Value, TruncatedError> {
    let count = cursor.u32("number of transactions")? as usize;
    let xids = cursor.bytes(count.saturating_mul(4), "transactions")?;
    let (xids, _) = xids.as_chunks();
    Ok(Value::TransactionsEnded {
        end: match aborted {
            false => TransactionEnd::Committed,
            true => TransactionEnd::Aborted,
        },
        xids: xids.iter().copied().map(u32::from_le_bytes).collect(),
    })
}

fn put_counted(bytes: &Bytes, to: &mut Vec<u8>) {
    to.put_u32_le(bytes.len() as u32);
    to.put_slice(bytes);
}

fn counted_bytes(cursor: &mut Cursor, what: &'static str) -> Result<Bytes, TruncatedError> {
    let len = cursor.u32(what)?;
    cursor.bytes(len as usize, what)
}

fn malformed(problem: &'static str) -> DeltaLayerError {
    DeltaLayerError::Malformed {
        what: "entry",
        problem,
    }
}
