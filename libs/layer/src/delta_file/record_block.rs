//! Record blocks: records that several entries refer to.

use bytes::Bytes;
use palimpsest_codec::Cursor;
use palimpsest_types::ByteCount;
use palimpsest_wal::RawRecord;

use super::{
    entry::{RECORD_HEAD_LEN, RecordPlace, decode_record},
    error::{DeltaLayerError, ensure},
    index::{BlockNo, DeltaLayerIndex},
};

/// A record block, unpacked and checked: records one after the other, in LSN order, each whole:
///
/// ```text
/// 0   start LSN    u64
/// 8   end LSN      u64
/// 16  length       u32
/// 20  header and body as PostgreSQL wrote them
/// ```
#[derive(Debug)]
pub struct RecordBlock {
    no: BlockNo,
    records: Vec<Entry>,
    size: ByteCount,
}

#[derive(Debug)]
struct Entry {
    offset: u32,
    record: RawRecord,
}

const WHAT: &str = "record block";

impl RecordBlock {
    /// Reads the block that `index` says is number `no`; `stored` are its bytes in the file.
    ///
    /// # Errors
    /// If it is damaged, or is not the block that the index tells of.
    pub fn decode(
        index: &DeltaLayerIndex,
        no: BlockNo,
        stored: Bytes,
    ) -> Result<Self, DeltaLayerError> {
        let frame = index.record_block(no)?;
        let raw = frame.open(WHAT, stored)?;
        let raw_len = raw.len();
        let records = decode_records(raw, frame.capacity(RECORD_HEAD_LEN))?;
        let counted = records.len() == frame.items as usize;
        ensure(
            counted,
            WHAT,
            "it has another number of records than the index says",
        )?;
        let size = raw_len + records.capacity() * size_of::<Entry>();
        Ok(Self {
            no,
            records,
            size: ByteCount::new(size as u64),
        })
    }

    /// The record that stands at a place of this block. It shares the bytes of the block.
    ///
    /// # Errors
    /// If the place is in another block, or no record begins there.
    pub fn record(&self, place: RecordPlace) -> Result<RawRecord, DeltaLayerError> {
        if place.block != self.no {
            return Err(DeltaLayerError::NoBlock(place.block));
        }
        let found = self
            .records
            .binary_search_by_key(&place.offset, |entry| entry.offset)
            .ok()
            .and_then(|at| self.records.get(at));
        let entry = found.ok_or(DeltaLayerError::Malformed {
            what: WHAT,
            problem: "no record begins where an entry says that its record does",
        })?;
        Ok(entry.record.clone())
    }

    /// Memory it takes, about.
    pub fn size(&self) -> ByteCount {
        self.size
    }
}

fn decode_records(raw: Bytes, capacity: usize) -> Result<Vec<Entry>, DeltaLayerError> {
    let mut records: Vec<Entry> = Vec::with_capacity(capacity);
    let mut cursor = Cursor::new(raw);
    while cursor.remaining() > 0 {
        // Fits: no block is as long as 4 GiB.
        let offset = cursor.position() as u32;
        let record = decode_record(&mut cursor)?;
        let rises = records
            .last()
            .is_none_or(|last| last.record.start_lsn < record.start_lsn);
        ensure(rises, WHAT, "its records are not in the order of LSNs")?;
        records.push(Entry { offset, record });
    }
    Ok(records)
}
