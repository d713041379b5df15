//! The log's own records (`xlog_internal.h`, `pg_control.h`).

use palimpsest_codec::{Cursor, TruncatedError};

use crate::record::DecodedRecord;

/// Settings of the source that its log depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// 0 minimal, 1 replica, 2 logical.
    pub(crate) wal_level: u32,
    pub(crate) wal_log_hints: bool,
}

const PARAMETER_CHANGE: u8 = 0x60;
/// Five settings of 4 bytes stand before `wal_level` in `xl_parameter_change`.
const WAL_LEVEL_OFFSET: usize = 20;

/// The settings from a parameter change on.
pub(crate) fn parameters_after(
    record: &DecodedRecord,
) -> Result<Option<Parameters>, TruncatedError> {
    if record.header.rmgr_info() != PARAMETER_CHANGE {
        return Ok(None);
    }
    let mut cursor = Cursor::new(record.main_data.clone());
    cursor.skip(WAL_LEVEL_OFFSET, "parameter change")?;
    Ok(Some(Parameters {
        wal_level: cursor.u32("wal_level")?,
        wal_log_hints: cursor.u8("wal_log_hints")? != 0,
    }))
}
