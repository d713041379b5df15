//! Ends of transactions (`xact.h`, `ParseCommitRecord` and `ParseAbortRecord` in `xactdesc.c`), and
//! what is kept of prepared ones (`twophase.c`).

use bytes::{BufMut, Bytes, BytesMut};
use palimpsest_codec::{Cursor, TruncatedError, crc32c};
use palimpsest_types::{Lsn, RelTag};

use super::storage::rel_file_node;
use crate::{
    clog::{TransactionEnd, Xid},
    commit_ts::CommitTimestamp,
    record::DecodedRecord,
};

/// A transaction ended, and its subtransactions with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedTransaction {
    /// How.
    pub(crate) end: TransactionEnd,
    /// The transaction and its subtransactions.
    pub(crate) xids: Vec<Xid>,
    /// When it did, by the clock of this cluster.
    pub(crate) time: i64,
    /// When it did, as `pg_commit_ts` would keep it.
    pub(crate) at: CommitTimestamp,
    /// What it came from ended there at its origin.
    pub(crate) origin_lsn: Option<Lsn>,
    /// It was prepared before, under this id; what was kept of it is not needed any more.
    pub(crate) prepared: Option<Xid>,
    /// Relations whose files go away with it: dropped ones at commit, created ones at abort.
    pub(crate) dropped: Vec<RelTag>,
}

/// A transaction is prepared, to be ended by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PreparedTransaction {
    /// Which, and the number of its file.
    pub(crate) xid: Xid,
    pub(crate) subxids: Vec<Xid>,
    /// What it came from; 0 is this cluster itself.
    pub(crate) origin: u16,
    /// Where it stands at its origin.
    pub(crate) origin_lsn: Lsn,
    /// What a checkpoint writes to `pg_twophase` for it (`RecreateTwoPhaseFile`): the record has it
    /// but for the checksum at its end.
    pub(crate) file: Bytes,
}

const OP_MASK: u8 = 0x70;
const COMMIT: u8 = 0x00;
const PREPARE: u8 = 0x10;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;

const HAS_INFO: u8 = 0x80;
const HAS_DBINFO: u32 = 1 << 0;
const HAS_SUBXACTS: u32 = 1 << 1;
const HAS_RELFILENODES: u32 = 1 << 2;
const HAS_INVALS: u32 = 1 << 3;
const HAS_TWOPHASE: u32 = 1 << 4;
const HAS_ORIGIN: u32 = 1 << 5;
const HAS_GID: u32 = 1 << 7;
const HAS_DROPPED_STATS: u32 = 1 << 8;

/// `xl_xact_stats_item`.
const STATS_ITEM_LEN: usize = 12;
/// `SharedInvalidationMessage`.
const INVALIDATION_LEN: usize = 16;

/// In `TwoPhaseFileHeader`, after magic and length.
const PREPARED_XID_OFFSET: usize = 8;
/// Between the transaction's id and the number of its subtransactions.
const BEFORE_SUBXACTS: usize = 28 - 12;
/// Between that and the length of the global name.
const BEFORE_GID_LEN: usize = 54 - 32;
/// The time at the origin, after the position there, ends the header.
const ORIGIN_TIME_LEN: usize = 8;
/// The parts of the file begin at multiples of it (`MAXALIGN`).
const ALIGNMENT: usize = 8;

/// The transaction that a record ends, if it is of a kind that ends one.
pub(crate) fn ended_transaction(
    record: &DecodedRecord,
) -> Result<Option<EndedTransaction>, TruncatedError> {
    let end = match record.header.info & OP_MASK {
        COMMIT | COMMIT_PREPARED => TransactionEnd::Committed,
        ABORT | ABORT_PREPARED => TransactionEnd::Aborted,
        _ => return Ok(None),
    };
    let mut ended = EndedTransaction {
        end,
        xids: Vec::new(),
        time: 0,
        at: CommitTimestamp {
            time: 0,
            origin: record.origin,
        },
        origin_lsn: None,
        prepared: None,
        dropped: Vec::new(),
    };
    let has_info = record.header.info & HAS_INFO != 0;
    parse(&record.main_data, has_info, &mut ended)?;
    // A prepared transaction is ended by another, which the header names.
    let top = ended.prepared.unwrap_or(record.header.xid);
    ended.xids.extend((top != 0).then_some(top));
    Ok(Some(ended))
}

