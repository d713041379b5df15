//! What the log says of a cluster as a whole: what `pg_control` keeps, the next multixact, when
//! transactions ended, how far replication origins have come.
//!
//! Each has a key, whose versions are files of a few little-endian numbers (`docs/formats/key.md`).
//! The rules here are those of redo (`xlog_redo` and what it calls), except that two numbers are
//! rounded up, because they rise with every transaction and not every transaction is to be a version.

use bytes::{BufMut as _, Bytes, BytesMut};
use palimpsest_codec::{Cursor, TruncatedError};
use palimpsest_types::{Lsn, Oid};

use crate::{
    clog::{FIRST_NORMAL_XID, Xid, precedes},
    commit_ts::XIDS_PER_COMMIT_TS_PAGE,
    multixact::MultiXactId,
};

/// What a control file must say at an LSN, as far as the log changes it and it is no setting
/// ([`Parameters`](crate::v15::Parameters)) and not [`NextMultiXact`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlData {
    /// Start of the newest checkpoint record.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint begins.
    pub redo: Lsn,
    /// When that checkpoint was made, in seconds of Unix time.
    pub time: i64,
    /// At least the next transaction id, its epoch in the upper half; at most
    /// [`ControlData::XID_PRECISION`] more, and exact after the checkpoint of a shutdown.
    ///
    /// It is safe to go on from it: the page of `pg_xact` that has the id before exists, and so
    /// does its own, unless it is the first there.
    pub next_xid: u64,
    /// The PostgreSQL timeline.
    pub timeline: u32,
    /// The one before it; the same unless the newest checkpoint began a new one.
    pub previous_timeline: u32,
    /// The next object id. The server that wrote the log may have given out fewer.
    pub next_oid: Oid,
    /// Oldest transaction id that is not frozen everywhere, at least.
    pub oldest_xid: Xid,
    /// The database that holds it.
    pub oldest_xid_db: Oid,
    /// Oldest multixact that may be in use.
    pub oldest_multi: MultiXactId,
    /// The database that holds it.
    pub oldest_multi_db: Oid,
    /// Oldest transaction whose commit time is kept; 0 if none are.
    pub oldest_commit_ts_xid: Xid,
    /// Newest such transaction, or a later one whose time would stand on the same page; 0 if no
    /// commit times are kept.
    pub newest_commit_ts_xid: Xid,
    /// Oldest transaction that ran when last that was logged; 0 if none could.
    pub oldest_active_xid: Xid,
    /// Whether the source wrote full-page images when last that was logged.
    pub full_page_writes: bool,
}

/// The multixact that comes next, and where its members will begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextMultiXact {
    /// Its number.
    pub id: MultiXactId,
    /// The place of its first member among all members.
    pub offset: u32,
}

/// The end of a transaction that came later, by the source's clock, than all before it in the log.
///
/// Clocks go backwards, so the log is not in the order of time; "until a time" means "before the
/// first end of a transaction that has a later one", as in `recovery_target_time`. Those records have
/// this kind of version, but at most one for each [`CommitTime::PRECISION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitTime {
    /// Microseconds since the beginning of the year 2000.
    pub time: i64,
    /// Start of the record: at this LSN all before it is visible, and it is not.
    pub record: Lsn,
}

/// How far a replication origin is replayed: the end, at the origin, of what came last from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginProgress(pub Lsn);

impl ControlData {
    /// Bytes of the encoded form.
    pub const LEN: usize = 76;

    /// The next transaction id is rounded up to a multiple of this.
    ///
    /// A page of `pg_xact` has a multiple of it, so that rounding never leads to a page that does
    /// not exist.
    pub const XID_PRECISION: u64 = 1024;

