//! Records about the cluster as a whole: the log's own, running transactions, replication origins
//! (`xlog_internal.h`, `pg_control.h`, `standbydefs.h`, `origin.h`).

use palimpsest_codec::{Cursor, TruncatedError};
use palimpsest_types::{Lsn, Oid};

use super::xlog::Parameters;
use crate::{
    clog::Xid,
    control::{ControlData, NextMultiXact},
    record::DecodedRecord,
};

/// What one of the log's own records says, if it says something of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogEvent {
    /// A checkpoint.
    Checkpoint(Checkpoint),
    /// So many object ids may be given out from here on without another record.
    NextOid(Oid),
    /// Settings from here on.
    Parameters(Parameters),
    /// Whether images are written from here on.
    FullPageWrites(bool),
    /// Recovery ended, and another timeline may have begun.
    EndOfRecovery { timeline: u32, previous: u32 },
}

/// A checkpoint record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Nothing else went on.
    pub(crate) is_shutdown: bool,
    pub(crate) control: ControlData,
    pub(crate) next_multi: NextMultiXact,
}

/// What a server says now and then of its transactions (`xl_running_xacts`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunningTransactions {
    pub(crate) next: Xid,
    pub(crate) oldest: Xid,
}

/// What happened to a replication origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OriginEvent {
    /// It is replayed up to there, and maybe no further.
    Set { id: u16, up_to: Lsn, force: bool },
    /// There is none of this number.
    Drop(u16),
}

const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const NEXTOID: u8 = 0x30;
const PARAMETER_CHANGE: u8 = 0x60;
const FPW_CHANGE: u8 = 0x80;
const END_OF_RECOVERY: u8 = 0x90;

const RUNNING_XACTS: u8 = 0x10;

const ORIGIN_SET: u8 = 0x00;
const ORIGIN_DROP: u8 = 0x10;

