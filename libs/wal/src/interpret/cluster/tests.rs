use bytes::Bytes;

use super::*;
use crate::{
    BaseFacts, Interpreter, RawRecord, RelationSizes, ResourceManager,
    control::tests::sample,
    interpret::slru::tests::{numbers, record},
    v15::Parameters,
};

const SHUTDOWN: u8 = 0x00;
const ONLINE: u8 = 0x10;

/// After a base of which all is known.
fn interpreter() -> Interpreter {
    let mut interpreter = Interpreter::new(RelationSizes::default(), BaseFacts::consistent());
    let next = NextMultiXact { id: 7, offset: 20 };
    for (key, content) in [
        (Key::ControlData, sample().to_bytes()),
        (Key::NextMultiXact, next.to_bytes()),
        (Key::Origin(3), OriginProgress(Lsn::new(300)).to_bytes()),
    ] {
        interpreter.note(key, &Value::File(content)).unwrap();
    }
    interpreter
}

fn changed(interpreter: &mut Interpreter, record: &RawRecord) -> Vec<(Key, Option<Bytes>)> {
    let changes = interpreter.interpret(record).unwrap();
    let of_cluster = changes
        .into_iter()
        .filter(|change| change.key >= Key::ControlFile);
    let content = |value| match value {
        Value::File(content) => Some(content),
        _ => None,
    };
    of_cluster
        .map(|Change { key, value }| (key, content(value)))
        .collect()
}

/// The control data that a record leads to, if it says something new.
fn control_after(interpreter: &mut Interpreter, record: &RawRecord) -> Option<ControlData> {
    let changes = changed(interpreter, record);
    let mut control = changes
        .into_iter()
        .filter(|(key, _)| *key == Key::ControlData);
    control
        .next()
        .map(|(_, content)| ControlData::decode(&content.unwrap()).unwrap())
}

/// What pg_control.h has for these.
fn checkpoint(info: u8, data: &ControlData, next_multi: NextMultiXact) -> RawRecord {
    let mut bytes = Vec::new();
    bytes.extend(data.redo.get().to_le_bytes());
    bytes.extend(numbers(&[data.timeline, data.previous_timeline]));
    bytes.extend(u64::from(data.full_page_writes).to_le_bytes());
    bytes.extend(data.next_xid.to_le_bytes());
    bytes.extend(numbers(&[
        data.next_oid,
        next_multi.id,
        next_multi.offset,
        data.oldest_xid,
        data.oldest_xid_db,
        data.oldest_multi,
        data.oldest_multi_db,
        0,
    ]));
    bytes.extend(data.time.to_le_bytes());
    bytes.extend(numbers(&[
        data.oldest_commit_ts_xid,
        data.newest_commit_ts_xid,
        data.oldest_active_xid,
        0,
    ]));
    record(ResourceManager::Xlog, info, 0, &bytes)
}

#[test]
fn any_record_of_a_new_transaction_raises_the_next_one() {
    let mut interpreter = interpreter();
    let insert = |xid| record(ResourceManager::Sequence, 0, xid, &[]);
    assert_eq!(changed(&mut interpreter, &insert(739)), []);
    let found = control_after(&mut interpreter, &insert(740)).unwrap();
    let next_xid = 1 << 32 | 1024;
    let expected = ControlData {
        next_xid,
        ..sample()
    };
    assert_eq!(found, expected);
    assert_eq!(changed(&mut interpreter, &insert(1023)), []);
    // As does what records name.
    let commit = numbers(&[0, 0, 1 << 1, 2, 1030, 2050]);
    let commit = record(ResourceManager::Transaction, 0x80, 1020, &commit);
    let found = control_after(&mut interpreter, &commit).unwrap();
    assert_eq!(found.next_xid as u32, 3072);
    let members = numbers(&[7, 20, 2, 3000, 0, 3100, 0]);
    let members = record(ResourceManager::MultiXact, 0x20, 0, &members);
    let found = control_after(&mut interpreter, &members).unwrap();
    assert_eq!(found.next_xid as u32, 4096);
    let running = numbers(&[0, 0, 0, 4097, 4090, 4096]);
    let running = record(ResourceManager::Standby, 0x10, 0, &running);
    let found = control_after(&mut interpreter, &running).unwrap();
    assert_eq!(
        (found.next_xid as u32, found.oldest_active_xid),
        (5120, 4090)
    );
}

