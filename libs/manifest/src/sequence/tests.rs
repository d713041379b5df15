use std::time::Duration;

use palimpsest_store::faulty::FaultyStore;
use tokio::task::JoinSet;

use super::*;

async fn local() -> (tempfile::TempDir, Sequence) {
    let directory = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(directory.path()).await.unwrap();
    (directory, Sequence::new(store, StorePath::catalog()))
}

/// Appends states up to number `last`.
async fn append_up_to(sequence: &Sequence, last: u64) {
    let from = sequence.newest().await.unwrap().map_or(0, |v| v.number);
    for number in from..last {
        let state = Bytes::from(format!("state {}", number + 1));
        assert_eq!(sequence.append(number, state).await.unwrap(), number + 1);
    }
}

async fn numbers(sequence: &Sequence) -> Vec<u64> {
    sequence.numbers().await.unwrap().into_iter().collect()
}

#[tokio::test]
async fn of_two_changes_to_one_state_one_is_lost() {
    let (_directory, sequence) = local().await;
    assert_eq!(sequence.newest().await.unwrap(), None);
    append_up_to(&sequence, 2).await;
    let lost = sequence.append(1, Bytes::from_static(b"c")).await;
    assert!(matches!(lost, Err(SequenceError::Lost { number: 2, .. })));
    let newest = sequence.newest().await.unwrap().unwrap();
    assert_eq!((newest.number, &newest.state[..]), (2, &b"state 2"[..]));
}

#[tokio::test]
async fn the_newest_numbers_are_kept_and_no_others() {
    let (_directory, sequence) = local().await;
    append_up_to(&sequence, 30).await;
    assert_eq!(numbers(&sequence).await, (23..=30).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_writer_that_slept_until_its_number_was_deleted_has_lost() {
    let (_directory, sequence) = local().await;
    append_up_to(&sequence, 30).await;
    for after in [0, 5, 21] {
        let zombie = sequence.append(after, Bytes::from_static(b"zombie")).await;
        assert!(
            matches!(zombie, Err(SequenceError::Lost { .. })),
            "{after}: {zombie:?}"
        );
        let newest = sequence.newest().await.unwrap().unwrap();
        assert_eq!((newest.number, &newest.state[..]), (30, &b"state 30"[..]));
    }
    assert_eq!(
        numbers(&sequence).await,
        (23..=30).collect::<Vec<_>>(),
        "zombies are swept"
    );
}

#[tokio::test]
async fn a_change_that_was_applied_but_not_acknowledged_is_not_lost() {
    let (faulty, store) = FaultyStore::in_memory().await.unwrap();
    let sequence = Sequence::new(store, StorePath::catalog());
    append_up_to(&sequence, 3).await;
    faulty.lose_answers(1);
    let state = Bytes::from_static(b"mine");
    let unknown = sequence.append(3, state.clone()).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotReady);
    assert_eq!(sequence.append(3, state.clone()).await.unwrap(), 4);
    // Nor is it while it is kept, with others' changes on top of it.
    append_up_to(&sequence, 11).await;
    assert_eq!(sequence.append(3, state.clone()).await.unwrap(), 4);
    append_up_to(&sequence, 12).await;
    let forgotten = sequence.append(3, state).await;
    assert!(matches!(forgotten, Err(SequenceError::Lost { .. })));
}

#[tokio::test]
async fn what_could_not_be_deleted_is_deleted_later() {
    let (faulty, store) = FaultyStore::in_memory().await.unwrap();
    let sequence = Sequence::new(store, StorePath::catalog());
    faulty.refuse_deletes(12);
    append_up_to(&sequence, 20).await;
    assert_eq!(numbers(&sequence).await.first(), Some(&1));
    append_up_to(&sequence, 21).await;
    assert_eq!(numbers(&sequence).await, (14..=21).collect::<Vec<_>>());
}

/// Each task counts on its own place of the state, so that a change reported as lost although it
/// happened is not made twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_writers_lose_no_change_and_make_none_twice() {
    const WRITERS: usize = 6;
    const CHANGES: u64 = 20;
    let (_directory, sequence) = local().await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let sequence = sequence.clone();
        writers.spawn(async move {
            for change in 1..=CHANGES {
                count(&sequence, writer, change).await;
            }
        });
    }
    writers.join_all().await;
    let newest = sequence.newest().await.unwrap().unwrap();
    let counts: Vec<u64> = serde_json::from_slice(&newest.state).unwrap();
    assert_eq!(counts[..WRITERS], [CHANGES; WRITERS]);
    assert_eq!(newest.number, WRITERS as u64 * CHANGES);
    append_up_to(&sequence, newest.number + 1).await;
    let kept = newest.number + 2 - KEPT..=newest.number + 1;
    assert_eq!(numbers(&sequence).await, kept.collect::<Vec<_>>());
}

async fn count(sequence: &Sequence, writer: usize, to: u64) {
    loop {
        let newest = sequence.newest().await.unwrap();
        let (number, state) = newest.map_or((0, None), |v| (v.number, Some(v.state)));
        let mut counts: Vec<u64> = state.map_or_else(
            || vec![0; WRITERS_AND_NONCE],
            |state| serde_json::from_slice(&state).unwrap(),
        );
        if counts[writer] == to {
            return;
        }
        assert_eq!(counts[writer] + 1, to);
        counts[writer] = to;
        counts[WRITERS_AND_NONCE - 1] = u64::from(rand::random::<u32>());
        let pause = Duration::from_micros(rand::random_range(0..2_000));
        tokio::time::sleep(pause).await;
        let state = Bytes::from(serde_json::to_vec(&counts).unwrap());
        match sequence.append(number, state).await {
            Ok(_) => return,
            Err(SequenceError::Lost { .. } | SequenceError::Unsettled { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// The counts of six writers, and a nonce.
const WRITERS_AND_NONCE: usize = 7;

#[test]
fn a_listing_without_the_newest_numbers_is_not_believed() {
    let survey = |numbers: &[u64]| survey(&numbers.iter().copied().collect());
    assert_eq!(survey(&[]), Survey::Empty);
    assert_eq!(survey(&[1]), Survey::Newest(1));
    assert_eq!(survey(&[1, 2, 3]), Survey::Newest(3));
    assert_eq!(survey(&[6, 33, 34, 35, 36]), Survey::Newest(36));
    assert_eq!(
        survey(&[6]),
        Survey::Alone(6),
        "a zombie, or all was deleted"
    );
    assert_eq!(survey(&[6, 34, 35, 36]), Survey::Torn);
    assert_eq!(survey(&[33, 34, 36]), Survey::Torn);
}

#[tokio::test]
async fn what_is_appended_to_nothing_is_taken_back() {
    let (_directory, sequence) = local().await;
    append_up_to(&sequence, 3).await;
    for number in [1, 2, 3] {
        let object = sequence.object(number);
        sequence.store.delete(&object).await.unwrap();
    }
    let late = sequence.append(3, Bytes::from_static(b"late")).await;
    let Err(SequenceError::Emptied { number: 4, .. }) = late else {
        panic!("{late:?}");
    };
    assert_eq!(sequence.newest().await.unwrap(), None);
}

#[tokio::test]
async fn other_files_are_not_states() {
    let (directory, sequence) = local().await;
    append_up_to(&sequence, 1).await;
    for name in ["9", "notes", "99999999999999999999", "0000000000000000000x"] {
        std::fs::write(directory.path().join("catalog").join(name), b"x").unwrap();
    }
    assert_eq!(sequence.newest().await.unwrap().unwrap().number, 1);
}