/// What one of the log's own records says.
pub(crate) fn log_event(
    record: &DecodedRecord,
    start: Lsn,
) -> Result<Option<LogEvent>, TruncatedError> {
    let mut cursor = Cursor::new(record.main_data.clone());
    let event = match record.header.rmgr_info() {
        info @ (CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE) => {
            let is_shutdown = info == CHECKPOINT_SHUTDOWN;
            LogEvent::Checkpoint(checkpoint(&mut cursor, start, is_shutdown)?)
        }
        NEXTOID => LogEvent::NextOid(cursor.u32("next object id")?),
        PARAMETER_CHANGE => LogEvent::Parameters(Parameters::decode(&record.main_data)?),
        FPW_CHANGE => LogEvent::FullPageWrites(cursor.u8("full page writes")? != 0),
        END_OF_RECOVERY => {
            cursor.skip(8, "time of the end of recovery")?;
            LogEvent::EndOfRecovery {
                timeline: cursor.u32("timeline")?,
                previous: cursor.u32("previous timeline")?,
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(event))
}

/// `CheckPoint`. Fields stand in the order of reading.
fn checkpoint(
    cursor: &mut Cursor,
    start: Lsn,
    is_shutdown: bool,
) -> Result<Checkpoint, TruncatedError> {
    let redo = Lsn::new(cursor.u64("redo position")?);
    let timeline = cursor.u32("timeline")?;
    let previous_timeline = cursor.u32("previous timeline")?;
    let full_page_writes = cursor.u8("full page writes")? != 0;
    cursor.skip(7, "padding")?;
    let next_xid = cursor.u64("next transaction")?;
    let next_oid = cursor.u32("next object id")?;
    let next_multi = NextMultiXact {
        id: cursor.u32("next multixact")?,
        offset: cursor.u32("place of its members")?,
    };
    let oldest_xid = cursor.u32("oldest transaction")?;
    let oldest_xid_db = cursor.u32("its database")?;
    let oldest_multi = cursor.u32("oldest multixact")?;
    let oldest_multi_db = cursor.u32("its database")?;
    cursor.skip(4, "padding")?;
    let time = cursor.array("checkpoint time").map(i64::from_le_bytes)?;
    let control = ControlData {
        checkpoint: start,
        redo,
        time,
        next_xid,
        timeline,
        previous_timeline,
        next_oid,
        oldest_xid,
        oldest_xid_db,
        oldest_multi,
        oldest_multi_db,
        oldest_commit_ts_xid: cursor.u32("oldest commit time")?,
        newest_commit_ts_xid: cursor.u32("newest commit time")?,
        oldest_active_xid: cursor.u32("oldest running transaction")?,
        full_page_writes,
    };
    Ok(Checkpoint {
        is_shutdown,
        control,
        next_multi,
    })
}

/// What a record of `Standby` says of running transactions.
pub(crate) fn running_transactions(
    record: &DecodedRecord,
) -> Result<Option<RunningTransactions>, TruncatedError> {
    if record.header.rmgr_info() != RUNNING_XACTS {
        return Ok(None);
    }
    let mut cursor = Cursor::new(record.main_data.clone());
    cursor.skip(12, "numbers of transactions")?;
    Ok(Some(RunningTransactions {
        next: cursor.u32("next transaction")?,
        oldest: cursor.u32("oldest running transaction")?,
    }))
}

/// What a record of `ReplicationOrigin` says.
pub(crate) fn origin_event(record: &DecodedRecord) -> Result<Option<OriginEvent>, TruncatedError> {
    let mut cursor = Cursor::new(record.main_data.clone());
    let event = match record.header.rmgr_info() {
        ORIGIN_SET => {
            let up_to = Lsn::new(cursor.u64("position at the origin")?);
            OriginEvent::Set {
                id: cursor.u16("replication origin")?,
                up_to,
                force: cursor.u8("whether it may go back")? != 0,
            }
        }
        ORIGIN_DROP => OriginEvent::Drop(cursor.u16("replication origin")?),
        _ => return Ok(None),
    };
    Ok(Some(event))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordHeader;

    fn record(info: u8, main_data: Vec<u8>) -> DecodedRecord {
        DecodedRecord {
            header: RecordHeader {
                total_len: 0,
                xid: 0,
                previous: Lsn::ZERO,
                info,
                rmid: 0,
                crc: 0,
            },
            blocks: Vec::new(),
            main_data: main_data.into(),
            origin: 0,
        }
    }

    /// Each field at the offset that a C compiler gives it, with a value that says which it is.
    fn checkpoint_bytes() -> Vec<u8> {
        let mut bytes = vec![0xEE; 88];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &0x300_0028_u64.to_le_bytes());
        put(16, &[1]);
        put(24, &(1_u64 << 32 | 740).to_le_bytes());
        put(64, &1_700_000_000_i64.to_le_bytes());
        for at in [8, 12, 32, 36, 40, 44, 48, 52, 56, 72, 76, 80] {
            put(at, &(at as u32).to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_checkpoint_is_read_where_the_c_struct_has_it() {
        let start = Lsn::new(0x300_0060);
        for (info, is_shutdown) in [(CHECKPOINT_SHUTDOWN, true), (CHECKPOINT_ONLINE, false)] {
            let found = log_event(&record(info, checkpoint_bytes()), start);
            let expected = Checkpoint {
                is_shutdown,
                control: ControlData {
                    checkpoint: start,
                    redo: Lsn::new(0x300_0028),
                    time: 1_700_000_000,
                    next_xid: 1 << 32 | 740,
                    timeline: 8,
                    previous_timeline: 12,
                    next_oid: 32,
                    oldest_xid: 44,
                    oldest_xid_db: 48,
                    oldest_multi: 52,
                    oldest_multi_db: 56,
                    oldest_commit_ts_xid: 72,
                    newest_commit_ts_xid: 76,
                    oldest_active_xid: 80,
                    full_page_writes: true,
                },
                next_multi: NextMultiXact { id: 36, offset: 40 },
            };
            assert_eq!(found, Ok(Some(LogEvent::Checkpoint(expected))));
        }
        let cut = checkpoint_bytes()[..83].to_vec();
        assert!(log_event(&record(CHECKPOINT_ONLINE, cut), start).is_err());
    }

    #[test]
    fn the_rest_is_read_where_the_c_structs_have_it() {
        let event = |info, bytes: &[u8]| log_event(&record(info, bytes.to_vec()), Lsn::ZERO);
        assert_eq!(
            event(NEXTOID, &[1, 2, 0, 0]),
            Ok(Some(LogEvent::NextOid(513)))
        );
        assert_eq!(
            event(FPW_CHANGE, &[0]),
            Ok(Some(LogEvent::FullPageWrites(false)))
        );
        let end = [0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];
        let (timeline, previous) = (4, 3);
        let ended = LogEvent::EndOfRecovery { timeline, previous };
        assert_eq!(event(END_OF_RECOVERY, &end), Ok(Some(ended)));
        assert_eq!(event(0x20, &[]), Ok(None));

        let mut running = vec![9; 12];
        running.extend([5, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0]);
        let expected = RunningTransactions { next: 5, oldest: 4 };
        let found = running_transactions(&record(RUNNING_XACTS, running));
        assert_eq!(found, Ok(Some(expected)));

        let set = vec![7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
        let (id, up_to, force) = (2, Lsn::new(7), true);
        let expected = OriginEvent::Set { id, up_to, force };
        assert_eq!(origin_event(&record(ORIGIN_SET, set)), Ok(Some(expected)));
        let dropped = origin_event(&record(ORIGIN_DROP, vec![2, 0]));
        assert_eq!(dropped, Ok(Some(OriginEvent::Drop(2))));
    }
}
