//! The log's own records (`xlog_internal.h`, `pg_control.h`).

use palimpsest_codec::{Cursor, TruncatedError};

use crate::record::DecodedRecord;

const PARAMETER_CHANGE: u8 = 0x60;
/// Six settings of 4 bytes stand before it in `xl_parameter_change`.
const WAL_LEVEL_OFFSET: usize = 20;

/// The `wal_level` that a parameter change sets (0 minimal, 1 replica, 2 logical).
pub(crate) fn wal_level_after(record: &DecodedRecord) -> Result<Option<u32>, TruncatedError> {
    if record.header.rmgr_info() != PARAMETER_CHANGE {
        return Ok(None);
    }
    let mut cursor = Cursor::new(record.main_data.clone());
    cursor.skip(WAL_LEVEL_OFFSET, "parameter change")?;
    cursor.u32("wal_level").map(Some)
}
