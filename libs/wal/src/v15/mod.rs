//! What is particular to PostgreSQL 15: numbers and record layouts, each with its source file.
//!
//! Nothing outside this module knows that the source is a 15. Another major version is another
//! module with the same functions.

mod cluster;
mod gist;
mod heap;
mod known;
mod slru;
mod storage;
mod xact;
mod xlog;

pub(crate) use cluster::{
    Checkpoint, LogEvent, OriginEvent, RunningTransactions, log_event, origin_event,
    running_transactions,
};
pub(crate) use heap::visibility_cleared;
pub(crate) use known::is_known;
pub(crate) use slru::{SlruAction, clog_action, commit_ts_action, multixact_action};
pub(crate) use storage::{
    DatabaseCopy, Truncation, created_fork, database_copied, database_dropped, relation_map,
    truncation,
};
pub(crate) use xact::{
    EndedTransaction, PreparedTransaction, ended_transaction, prepared_transaction,
};
pub use xlog::Parameters;

use bytes::Bytes;
use palimpsest_types::Lsn;

use crate::{
    record::{DecodedRecord, RecordHeader},
    rmgr::ResourceManager,
};

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

/// The page after the record, given the image of it in the record.
///
/// Redo takes such an image for the page, and mostly leaves it at that. But a primary that completes
/// a GiST split marks the left half only when it has the record's LSN, which is after the image was
/// taken. (Redo of two hash records also writes into a restored page, but only what it has already.)
pub(crate) fn redone_on_image(
    record: &DecodedRecord,
    block_id: u8,
    image: Bytes,
    end_lsn: Lsn,
) -> Bytes {
    if !gist::completes_split(&record.header, block_id) {
        return image;
    }
    let mut page = Vec::from(image);
    gist::clear_follow_right(&mut page, end_lsn);
    page.into()
}

/// Nothing is kept of such a record, and whoever may run SQL can make it as large as a record can
/// be (`pg_logical_emit_message`).
pub(crate) fn is_only_for_decoding(rmid: u8) -> bool {
    rmid == ResourceManager::LogicalMessage.number()
}
