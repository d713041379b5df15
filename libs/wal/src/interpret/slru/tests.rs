use bytes::Bytes;
use palimpsest_types::Lsn;

use super::*;
use crate::{
    BaseFacts, Change, Interpreter, RawRecord, RelationSizes, ResourceManager, SlruSegments,
    TransactionEnd, offset_place, transaction_end, v15::Parameters,
};

/// A record with this main data.
pub(in crate::interpret) fn record(
    rmgr: ResourceManager,
    info: u8,
    xid: Xid,
    main_data: &[u8],
) -> RawRecord {
    const LONG_DATA: u8 = 254;
    let mut bytes = vec![0; 24];
    bytes.push(LONG_DATA);
    bytes.extend((main_data.len() as u32).to_le_bytes());
    bytes.extend(main_data);
    let len = (bytes.len() as u32).to_le_bytes();
    bytes[..4].copy_from_slice(&len);
    bytes[4..8].copy_from_slice(&xid.to_le_bytes());
    bytes[16] = info;
    bytes[17] = rmgr.number();
    RawRecord {
        start_lsn: Lsn::new(8),
        end_lsn: Lsn::new(16),
        bytes: bytes.into(),
    }
}

pub(in crate::interpret) fn numbers(numbers: &[u32]) -> Vec<u8> {
    let bytes = numbers.iter().map(|number| number.to_le_bytes());
    bytes.collect::<Vec<_>>().concat()
}

/// Offsets and members with one segment of two pages each, commit times, two segments of status.
fn interpreter() -> Interpreter {
    let mut segments = SlruSegments::default();
    segments.set(SlruKind::MultiXactOffsets, 0, 2);
    segments.set(SlruKind::MultiXactMembers, 0, 2);
    segments.set(SlruKind::Clog, 0, 32);
    segments.set(SlruKind::Clog, 1, 5);
    segments.set(SlruKind::CommitTs, 0, 1);
    let base = BaseFacts {
        track_commit_timestamp: true,
        ..BaseFacts::consistent()
    };
    Interpreter::new(RelationSizes::default(), base).with_slru_segments(segments)
}

fn multixact(interpreter: &mut Interpreter, info: u8, data: &[u32]) -> Vec<Change> {
    let record = record(ResourceManager::MultiXact, info, 0, &numbers(data));
    interpreter.interpret(&record).unwrap()
}

/// All but what the first end of a transaction says of time.
fn keys(changes: &[Change]) -> Vec<Key> {
    let keys = changes.iter().map(|change| change.key);
    keys.filter(|key| *key != Key::CommitTime).collect()
}

fn offsets(page: u32) -> Key {
    Key::SlruBlock(SlruKind::MultiXactOffsets, page)
}

fn members(page: u32) -> Key {
    Key::SlruBlock(SlruKind::MultiXactMembers, page)
}

/// The page after a change of it, if before it was full of `fill`.
fn page_after(change: &Change, fill: u8) -> Vec<u8> {
    let mut page = vec![fill; PAGE_SIZE];
    change_slru_page(&mut page, &change.value).unwrap();
    page
}

#[test]
fn a_multixact_changes_offsets_and_members() {
    let create = [5, 100, 2, 700, 4, 701, 1];
    let changes = multixact(&mut interpreter(), 0x20, &create);
    assert_eq!(keys(&changes), [offsets(0), members(0)]);
    let page = page_after(&changes[0], 9);
    assert_eq!(
        page[16..32],
        [9, 9, 9, 9, 100, 0, 0, 0, 102, 0, 0, 0, 9, 9, 9, 9]
    );
    let page = page_after(&changes[1], 9);
    assert_eq!(page[500..512], [4, 1, 9, 9, 0xBC, 2, 0, 0, 0xBD, 2, 0, 0]);
}

