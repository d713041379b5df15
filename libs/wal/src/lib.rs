//! PostgreSQL write-ahead log, from bytes to changes.
//!
//! The way through this crate is the way of a WAL byte: [`RecordReader`] takes the stream apart
//! into records ([`RawRecord`]), [`DecodedRecord`] into block references and main data, and
//! [`Interpreter`] says what each record changes ([`Change`]). All of it is pure: no I/O, no async.
//!
//! Input is untrusted. Any bytes give records or an error that says what is wrong and where;
//! nothing here panics on them or allocates more than has arrived.
//!
//! What differs between PostgreSQL major versions is in one module per version ([`v15`]).

mod change;
mod clog;
mod commit_ts;
mod control;
mod image;
mod interpret;
mod log_head;
mod multixact;
mod page;
mod patches;
mod pglz;
mod reader;
mod record;
mod relation_sizes;
mod rmgr;
mod segment;
mod slru;
pub mod v15;

pub use change::{Change, Value};
pub use clog::{
    TransactionEnd, XIDS_PER_CLOG_PAGE, Xid, clog_page_of, set_transaction_end, transaction_end,
};
pub use commit_ts::{CommitTimestamp, XIDS_PER_COMMIT_TS_PAGE};
pub use control::{CommitTime, ControlData, NextMultiXact, OriginProgress};
pub use image::{BlockImage, ImageError, restore_image};
pub use interpret::{BaseFacts, InterpretError, Interpreter, Reason, truncate_visibility_map_page};
pub use log_head::{LogHead, record_end, record_of, record_place};
pub use multixact::{
    MEMBERS_PER_PAGE, MemberPlace, MultiXactId, MultiXactMember, OFFSETS_PER_PAGE, member_place,
    next_multixact, offset_place,
};
pub use page::{LogIdentity, PageHeader, PageHeaderError};
pub use patches::{InvalidPatchesError, PagePatches};
pub use reader::{RecordReader, WalError};
pub use record::{BlockRef, DecodeError, DecodedRecord, RawRecord, RecordHeader};
pub use relation_sizes::RelationSizes;
pub use rmgr::ResourceManager;
pub use segment::{InvalidSegmentSizeError, SegmentNumber, SegmentSize, WAL_PAGE_SIZE};
pub use slru::{NotAnSlruChangeError, SlruSegments, change_slru_page, segment_of};
