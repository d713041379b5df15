//! Heap records that also change the visibility map (`heapam_xlog.h`).

use bytes::Bytes;
use palimpsest_codec::{Cursor, TruncatedError};

use crate::{
    record::{BlockRef, DecodedRecord},
    rmgr::ResourceManager,
};

const OP_MASK: u8 = 0x70;

const HEAP_INSERT: u8 = 0x00;
const HEAP_DELETE: u8 = 0x10;
const HEAP_UPDATE: u8 = 0x20;
const HEAP_HOT_UPDATE: u8 = 0x40;
const HEAP_LOCK: u8 = 0x60;
const HEAP2_MULTI_INSERT: u8 = 0x50;
const HEAP2_LOCK_UPDATED: u8 = 0x60;

/// `XLH_INSERT_ALL_VISIBLE_CLEARED`, the same bit in delete, lock and the old page of an update.
const FIRST_CLEARED: u8 = 0x01;
/// `XLH_UPDATE_NEW_ALL_VISIBLE_CLEARED`.
const NEW_CLEARED: u8 = 0x02;

/// Where the flags byte stands: after the offset number in `xl_heap_insert`.
const INSERT_FLAGS: usize = 2;
/// After xmax, offset number and infobits in `xl_heap_delete`, `xl_heap_update`, `xl_heap_lock`
/// and `xl_heap_lock_updated`.
const DELETE_FLAGS: usize = 7;
/// `xl_heap_multi_insert` begins with it.
const MULTI_INSERT_FLAGS: usize = 0;

/// The heap pages whose visibility map bits a record clears.
///
/// The map's pages are not among the record's block references: redo finds them by itself.
pub(crate) fn visibility_cleared(
    record: &DecodedRecord,
    rmgr: ResourceManager,
) -> Result<Vec<&BlockRef>, TruncatedError> {
    let op = record.header.info & OP_MASK;
    let flags = |offset| flags_at(&record.main_data, offset);
    let new_page = record.block(0);
    let old_page = record.block(1).or(new_page);
    let (flags, first) = match (rmgr, op) {
        (ResourceManager::Heap, HEAP_INSERT) => (flags(INSERT_FLAGS)?, new_page),
        (ResourceManager::Heap, HEAP_DELETE | HEAP_LOCK) => (flags(DELETE_FLAGS)?, new_page),
        (ResourceManager::Heap, HEAP_UPDATE | HEAP_HOT_UPDATE) => {
            let flags = flags(DELETE_FLAGS)?;
            let old = old_page.filter(|_| flags & FIRST_CLEARED != 0);
            let new = new_page.filter(|_| flags & NEW_CLEARED != 0);
            return Ok(old.into_iter().chain(new).collect());
        }
        (ResourceManager::Heap2, HEAP2_MULTI_INSERT) => (flags(MULTI_INSERT_FLAGS)?, new_page),
        (ResourceManager::Heap2, HEAP2_LOCK_UPDATED) => (flags(DELETE_FLAGS)?, new_page),
        _ => return Ok(Vec::new()),
    };
    Ok(first
        .filter(|_| flags & FIRST_CLEARED != 0)
        .into_iter()
        .collect())
}

fn flags_at(main_data: &Bytes, offset: usize) -> Result<u8, TruncatedError> {
    let mut cursor = Cursor::new(main_data.clone());
    cursor.skip(offset, "heap record")?;
    cursor.u8("heap record flags")
}
