//! Heap records made by hand, as `heap_insert` writes them.

use bytes::{BufMut, Bytes, BytesMut};
use palimpsest_redo::ApplyRequest;
use palimpsest_types::{BlockNumber, Fork, Lsn, RelTag};
use palimpsest_wal::RawRecord;

const REL: RelTag = RelTag {
    spc: 1663,
    db: 5,
    rel: 16384,
    fork: Fork::Main,
};

const RM_HEAP: u8 = 10;
const INIT_PAGE: u8 = 0x80;
const BLOCK_HAS_DATA: u8 = 0x20;
const BLOCK_WILL_INIT: u8 = 0x40;
const MAIN_DATA_SHORT: u8 = 255;
/// Without null bitmap, 23 bytes of header are padded to 24.
const TUPLE_HEADER: u8 = 24;

/// A row with one `integer`, as the first of a new page.
pub(crate) fn insert_on_new_page(value: u32) -> ApplyRequest {
    insertion(None, 1, value)
}

/// A row with one `integer` at a place of a page that exists, or of a new one.
pub(crate) fn insertion(base: Option<Bytes>, offset: u16, value: u32) -> ApplyRequest {
    let end = if base.is_some() { 0x2000 } else { 0x1000 };
    let record = RawRecord {
        start_lsn: Lsn::new(end - 0x100),
        end_lsn: Lsn::new(end),
        bytes: heap_insert(base.is_none(), offset, value),
    };
    ApplyRequest {
        rel: REL,
        block: BlockNumber::ZERO,
        base,
        records: vec![record],
    }
}

fn heap_insert(init: bool, offset: u16, value: u32) -> Bytes {
    let mut tuple = BytesMut::new();
    // xl_heap_header: infomask2 (one attribute), infomask (no xmax), hoff.
    tuple.put_u16_le(1);
    tuple.put_u16_le(0x0800);
    tuple.put_u8(TUPLE_HEADER);
    tuple.put_u8(0);
    tuple.put_u32_le(value);

    let mut body = BytesMut::new();
    let flags = if init { BLOCK_WILL_INIT } else { 0 };
    body.put_slice(&[0, flags | BLOCK_HAS_DATA]);
    body.put_u16_le(u16::try_from(tuple.len()).unwrap());
    for number in [REL.spc, REL.db, REL.rel, 0] {
        body.put_u32_le(number);
    }
    body.put_slice(&[MAIN_DATA_SHORT, 3]);
    body.put_slice(&tuple);
    // xl_heap_insert: offset, flags.
    body.put_u16_le(offset);
    body.put_u8(0);

    let mut record = BytesMut::new();
    record.put_u32_le(u32::try_from(24 + body.len()).unwrap());
    record.put_u32_le(700);
    record.put_u64_le(0x800);
    record.put_slice(&[if init { INIT_PAGE } else { 0 }, RM_HEAP, 0, 0]);
    // Redo does not look at the CRC: it was checked where the record was read.
    record.put_u32_le(0);
    record.put_slice(&body);
    record.freeze()
}

/// The `integer` of the row at a place, from 1.
pub(crate) fn stored_value(page: &[u8], offset: usize) -> u32 {
    let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
    let line_pointer = word(24 + (offset - 1) * 4);
    let tuple = (line_pointer & 0x7FFF) as usize;
    word(tuple + usize::from(TUPLE_HEADER))
}
