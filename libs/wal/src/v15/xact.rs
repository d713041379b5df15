//! Ends of transactions (`xact.h`, `ParseCommitRecord` and `ParseAbortRecord` in `xactdesc.c`).

use bytes::Bytes;
use palimpsest_codec::{Cursor, TruncatedError};
use palimpsest_types::RelTag;

use super::storage::rel_file_node;
use crate::record::DecodedRecord;

const OP_MASK: u8 = 0x70;
const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;

const HAS_INFO: u8 = 0x80;
const HAS_DBINFO: u32 = 1 << 0;
const HAS_SUBXACTS: u32 = 1 << 1;
const HAS_RELFILENODES: u32 = 1 << 2;

/// Relations whose files go away when the transaction ends: dropped ones at commit, created ones
/// at abort.
pub(crate) fn dropped_relations(record: &DecodedRecord) -> Result<Vec<RelTag>, TruncatedError> {
    match record.header.info & OP_MASK {
        COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED => {}
        _ => return Ok(Vec::new()),
    }
    if record.header.info & HAS_INFO == 0 {
        return Ok(Vec::new());
    }
    parse(&record.main_data)
}

/// The parts stand in the order of their flags; those after the relations don't matter here.
fn parse(main_data: &Bytes) -> Result<Vec<RelTag>, TruncatedError> {
    let mut cursor = Cursor::new(main_data.clone());
    cursor.skip(8, "transaction end time")?;
    let info = cursor.u32("transaction end flags")?;
    if info & HAS_DBINFO != 0 {
        cursor.skip(8, "database and tablespace")?;
    }
    if info & HAS_SUBXACTS != 0 {
        let count = cursor.u32("subtransaction count")? as usize;
        cursor.skip(count.saturating_mul(4), "subtransactions")?;
    }
    if info & HAS_RELFILENODES == 0 {
        return Ok(Vec::new());
    }
    let count = cursor.u32("relation count")?;
    (0..count).map(|_| rel_file_node(&mut cursor)).collect()
}
