use std::time::Duration;

use palimpsest_types::BlockNumber;
use palimpsest_wal::{BaseFacts, Change, RelationSizes};

use super::*;
use crate::core::wal_files::WalFiles;

fn rel(rel: u32) -> RelTag {
    RelTag { rel, ..FIRST_REL }
}

fn sized(lsn: u64, changes: Vec<(Key, Value)>) -> LogRecord {
    let changes = changes.into_iter();
    LogRecord {
        lsn: Lsn::new(lsn),
        changes: changes.map(|(key, value)| Change { key, value }).collect(),
    }
}

fn size(blocks: u32) -> Value {
    Value::RelSize(BlockNumber::new(blocks))
}

fn piece(records: Vec<LogRecord>) -> OpenLayer {
    let mut piece = OpenLayer::new(palimpsest_types::WriterEpoch::FIRST, Lsn::new(100));
    for record in records {
        piece.append(record).unwrap();
    }
    piece
}

fn interpreter(sizes: &[(u32, u32)]) -> Interpreter {
    let mut known = RelationSizes::default();
    for (number, blocks) in sizes {
        known.set(rel(*number), BlockNumber::new(*blocks));
    }
    Interpreter::new(known, BaseFacts::consistent())
}

#[test]
fn a_layer_tells_the_newest_length_of_what_it_changes() {
    let piece = piece(vec![
        sized(110, vec![(Key::RelSize(rel(1)), size(3))]),
        sized(
            120,
            vec![
                (Key::RelSize(rel(1)), size(4)),
                (Key::RelSize(rel(2)), Value::Dropped),
                (Key::RelBlock(rel(1), BlockNumber::new(3)), Value::ZeroPage),
            ],
        ),
    ]);
    let states = states(&piece).unwrap();
    assert_eq!(states.len(), 2);
    let mut noted = interpreter(&[(1, 2), (2, 7), (3, 5)]);
    for (key, value) in &states {
        noted.note(*key, value).unwrap();
    }
    assert_eq!(noted.sizes(), interpreter(&[(1, 4), (3, 5)]).sizes());
}

#[test]
fn a_layer_tells_the_newest_numbers_of_the_cluster() {
    let number = |number: u8| Value::File(vec![number; 8].into());
    let piece = piece(vec![
        sized(
            110,
            vec![(Key::NextMultiXact, number(1)), (Key::Origin(3), number(1))],
        ),
        sized(
            120,
            vec![
                (Key::NextMultiXact, number(2)),
                (Key::Origin(9), Value::Dropped),
            ],
        ),
    ]);
    let expected = [
        (Key::Origin(3), number(1)),
        (Key::Origin(9), Value::Dropped),
        (Key::NextMultiXact, number(2)),
    ];
    assert_eq!(states(&piece), Some(expected.to_vec()));
}

#[test]
fn a_layer_that_changes_whole_databases_tells_nothing() {
    let dropped = (Key::Database { spc: 1, db: 2 }, Value::Dropped);
    assert!(states(&piece(vec![sized(110, vec![dropped])])).is_none());
}

#[test]
fn who_has_less_than_the_manifest_is_sent_there() {
    let beginning = Beginning::new(Lsn::new(100), interpreter(&[]));
    assert!(beginning.check(Lsn::new(100)).is_ok());
    let gone = beginning.check(Lsn::new(99)).unwrap_err();
    assert_eq!(gone.kind(), palimpsest_types::ErrorKind::Conflict);
    // What layers say of another LSN than the manifest's is of no use.
    beginning.lock().interpreter = None;
    beginning.learn(Lsn::new(90), interpreter(&[]));
    assert!(beginning.get().is_none());
    beginning.learn(Lsn::new(100), interpreter(&[]));
    assert_eq!(beginning.get().unwrap().0, Lsn::new(100));
}

/// A history without WAL, of which one laggard at a time is decoded.
fn history(directory: &std::path::Path, start: Lsn) -> LocalHistory {
    let disk = Arc::new(palimpsest_disk::OsDisk);
    let segment_size = SegmentSize::DEFAULT;
    let files = WalFiles::open(disk, directory.to_owned(), segment_size, 1, start);
    LocalHistory {
        wal: files.unwrap().reader(),
        segment_size,
        beginning: Arc::new(Beginning::new(start, interpreter(&[]))),
        places: Arc::new(Places::new(1)),
        scope: TaskScope::default(),
        timeline: Weak::new(),
    }
}

#[tokio::test]
async fn a_laggard_that_takes_nothing_keeps_no_other_waiting() {
    let files = tempfile::tempdir().unwrap();
    let start = Lsn::new(1 << 24);
    let history = history(files.path(), start);
    let sleeper = history.begin(start).await.unwrap();
    let (sleeper, portion) = history.next(sleeper, start, start).await.unwrap();
    assert_eq!(portion, Portion::Decoded(Vec::new(), start));
    // It is being sent something now, for as long as its patience lasts.
    let served = async {
        let other = history.begin(start).await.unwrap();
        history.next(other, start, start).await.unwrap()
    };
    let served = tokio::time::timeout(Duration::from_secs(20), served).await;
    served.expect("another waits for it");
    assert_eq!(history.places.behind(), 1);
    drop(sleeper);
    assert_eq!(history.places.behind(), 0);
}

#[tokio::test]
async fn laggards_take_turns_in_decoding() {
    let files = tempfile::tempdir().unwrap();
    let start = Lsn::new(1 << 24);
    let history = history(files.path(), start);
    let laggard = history.begin(start).await.unwrap();
    let place = history.places.decode().await.unwrap();
    let next = history.next(laggard, start, start);
    tokio::pin!(next);
    let soon = tokio::time::timeout(Duration::from_millis(50), &mut next);
    assert!(soon.await.is_err(), "there was no place");
    drop(place);
    next.await.unwrap();
}