#[test]
fn a_shutdown_checkpoint_is_believed_and_another_only_as_far_as_it_is_newer() {
    let said = ControlData {
        checkpoint: Lsn::new(8),
        next_xid: 1 << 32 | 700,
        next_oid: 9,
        oldest_active_xid: 0,
        ..sample()
    };
    let next = NextMultiXact { id: 9, offset: 10 };
    let mut after_online = interpreter();
    let online = checkpoint(ONLINE, &said, next);
    let changes = changed(&mut after_online, &online);
    let expected = ControlData {
        next_xid: sample().next_xid,
        next_oid: sample().next_oid,
        ..said
    };
    let advanced = NextMultiXact { id: 9, offset: 20 };
    let expected = [
        (Key::ControlData, Some(expected.to_bytes())),
        (Key::NextMultiXact, Some(advanced.to_bytes())),
    ];
    assert_eq!(changes, expected);
    assert_eq!(changed(&mut after_online, &online), []);

    let changes = changed(&mut interpreter(), &checkpoint(SHUTDOWN, &said, next));
    let expected = [
        (Key::ControlData, Some(said.to_bytes())),
        (Key::NextMultiXact, Some(next.to_bytes())),
    ];
    assert_eq!(changes, expected);
}

#[test]
fn every_multixact_is_the_next_ones_predecessor() {
    let mut interpreter = interpreter();
    let new = record(
        ResourceManager::MultiXact,
        0x20,
        0,
        &numbers(&[8, 24, 2, 5, 0, 6, 0]),
    );
    let next = NextMultiXact { id: 9, offset: 26 };
    let expected = [(Key::NextMultiXact, Some(next.to_bytes()))];
    assert_eq!(changed(&mut interpreter, &new), expected);
    // One that was numbered before, and is logged after.
    let old = record(
        ResourceManager::MultiXact,
        0x20,
        0,
        &numbers(&[7, 20, 2, 5, 0, 6, 0]),
    );
    assert_eq!(changed(&mut interpreter, &old), []);
}

#[test]
fn truncations_say_what_is_oldest() {
    let mut interpreter = interpreter();
    let clog = record(ResourceManager::Clog, 0x10, 0, &numbers(&[0, 720, 4]));
    let multi = record(
        ResourceManager::MultiXact,
        0x30,
        0,
        &numbers(&[6, 1, 8, 0, 0]),
    );
    interpreter.interpret(&clog).unwrap();
    let found = control_after(&mut interpreter, &multi).unwrap();
    assert_eq!((found.oldest_xid, found.oldest_xid_db), (720, 4));
    assert_eq!((found.oldest_multi, found.oldest_multi_db), (8, 6));
}

#[test]
fn commit_times_begin_with_the_next_transaction_when_they_are_turned_on() {
    let mut interpreter = interpreter();
    let mut turn = |on| {
        let parameters = Parameters {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 5,
            max_locks_per_transaction: 64,
            wal_level: 1,
            wal_log_hints: false,
            track_commit_timestamp: on,
        };
        let change = record(ResourceManager::Xlog, 0x60, 0, &parameters.to_bytes());
        let commit = record(ResourceManager::Transaction, 0, 741, &77_u64.to_le_bytes());
        let found = control_after(&mut interpreter, &change);
        interpreter.interpret(&commit).unwrap();
        let truncate = record(ResourceManager::CommitTs, 0x10, 0, &numbers(&[0, 742]));
        let after = control_after(&mut interpreter, &truncate);
        let range =
            |control: ControlData| (control.oldest_commit_ts_xid, control.newest_commit_ts_xid);
        (found.map(range), after.map(range))
    };
    assert_eq!(turn(true), (Some((740, 740)), Some((742, 818))));
    assert_eq!(turn(false), (Some((0, 0)), None));
}

#[test]
fn other_records_of_the_log_change_what_they_name() {
    let mut interpreter = interpreter();
    let next_oid = record(ResourceManager::Xlog, 0x30, 0, &numbers(&[24_582]));
    let found = control_after(&mut interpreter, &next_oid).unwrap();
    assert_eq!(found.next_oid, 24_582);
    let no_images = record(ResourceManager::Xlog, 0x80, 0, &[0]);
    let found = control_after(&mut interpreter, &no_images).unwrap();
    assert!(!found.full_page_writes);
    let end = record(ResourceManager::Xlog, 0x90, 0, &numbers(&[0, 0, 5, 3]));
    let found = control_after(&mut interpreter, &end).unwrap();
    assert_eq!((found.timeline, found.previous_timeline), (5, 3));
}