/// Reads the parts, which stand in this order whatever their flags are; those after the last don't
/// matter here.
fn parse(
    main_data: &Bytes,
    has_info: bool,
    ended: &mut EndedTransaction,
) -> Result<(), TruncatedError> {
    let mut cursor = Cursor::new(main_data.clone());
    ended.time = time(&mut cursor)?;
    ended.at.time = ended.time;
    if !has_info {
        return Ok(());
    }
    let info = cursor.u32("transaction end flags")?;
    if info & HAS_DBINFO != 0 {
        cursor.skip(8, "database and tablespace")?;
    }
    if info & HAS_SUBXACTS != 0 {
        let count = cursor.u32("subtransaction count")?;
        ended.xids = (0..count)
            .map(|_| cursor.u32("subtransaction"))
            .collect::<Result<_, _>>()?;
    }
    if info & HAS_RELFILENODES != 0 {
        let count = cursor.u32("relation count")?;
        ended.dropped = (0..count)
            .map(|_| rel_file_node(&mut cursor))
            .collect::<Result<_, _>>()?;
    }
    if info & HAS_DROPPED_STATS != 0 {
        skip_list(&mut cursor, STATS_ITEM_LEN, "dropped statistics")?;
    }
    if info & HAS_INVALS != 0 {
        skip_list(&mut cursor, INVALIDATION_LEN, "invalidations")?;
    }
    if info & HAS_TWOPHASE != 0 {
        ended.prepared = Some(cursor.u32("prepared transaction")?);
        if info & HAS_GID != 0 {
            skip_text(&mut cursor, "its global name")?;
        }
    }
    if info & HAS_ORIGIN != 0 {
        ended.origin_lsn = Some(Lsn::new(cursor.u64("position at the origin")?));
        // What another cluster committed is kept with the time at which it did there.
        ended.at.time = time(&mut cursor)?;
    }
    Ok(())
}

fn time(cursor: &mut Cursor) -> Result<i64, TruncatedError> {
    cursor.array("transaction end time").map(i64::from_le_bytes)
}

/// Steps over a text and the zero byte that ends it.
fn skip_text(cursor: &mut Cursor, what: &'static str) -> Result<(), TruncatedError> {
    while cursor.u8(what)? != 0 {}
    Ok(())
}

fn skip_list(
    cursor: &mut Cursor,
    item_len: usize,
    what: &'static str,
) -> Result<(), TruncatedError> {
    let count = cursor.u32(what)? as usize;
    cursor.skip(count.saturating_mul(item_len), what)
}

