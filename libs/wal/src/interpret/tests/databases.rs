//! Databases copied as files, and dropped.

use palimpsest_types::Oid;

use super::*;
use crate::interpret::databases::{MAX_FORKS, MAX_TABLESPACES};

const FILE_COPY: u8 = 0x00;
const WAL_LOG: u8 = 0x10;
const DROP: u8 = 0x20;

/// Where [`REL`] is copied to.
const COPY: RelTag = RelTag {
    spc: 1700,
    db: 6,
    ..REL
};

fn database_record(info: u8, end_lsn: u64, numbers: &[u32]) -> RawRecord {
    let data: Vec<u8> = numbers.iter().flat_map(|it| it.to_le_bytes()).collect();
    with_main_data(ResourceManager::Database, info, end_lsn, &data)
}

/// The database of [`REL`] is copied to that of [`COPY`].
fn copied(end_lsn: u64) -> RawRecord {
    database_record(FILE_COPY, end_lsn, &[COPY.db, COPY.spc, REL.db, REL.spc])
}

fn database(rel: RelTag) -> Key {
    Key::Database {
        spc: rel.spc,
        db: rel.db,
    }
}

fn blocks_of(interpreter: &Interpreter, rel: RelTag) -> Option<u32> {
    interpreter.sizes().get(rel).map(BlockNumber::get)
}

#[test]
fn a_copy_is_one_change_and_has_the_sizes_of_its_source() {
    let mut interpreter = interpreter(3, 0);
    let of_old_files = RelTag { rel: 9, ..COPY };
    interpreter.sizes.set(of_old_files, BlockNumber::new(7));
    let changes = interpreter.interpret(&copied(64)).unwrap();
    let value = Value::CopyOf {
        spc: REL.spc,
        db: REL.db,
    };
    assert_eq!(
        changes,
        [Change {
            key: database(COPY),
            value
        }]
    );
    assert_eq!(blocks_of(&interpreter, COPY), Some(3));
    assert_eq!(blocks_of(&interpreter, of_old_files), None);
    // From here on each grows for itself.
    let grown = record_of(ResourceManager::Gin, 0x20, 72, &[(0, 3, WILL_INIT)]);
    interpreter.interpret(&grown).unwrap();
    assert_eq!(blocks_of(&interpreter, REL), Some(4));
    assert_eq!(blocks_of(&interpreter, COPY), Some(3));
}

#[test]
fn a_dropped_database_is_one_change_for_each_tablespace() {
    let mut interpreter = interpreter(3, 0);
    interpreter.interpret(&copied(64)).unwrap();
    let elsewhere = RelTag { spc: 1800, ..COPY };
    interpreter.sizes.set(elsewhere, BlockNumber::new(1));
    let dropped = database_record(DROP, 72, &[COPY.db, 3, 1800, COPY.spc, 1800]);
    let changes = interpreter.interpret(&dropped).unwrap();
    assert_eq!(changes.len(), 2);
    for rel in [COPY, elsewhere] {
        assert_eq!(value(&changes, database(rel)), Some(&Value::Dropped));
        assert_eq!(blocks_of(&interpreter, rel), None);
    }
    assert_eq!(blocks_of(&interpreter, REL), Some(3));
}

#[test]
fn a_database_that_is_logged_page_by_page_begins_with_nothing_special() {
    let begun = database_record(WAL_LOG, 64, &[COPY.db, COPY.spc]);
    assert_eq!(interpreter(3, 0).interpret(&begun).unwrap(), []);
}

#[test]
fn records_cut_short_are_errors() {
    let short = |numbers: &[u32], info| {
        let error = interpreter(3, 0).interpret(&database_record(info, 64, numbers));
        assert!(matches!(error.unwrap_err().reason, Reason::Truncated(_)));
    };
    short(&[6, 1700, 5], FILE_COPY);
    short(&[6], DROP);
    // As many tablespaces as there can be numbers, of which two are there.
    short(&[6, u32::MAX, 1663, 1700], DROP);
}

#[test]
fn a_gap_is_copied_and_stops_the_timeline_unless_the_copy_goes() {
    let with_copied_gap = || {
        let mut interpreter = interpreter(0, 200);
        for record in dropped_during_the_backup() {
            interpreter.interpret(&record).unwrap();
        }
        interpreter.interpret(&copied(150)).unwrap();
        interpreter.interpret(&truncated_to(0, 158)).unwrap();
        interpreter
    };
    let after = record_of(ResourceManager::Btree, 0, 208, &[]);
    let error = with_copied_gap().interpret(&after).unwrap_err();
    assert!(
        matches!(error.reason, Reason::Gap { rel, .. } if rel == COPY),
        "{error}"
    );
    let mut interpreter = with_copied_gap();
    let dropped = database_record(DROP, 166, &[COPY.db, 1, COPY.spc]);
    interpreter.interpret(&dropped).unwrap();
    interpreter.interpret(&after).unwrap();
}

#[test]
fn a_database_is_not_dropped_from_tablespaces_without_end() {
    let mut words = vec![REL.db, MAX_TABLESPACES as u32 + 1];
    words.resize(2 + MAX_TABLESPACES + 1, REL.spc);
    let error = interpreter(1, 0)
        .interpret(&database_record(DROP, 64, &words))
        .unwrap_err();
    assert!(
        matches!(error.reason, Reason::TooManyTablespaces { .. }),
        "{error}"
    );
}

#[test]
fn copies_of_copies_do_not_fill_memory() {
    let mut interpreter = interpreter(1, 0);
    for rel in 0..1 << 8 {
        interpreter
            .sizes
            .set(RelTag { rel, ..REL }, BlockNumber::ZERO);
    }
    let copies = (1..).map(|spc| database_record(FILE_COPY, 64, &[REL.db, spc, REL.db, REL.spc]));
    let allowed = MAX_FORKS / interpreter.sizes.len() - 1;
    let mut outcomes = copies.map(|record| interpreter.interpret(&record));
    assert!(
        outcomes
            .by_ref()
            .take(allowed)
            .all(|outcome| outcome.is_ok())
    );
    let error = outcomes.next().unwrap().unwrap_err();
    assert!(matches!(error.reason, Reason::TooManyForks(_)), "{error}");
}

proptest! {
    #[test]
    fn any_bytes_are_changes_or_an_error(info: u8, data in prop::collection::vec(any::<u8>(), 0..64)) {
        let record = with_main_data(ResourceManager::Database, info & 0xF0, 64, &data);
        let mut interpreter = interpreter(3, 0);
        if let Ok(changes) = interpreter.interpret(&record) {
            let tablespaces = data.len() / size_of::<Oid>();
            prop_assert!(changes.len() <= tablespaces);
        }
    }
}