#[test]
fn the_page_of_the_next_multixact_is_begun_and_stays() {
    let mut interpreter = interpreter();
    let last_on_page = 2 * 2048 - 1;
    let changes = multixact(&mut interpreter, 0x20, &[last_on_page, 100, 1, 700, 4]);
    let segment = Key::SlruSegment(SlruKind::MultiXactOffsets, 0);
    assert_eq!(
        keys(&changes),
        [offsets(1), offsets(2), members(0), segment]
    );
    assert!(matches!(changes[1].value, Value::Image(_)));
    assert_eq!(page_after(&changes[1], 9)[..8], [101, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(changes[3].value, Value::RelSize(BlockNumber::new(3)));
    assert_eq!(multixact(&mut interpreter, 0x00, &[2]), []);

    let fresh = multixact(&mut interpreter, 0x00, &[3]);
    assert_eq!(keys(&fresh), [offsets(3), segment]);
    assert_eq!(fresh[0].value, Value::ZeroPage);
    // Other areas have no such entries, and are zeroed each time.
    let again = multixact(&mut interpreter, 0x10, &[1]);
    assert_eq!(keys(&again), [members(1)]);
}

#[test]
fn truncation_drops_segments_and_no_more() {
    let mut interpreter = interpreter();
    multixact(&mut interpreter, 0x00, &[70]);
    multixact(&mut interpreter, 0x10, &[40]);
    multixact(&mut interpreter, 0x10, &[70]);
    // The oldest multixact is the first of its segment; the one before it keeps the segment before.
    let oldest = 64 * 2048;
    let members_end = 70 * MEMBERS_PER_PAGE;
    let truncate = [1, 1, oldest, 1, members_end];
    let changes = multixact(&mut interpreter, 0x30, &truncate);
    let segment = |kind, number| Key::SlruSegment(kind, number);
    let dropped = [
        segment(SlruKind::MultiXactOffsets, 0),
        segment(SlruKind::MultiXactMembers, 0),
        segment(SlruKind::MultiXactMembers, 1),
    ];
    assert_eq!(keys(&changes), dropped);
    assert!(changes.iter().all(|it| it.value == Value::Dropped));
    assert_eq!(offset_place(oldest - 1).0, 63);

    // A page of a dropped segment begins as zeros when it comes again.
    let create = [1, 100, 1, 700, 4];
    let changes = multixact(&mut interpreter, 0x20, &create);
    assert!(matches!(changes[0].value, Value::Image(_)));
}

#[test]
fn members_are_dropped_around_the_end_of_the_numbers() {
    let mut interpreter = interpreter();
    let last_page = u32::MAX / MEMBERS_PER_PAGE;
    multixact(&mut interpreter, 0x10, &[last_page]);
    multixact(&mut interpreter, 0x10, &[33]);
    let truncate = [1, 1, 2, u32::MAX - 5, 33 * MEMBERS_PER_PAGE];
    let changes = multixact(&mut interpreter, 0x30, &truncate);
    let kind = SlruKind::MultiXactMembers;
    let dropped = [0, last_page / 32].map(|number| Key::SlruSegment(kind, number));
    assert_eq!(keys(&changes), dropped);
}

#[test]
fn status_is_truncated_by_segments() {
    let truncate = record(ResourceManager::Clog, 0x10, 0, &numbers(&[33, 7, 1]));
    let changes = interpreter().interpret(&truncate).unwrap();
    assert_eq!(keys(&changes), [Key::SlruSegment(SlruKind::Clog, 0)]);
    assert_eq!(changes[0].value, Value::Dropped);
}

#[test]
fn a_page_that_comes_late_brings_those_before_it_in_the_segment() {
    let zero = record(ResourceManager::Clog, 0x00, 0, &numbers(&[39]));
    let changes = interpreter().interpret(&zero).unwrap();
    let page = |number| Key::SlruBlock(SlruKind::Clog, number);
    let segment = Key::SlruSegment(SlruKind::Clog, 1);
    assert_eq!(keys(&changes), [page(37), page(38), page(39), segment]);
}

#[test]
fn commits_are_noted_while_the_setting_is_on() {
    let mut interpreter = interpreter();
    let commit = record(ResourceManager::Transaction, 0, 700, &77u64.to_le_bytes());
    let status = Key::SlruBlock(SlruKind::Clog, 0);
    let noted = Key::SlruBlock(SlruKind::CommitTs, 0);
    let changes = interpreter.interpret(&commit).unwrap();
    assert_eq!(keys(&changes), [status, noted]);
    assert_eq!(
        page_after(&changes[1], 9)[7000..7011],
        [77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]
    );
    let end = transaction_end(&page_after(&changes[0], 0), 700);
    assert_eq!(end, Some(TransactionEnd::Committed));

    let off = parameters(false);
    let changes = interpreter.interpret(&off).unwrap();
    let segment = Key::SlruSegment(SlruKind::CommitTs, 0);
    assert_eq!(keys(&changes), [Key::Parameters, segment]);
    assert_eq!(changes[1].value, Value::Dropped);
    assert_eq!(keys(&interpreter.interpret(&commit).unwrap()), [status]);

    interpreter.interpret(&parameters(true)).unwrap();
    let changes = interpreter.interpret(&commit).unwrap();
    assert_eq!(keys(&changes), [status, noted, segment]);
    assert!(matches!(changes[1].value, Value::Image(_)));
}

fn parameters(track_commit_timestamp: bool) -> RawRecord {
    let parameters = Parameters {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 5,
        max_locks_per_transaction: 64,
        wal_level: 1,
        wal_log_hints: false,
        track_commit_timestamp,
    };
    record(ResourceManager::Xlog, 0x60, 0, &parameters.to_bytes())
}

#[test]
fn a_prepared_transaction_is_a_file_until_it_ends() {
    let mut interpreter = interpreter();
    // No subtransactions, a name of no length.
    let mut state = numbers(&[0x57F9_4534, 72, 700, 5]);
    state.resize(72, 0);
    let prepare = record(ResourceManager::Transaction, 0x10, 700, &state);
    let changes = interpreter.interpret(&prepare).unwrap();
    assert_eq!(keys(&changes), [Key::TwoPhase(700)]);
    let Value::File(file) = &changes[0].value else {
        panic!("{changes:?}");
    };
    assert_eq!(file.slice(..72), Bytes::from(state));

    // A time, flags, the transaction.
    let rollback = numbers(&[0, 0, 1 << 4, 700]);
    let rollback = record(ResourceManager::Transaction, 0x80 | 0x40, 0, &rollback);
    let changes = interpreter.interpret(&rollback).unwrap();
    let status = Key::SlruBlock(SlruKind::Clog, 0);
    assert_eq!(keys(&changes), [status, Key::TwoPhase(700)]);
    assert_eq!(changes[1].value, Value::Dropped);
}

#[test]
fn a_commit_does_not_begin_pages_without_end() {
    // A subtransaction on each page of many, none of which is there.
    let commit = |pages: u32| {
        let mut data = numbers(&[0, 0, 1 << 1, pages]);
        let first = 64 * 32;
        data.extend(numbers(&Vec::from_iter(
            (0..pages).map(|it| (first + it) << 15 | 5),
        )));
        record(ResourceManager::Transaction, 0x80, 700, &data)
    };
    let base = BaseFacts::consistent();
    let interpreter = Interpreter::new(RelationSizes::default(), base);
    let few = interpreter.clone().interpret(&commit(63)).unwrap();
    let images = few.iter().filter(|it| matches!(it.value, Value::Image(_)));
    assert_eq!(images.count(), 64);
    let error = interpreter.clone().interpret(&commit(64)).unwrap_err();
    let expected = Reason::TooManySlruPages(MAX_NEW_SLRU_PAGES);
    assert_eq!(error.reason.to_string(), expected.to_string());
}