    /// The encoded form: numbers in the order of their size, then the flag and padding.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::LEN);
        bytes.put_u64_le(self.checkpoint.get());
        bytes.put_u64_le(self.redo.get());
        bytes.put_i64_le(self.time);
        bytes.put_u64_le(self.next_xid);
        for number in [
            self.timeline,
            self.previous_timeline,
            self.next_oid,
            self.oldest_xid,
            self.oldest_xid_db,
            self.oldest_multi,
            self.oldest_multi_db,
            self.oldest_commit_ts_xid,
            self.newest_commit_ts_xid,
            self.oldest_active_xid,
        ] {
            bytes.put_u32_le(number);
        }
        bytes.put_u8(self.full_page_writes.into());
        bytes.put_bytes(0, 3);
        bytes.freeze()
    }

    /// What [`ControlData::to_bytes`] wrote.
    ///
    /// # Errors
    /// If it is cut short.
    pub fn decode(bytes: &Bytes) -> Result<Self, TruncatedError> {
        let mut cursor = Cursor::new(bytes.clone());
        let data = Self {
            checkpoint: Lsn::new(cursor.u64("checkpoint position")?),
            redo: Lsn::new(cursor.u64("redo position")?),
            time: cursor.array("checkpoint time").map(i64::from_le_bytes)?,
            next_xid: cursor.u64("next transaction")?,
            timeline: cursor.u32("timeline")?,
            previous_timeline: cursor.u32("previous timeline")?,
            next_oid: cursor.u32("next object id")?,
            oldest_xid: cursor.u32("oldest transaction")?,
            oldest_xid_db: cursor.u32("its database")?,
            oldest_multi: cursor.u32("oldest multixact")?,
            oldest_multi_db: cursor.u32("its database")?,
            oldest_commit_ts_xid: cursor.u32("oldest commit time")?,
            newest_commit_ts_xid: cursor.u32("newest commit time")?,
            oldest_active_xid: cursor.u32("oldest running transaction")?,
            full_page_writes: cursor.u8("full page writes")? != 0,
        };
        cursor.skip(3, "padding")?;
        Ok(data)
    }

    /// A record is of this transaction, or names it (`AdvanceNextFullTransactionIdPastXid`).
    pub(crate) fn note_xid(&mut self, xid: Xid) {
        let (epoch, next) = split(self.next_xid);
        if xid < FIRST_NORMAL_XID || precedes(xid, next) {
            return;
        }
        let epoch = epoch.wrapping_add(u32::from(xid < next));
        self.next_xid = rounded_up(after(epoch, xid));
    }

    /// The next transaction is at least this one, its epoch in the upper half.
    pub(crate) fn note_next_xid(&mut self, next: u64) {
        if self.next_xid < next {
            self.next_xid = rounded_up(next);
        }
    }

    /// Older transactions are frozen everywhere.
    pub(crate) fn note_oldest_xid(&mut self, xid: Xid, db: Oid) {
        if precedes(self.oldest_xid, xid) {
            (self.oldest_xid, self.oldest_xid_db) = (xid, db);
        }
    }

    /// Older multixacts are in use nowhere.
    pub(crate) fn note_oldest_multi(&mut self, multi: MultiXactId, db: Oid) {
        if multixact_precedes(self.oldest_multi, multi) {
            (self.oldest_multi, self.oldest_multi_db) = (multi, db);
        }
    }

    /// Commit times of older transactions are gone (`AdvanceOldestCommitTsXid`).
    pub(crate) fn note_oldest_commit_ts(&mut self, xid: Xid) {
        if self.oldest_commit_ts_xid != 0 && precedes(self.oldest_commit_ts_xid, xid) {
            self.oldest_commit_ts_xid = xid;
        }
    }

    /// The commit time of this transaction is kept. All others of its page could be read now, too.
    pub(crate) fn note_commit_ts(&mut self, xid: Xid) {
        if precedes(self.newest_commit_ts_xid, xid) {
            let first = xid - xid % XIDS_PER_COMMIT_TS_PAGE;
            self.newest_commit_ts_xid = first.saturating_add(XIDS_PER_COMMIT_TS_PAGE - 1);
        }
    }

    /// Commit times are kept from here on, or not any more (`CommitTsParameterChange`). The record
    /// that says so is one of a start, which comes after a checkpoint with the exact next id.
    pub(crate) fn keep_commit_ts(&mut self, keep: bool) {
        let (_, next) = split(self.next_xid);
        match (keep, self.oldest_commit_ts_xid) {
            (false, _) => (self.oldest_commit_ts_xid, self.newest_commit_ts_xid) = (0, 0),
            (true, 0) => (self.oldest_commit_ts_xid, self.newest_commit_ts_xid) = (next, next),
            (true, _) => {}
        }
    }

    /// A checkpoint during which the server went on. Of what it says, some was so when it began and
    /// has moved on since; object ids are all in records of their own.
    pub(crate) fn note_checkpoint(&mut self, said: &Self) {
        self.note_next_xid(said.next_xid);
        self.note_oldest_xid(said.oldest_xid, said.oldest_xid_db);
        self.note_oldest_multi(said.oldest_multi, said.oldest_multi_db);
        self.note_oldest_commit_ts(said.oldest_commit_ts_xid);
        *self = Self {
            checkpoint: said.checkpoint,
            redo: said.redo,
            time: said.time,
            timeline: said.timeline,
            previous_timeline: said.previous_timeline,
            oldest_active_xid: said.oldest_active_xid,
            full_page_writes: said.full_page_writes,
            ..*self
        };
    }
}