/// The transaction that a record prepares, if it does.
pub(crate) fn prepared_transaction(
    record: &DecodedRecord,
) -> Result<Option<PreparedTransaction>, TruncatedError> {
    if record.header.info & OP_MASK != PREPARE {
        return Ok(None);
    }
    let state = &record.main_data;
    let header = "header of a prepared transaction";
    let mut cursor = Cursor::new(state.clone());
    cursor.skip(PREPARED_XID_OFFSET, header)?;
    let xid = cursor.u32("prepared transaction")?;
    cursor.skip(BEFORE_SUBXACTS, header)?;
    let subxacts = cursor.u32("subtransaction count")?;
    cursor.skip(BEFORE_GID_LEN, header)?;
    let gid_len = usize::from(cursor.u16("length of its global name")?);
    let origin_lsn = Lsn::new(cursor.u64("position at the origin")?);
    cursor.skip(ORIGIN_TIME_LEN, header)?;
    cursor.skip(gid_len.next_multiple_of(ALIGNMENT), "its global name")?;
    let subxids = (0..subxacts)
        .map(|_| cursor.u32("subtransaction"))
        .collect::<Result<_, _>>()?;
    let mut file = BytesMut::with_capacity(state.len() + 4);
    file.put_slice(state);
    file.put_u32_le(crc32c(state));
    Ok(Some(PreparedTransaction {
        xid,
        subxids,
        origin: record.origin,
        origin_lsn,
        file: file.freeze(),
    }))
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{Fork, Lsn};
    use proptest::prelude::*;

    use super::*;
    use crate::record::RecordHeader;

    fn record(xid: Xid, info: u8, main_data: Vec<u8>) -> DecodedRecord {
        DecodedRecord {
            header: RecordHeader {
                total_len: 0,
                xid,
                previous: Lsn::ZERO,
                info,
                rmid: 1,
                crc: 0,
            },
            blocks: Vec::new(),
            main_data: main_data.into(),
            origin: 0,
        }
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_plain_commit_is_of_the_transaction_in_the_header() {
        let ended = ended_transaction(&record(700, COMMIT, words(&[0, 0])));
        let ended = ended.unwrap().unwrap();
        assert_eq!(ended.end, TransactionEnd::Committed);
        assert_eq!((ended.xids, ended.dropped), (vec![700], vec![]));
        let nothing_written = ended_transaction(&record(0, COMMIT, words(&[0, 0])));
        assert_eq!(nothing_written.unwrap().unwrap().xids, [0; 0]);
    }

    #[test]
    fn every_part_before_the_prepared_transaction_is_stepped_over() {
        let all = HAS_DBINFO
            | HAS_SUBXACTS
            | HAS_RELFILENODES
            | HAS_DROPPED_STATS
            | HAS_INVALS
            | HAS_TWOPHASE
            | HAS_GID
            | HAS_ORIGIN;
        let mut data = words(&[0, 0, all, 5, 1663]);
        data.extend(words(&[2, 701, 702]));
        data.extend(words(&[1, 1663, 5, 16384]));
        data.extend(words(&[1, 7, 7, 7]));
        data.extend(words(&[1, 8, 8, 8, 8]));
        data.extend(words(&[700]));
        data.extend(b"name\0");
        data.extend(words(&[1, 2, 77, 0]));
        data[..8].copy_from_slice(&66_u64.to_le_bytes());
        let ended = ended_transaction(&record(999, ABORT_PREPARED | HAS_INFO, data));
        let ended = ended.unwrap().unwrap();
        let rel = RelTag {
            spc: 1663,
            db: 5,
            rel: 16384,
            fork: Fork::Main,
        };
        assert_eq!(ended.end, TransactionEnd::Aborted);
        assert_eq!(
            (ended.prepared, ended.time, ended.at.time),
            (Some(700), 66, 77)
        );
        assert_eq!(ended.origin_lsn, Some(Lsn::new(0x2_0000_0001)));
        assert_eq!(
            (ended.xids, ended.dropped),
            (vec![701, 702, 700], vec![rel])
        );
    }

    #[test]
    fn a_prepared_transaction_is_kept_as_its_file_with_a_checksum() {
        // 72 bytes of header, of which the gid's length is in the upper half of a word.
        let mut state = words(&[0x57F9_4534, 93, 700, 5, 1, 0, 10, 2, 0, 0, 0, 0, 0]);
        state.extend(words(&[3 << 16, 0x1234, 1, 0, 0]));
        state.extend(b"id\0\0\0\0\0\0");
        state.extend(words(&[701, 703]));
        state.extend(b"locks");
        let prepared = prepared_transaction(&record(700, PREPARE, state.clone()));
        let prepared = prepared.unwrap().unwrap();
        assert_eq!((prepared.xid, prepared.subxids), (700, vec![701, 703]));
        assert_eq!(prepared.origin_lsn, Lsn::new(0x1_0000_1234));
        let crc = crc32c(&state).to_le_bytes();
        assert_eq!(prepared.file, [state.clone(), crc.to_vec()].concat());
        assert_eq!(prepared_transaction(&record(700, COMMIT, vec![])), Ok(None));
        let cut = state[..87].to_vec();
        assert!(prepared_transaction(&record(700, PREPARE, cut)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_end_or_an_error(
            info: u8,
            flags in 0u32..512,
            rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let data = [words(&[0, 0, flags]), rest].concat();
            let len = data.len();
            if let Ok(Some(ended)) = ended_transaction(&record(3, info, data)) {
                prop_assert!(ended.xids.len() <= len / 4);
            }
        }
    }
}
