//! What is particular to PostgreSQL 15: numbers and record layouts, each with its source file.
//!
//! Nothing outside this module knows that the source is a 15. Another major version is another
//! module with the same functions.

mod heap;
mod storage;
mod xact;
mod xlog;

pub(crate) use heap::visibility_cleared;
pub(crate) use storage::{Truncation, created_fork, database_dropped, relation_map, truncation};
pub(crate) use xact::{ended_transaction, zeroed_clog_page};
pub(crate) use xlog::wal_level_after;

use crate::{record::RecordHeader, rmgr::ResourceManager};

/// `XLOG_PAGE_MAGIC` (`xlog_internal.h`).
pub const PAGE_MAGIC: u16 = 0xD110;

const XLOG_SWITCH: u8 = 0x40;
const XLOG_FPI_FOR_HINT: u8 = 0xA0;

/// The rest of the segment after this record is padding (`XLOG_SWITCH`).
pub(crate) fn is_switch(header: &RecordHeader) -> bool {
    header.rmid == ResourceManager::Xlog.number() && header.rmgr_info() == XLOG_SWITCH
}

/// The record only saves pages whose hint bits changed (`XLOG_FPI_FOR_HINT`). With
/// `full_page_writes` off it still names the page, but has no image of it.
pub(crate) fn is_for_hint(header: &RecordHeader) -> bool {
    header.rmid == ResourceManager::Xlog.number() && header.rmgr_info() == XLOG_FPI_FOR_HINT
}