#[test]
fn only_later_times_are_versions() {
    let mut interpreter = interpreter();
    let mut ended = |time: i64| {
        let abort = record(ResourceManager::Transaction, 0x20, 0, &time.to_le_bytes());
        let changes = changed(&mut interpreter, &abort);
        let time = |(key, content): (Key, Option<Bytes>)| {
            assert_eq!(key, Key::CommitTime);
            CommitTime::decode(&content.unwrap()).unwrap()
        };
        changes.into_iter().map(time).next()
    };
    let record = Lsn::new(8);
    let end = |time| Some(CommitTime { time, record });
    assert_eq!(ended(5_000), end(5_000));
    assert_eq!(ended(5_999), None);
    assert_eq!(ended(1_000), None);
    assert_eq!(ended(6_000), end(6_000));
}

#[test]
fn origins_go_forward_unless_told_otherwise() {
    let mut interpreter = interpreter();
    let mut set = |id: u16, up_to: u64, force: bool| {
        let mut data = up_to.to_le_bytes().to_vec();
        data.extend(id.to_le_bytes());
        data.push(force.into());
        changed(
            &mut interpreter,
            &record(ResourceManager::ReplicationOrigin, 0, 0, &data),
        )
    };
    let progress = |up_to| Some(OriginProgress(Lsn::new(up_to)).to_bytes());
    assert_eq!(set(3, 200, false), []);
    assert_eq!(set(3, 400, false), [(Key::Origin(3), progress(400))]);
    assert_eq!(set(3, 200, true), [(Key::Origin(3), progress(200))]);
    assert_eq!(set(9, 0, false), [(Key::Origin(9), progress(0))]);
    assert_eq!(set(u16::MAX, 5, false), []);
    let drop = |id: u16| {
        record(
            ResourceManager::ReplicationOrigin,
            0x10,
            0,
            &id.to_le_bytes(),
        )
    };
    assert_eq!(
        changed(&mut interpreter, &drop(3)),
        [(Key::Origin(3), None)]
    );
    assert_eq!(changed(&mut interpreter, &drop(3)), []);
}

#[test]
fn a_commit_says_how_far_its_origin_is() {
    let mut interpreter = interpreter();
    // Time; flags; position and time at the origin. The origin itself is in the record's header.
    let mut commit = numbers(&[0, 0, 1 << 5, 500, 0, 0, 0]);
    let mut bytes = vec![0; 24];
    bytes.extend([253, 3, 0, 255, commit.len() as u8]);
    bytes.append(&mut commit);
    bytes[0] = bytes.len() as u8;
    bytes[16] = 0x80;
    bytes[17] = ResourceManager::Transaction.number();
    let commit = RawRecord {
        start_lsn: Lsn::new(8),
        end_lsn: Lsn::new(16),
        bytes: bytes.into(),
    };
    let changes = changed(&mut interpreter, &commit);
    let progress = OriginProgress(Lsn::new(500)).to_bytes();
    assert!(
        changes.contains(&(Key::Origin(3), Some(progress))),
        "{changes:?}"
    );
}

#[test]
fn what_the_base_does_not_say_stays_unknown() {
    let mut interpreter = Interpreter::new(RelationSizes::default(), BaseFacts::consistent());
    let next = NextMultiXact { id: 9, offset: 10 };
    for info in [ONLINE, SHUTDOWN] {
        let said = checkpoint(info, &sample(), next);
        assert_eq!(changed(&mut interpreter, &said), []);
    }
}

/// One that began later, with what the versions until then say, makes the same of what follows.
#[test]
fn who_begins_later_makes_the_same_of_the_rest() {
    let record_of = |index: u32| match index % 5 {
        0 => record(ResourceManager::Sequence, 0, 700 + 97 * index, &[]),
        1 => record(
            ResourceManager::MultiXact,
            0x20,
            0,
            &numbers(&[index, index, 1, 800, 0]),
        ),
        2 => {
            let time = i64::from(index * 7919 % 5000) * 100;
            record(
                ResourceManager::Transaction,
                0,
                700 + 97 * index,
                &time.to_le_bytes(),
            )
        }
        3 => record(ResourceManager::Xlog, 0x30, 0, &numbers(&[index])),
        _ => checkpoint(
            ONLINE,
            &sample(),
            NextMultiXact {
                id: index,
                offset: 0,
            },
        ),
    };
    for cut in [0, 1, 7, 50, 99] {
        let (mut first, mut second) = (interpreter(), interpreter());
        for index in 0..cut {
            for Change { key, value } in first.interpret(&record_of(index)).unwrap() {
                second.note(key, &value).unwrap();
            }
        }
        for index in cut..100 {
            let record = record_of(index);
            assert_eq!(changed(&mut first, &record), changed(&mut second, &record));
        }
    }
}
