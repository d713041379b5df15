//! Records about pages outside relations: `pg_xact`, `pg_multixact`, `pg_commit_ts`
//! (`clog.h`, `multixact.h`, `commit_ts.h`).

use std::ops::Range;

use bytes::Bytes;
use palimpsest_codec::{Cursor, TruncatedError};
use palimpsest_types::{Oid, SlruKind};

use crate::{
    clog::Xid,
    interpret::Reason,
    multixact::{MultiXactId, MultiXactMember, NewMultiXact},
    record::DecodedRecord,
};

/// What a record does to an area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SlruAction {
    /// A page begins, all zeros.
    ZeroPage(SlruKind, u32),
    /// Segments of `pg_xact` wholly before this page are not needed any more.
    TruncateClog {
        cutoff: u32,
        /// Older transactions are frozen everywhere.
        oldest: Xid,
        /// The database that holds it.
        db: Oid,
    },
    /// Segments of `pg_commit_ts` wholly before this page are not needed any more.
    TruncateCommitTs {
        cutoff: u32,
        /// Times of older transactions are not to be asked for.
        oldest: Xid,
    },
    /// A multixact comes into being.
    CreateMultiXact(NewMultiXact),
    /// Old multixacts and their members are not needed any more.
    TruncateMultiXacts {
        /// The oldest multixact that stays.
        oldest: MultiXactId,
        /// The database that holds it.
        db: Oid,
        /// Offsets of the members that go; the range may wrap around.
        members: Range<u32>,
    },
}

const ZEROPAGE: u8 = 0x00;
const TRUNCATE: u8 = 0x10;

const MULTIXACT_ZERO_OFF_PAGE: u8 = 0x00;
const MULTIXACT_ZERO_MEM_PAGE: u8 = 0x10;
const MULTIXACT_CREATE_ID: u8 = 0x20;
const MULTIXACT_TRUNCATE_ID: u8 = 0x30;

/// What a record of `pg_xact` does.
pub(crate) fn clog_action(record: &DecodedRecord) -> Result<SlruAction, Reason> {
    let mut cursor = Cursor::new(record.main_data.clone());
    let page = cursor.u32("page number")?;
    match record.header.rmgr_info() {
        ZEROPAGE => Ok(SlruAction::ZeroPage(SlruKind::Clog, page)),
        TRUNCATE => Ok(SlruAction::TruncateClog {
            cutoff: page,
            oldest: cursor.u32("oldest transaction")?,
            db: cursor.u32("its database")?,
        }),
        unknown => Err(Reason::UnknownRecord(unknown)),
    }
}

/// What a record of `pg_commit_ts` does.
pub(crate) fn commit_ts_action(record: &DecodedRecord) -> Result<SlruAction, Reason> {
    let mut cursor = Cursor::new(record.main_data.clone());
    let page = cursor.u32("page number")?;
    match record.header.rmgr_info() {
        ZEROPAGE => Ok(SlruAction::ZeroPage(SlruKind::CommitTs, page)),
        TRUNCATE => Ok(SlruAction::TruncateCommitTs {
            cutoff: page,
            oldest: cursor.u32("oldest transaction")?,
        }),
        unknown => Err(Reason::UnknownRecord(unknown)),
    }
}

/// What a record of `pg_multixact` does.
pub(crate) fn multixact_action(record: &DecodedRecord) -> Result<SlruAction, Reason> {
    let page = || Cursor::new(record.main_data.clone()).u32("page number");
    match record.header.rmgr_info() {
        MULTIXACT_ZERO_OFF_PAGE => Ok(SlruAction::ZeroPage(SlruKind::MultiXactOffsets, page()?)),
        MULTIXACT_ZERO_MEM_PAGE => Ok(SlruAction::ZeroPage(SlruKind::MultiXactMembers, page()?)),
        MULTIXACT_CREATE_ID => Ok(SlruAction::CreateMultiXact(new_multixact(
            &record.main_data,
        )?)),
        MULTIXACT_TRUNCATE_ID => Ok(multixact_truncation(&record.main_data)?),
        unknown => Err(Reason::UnknownRecord(unknown)),
    }
}

/// `xl_multixact_create`. A status is an `enum` of C, four bytes; a byte of it is stored.
fn new_multixact(main_data: &Bytes) -> Result<NewMultiXact, TruncatedError> {
    let mut cursor = Cursor::new(main_data.clone());
    let id = cursor.u32("multixact")?;
    let offset = cursor.u32("offset of its members")?;
    let count = cursor.u32("number of members")?;
    let members = (0..count).map(|_| {
        let xid = cursor.u32("member")?;
        let [status, ..] = cursor.array::<4>("status of a member")?;
        Ok(MultiXactMember { xid, status })
    });
    let members = members.collect::<Result<_, _>>()?;
    Ok(NewMultiXact {
        id,
        offset,
        members,
    })
}

/// `xl_multixact_truncate`.
fn multixact_truncation(main_data: &Bytes) -> Result<SlruAction, TruncatedError> {
    let mut cursor = Cursor::new(main_data.clone());
    let db = cursor.u32("database of the oldest multixact")?;
    cursor.skip(4, "oldest multixact before")?;
    let oldest = cursor.u32("oldest multixact")?;
    let start = cursor.u32("first member to go")?;
    let end = cursor.u32("first member to stay")?;
    Ok(SlruAction::TruncateMultiXacts {
        oldest,
        db,
        members: start..end,
    })
}