impl NextMultiXact {
    /// Bytes of the encoded form.
    pub const LEN: usize = 8;

    /// The encoded form: both numbers.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::LEN);
        bytes.put_u32_le(self.id);
        bytes.put_u32_le(self.offset);
        bytes.freeze()
    }

    /// What [`NextMultiXact::to_bytes`] wrote.
    ///
    /// # Errors
    /// If it is cut short.
    pub fn decode(bytes: &Bytes) -> Result<Self, TruncatedError> {
        let mut cursor = Cursor::new(bytes.clone());
        Ok(Self {
            id: cursor.u32("next multixact")?,
            offset: cursor.u32("place of its members")?,
        })
    }

    /// It is at least this one (`MultiXactAdvanceNextMXact`).
    pub(crate) fn advance(&mut self, to: Self) {
        if multixact_precedes(self.id, to.id) {
            self.id = to.id;
        }
        if multixact_precedes(self.offset, to.offset) {
            self.offset = to.offset;
        }
    }
}

impl CommitTime {
    /// Bytes of the encoded form.
    pub const LEN: usize = 16;

    /// Times in the same so many microseconds count as one.
    pub const PRECISION: i64 = 1000;

    /// The encoded form: the time, then the record's start.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::LEN);
        bytes.put_i64_le(self.time);
        bytes.put_u64_le(self.record.get());
        bytes.freeze()
    }

    /// What [`CommitTime::to_bytes`] wrote.
    ///
    /// # Errors
    /// If it is cut short.
    pub fn decode(bytes: &Bytes) -> Result<Self, TruncatedError> {
        let mut cursor = Cursor::new(bytes.clone());
        Ok(Self {
            time: cursor.array("commit time").map(i64::from_le_bytes)?,
            record: Lsn::new(cursor.u64("start of its record")?),
        })
    }

    /// Whether it is later than a time, by more than what counts as one.
    pub const fn is_after(&self, time: i64) -> bool {
        self.time.div_euclid(Self::PRECISION) > time.div_euclid(Self::PRECISION)
    }
}

impl OriginProgress {
    /// The encoded form: the position.
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0.get().to_le_bytes())
    }

    /// What [`OriginProgress::to_bytes`] wrote.
    ///
    /// # Errors
    /// If it is cut short.
    pub fn decode(bytes: &Bytes) -> Result<Self, TruncatedError> {
        let position = Cursor::new(bytes.clone()).u64("position at the origin")?;
        Ok(Self(Lsn::new(position)))
    }
}

/// Epoch and id.
const fn split(xid: u64) -> (u32, Xid) {
    ((xid >> u32::BITS) as u32, xid as u32)
}

/// The id after one: the first ids of an epoch are never given out.
fn after(epoch: u32, xid: Xid) -> u64 {
    let next = (u64::from(epoch) << u32::BITS | u64::from(xid)).wrapping_add(1);
    next + u64::from(FIRST_NORMAL_XID.saturating_sub(next as u32))
}

/// To a multiple of [`ControlData::XID_PRECISION`] in the same epoch, or its last id. The first id of
/// an epoch stays: nothing says that the page it is on exists.
fn rounded_up(next: u64) -> u64 {
    let (epoch, xid) = split(next);
    if xid == FIRST_NORMAL_XID {
        return next;
    }
    let rounded = u64::from(xid).next_multiple_of(ControlData::XID_PRECISION);
    u64::from(epoch) << u32::BITS | rounded.min(u64::from(u32::MAX))
}

/// `MultiXactIdPrecedes`, which is also how places of members are compared.
const fn multixact_precedes(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
pub(crate) mod tests;
