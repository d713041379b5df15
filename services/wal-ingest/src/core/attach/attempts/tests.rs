use std::sync::Arc;

use palimpsest_store::faulty::FaultyStore;
use palimpsest_types::{ByteCount, SystemIdentifier, TenantId, TimelineId};

use super::*;

async fn faulty_attempts() -> (Arc<FaultyStore>, Attempts) {
    let (faulty, store) = FaultyStore::in_memory().await.unwrap();
    let tenant = TenantId::from_bytes([1; 16]);
    let path = StorePath::timeline(tenant, TimelineId::from_bytes([2; 16]));
    (faulty, Attempts::new(store, &path))
}

async fn attempts() -> (tempfile::TempDir, Attempts) {
    let files = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(files.path()).await.unwrap();
    let tenant = TenantId::from_bytes([1; 16]);
    let path = StorePath::timeline(tenant, TimelineId::from_bytes([2; 16]));
    (files, Attempts::new(store, &path))
}

fn backup() -> BaseBackup {
    BaseBackup {
        source: SourceCluster {
            system_identifier: SystemIdentifier::new(7),
            pg_version: 15,
            pg_timeline: 1,
            wal_segment_size: ByteCount::mib(16),
            wal_log_hints: false,
        },
        start: Lsn::new(8),
        end: Lsn::new(16),
        layers: Vec::new(),
    }
}

#[tokio::test]
async fn one_that_slept_while_another_began_neither_completes_nor_undoes() {
    let (_files, attempts) = attempts().await;
    let sleeper = attempts.begin(0, "slot".into()).await.unwrap();
    let found = attempts.newest().await.unwrap().unwrap();
    assert_eq!(
        found.state,
        Progress::Begun {
            slot: "slot".into()
        }
    );
    let other = attempts.begin(found.number, "slot".into()).await.unwrap();

    assert!(!attempts.is_ours(&sleeper).await.unwrap());
    assert!(attempts.is_ours(&other).await.unwrap());
    let completed = attempts.complete(&sleeper, backup()).await;
    assert!(completed.unwrap_err().is_lost());
    assert!(matches!(
        attempts.abandon(&sleeper).await.unwrap(),
        Fate::Lost
    ));

    attempts.complete(&other, backup()).await.unwrap();
    let newest = attempts.newest().await.unwrap().unwrap();
    assert_eq!(newest.state, Progress::Completed(backup()));
}

#[tokio::test]
async fn who_comes_after_a_completed_one_cannot_begin_in_its_place() {
    let (_files, attempts) = attempts().await;
    let first = attempts.begin(0, "slot".into()).await.unwrap();
    let found = attempts.newest().await.unwrap().unwrap();
    attempts.complete(&first, backup()).await.unwrap();
    // Its answer was lost.
    attempts.complete(&first, backup()).await.unwrap();
    let late = attempts.begin(found.number, "slot".into()).await;
    assert!(late.unwrap_err().is_lost());
}

#[tokio::test]
async fn of_two_that_begin_at_once_one_does() {
    let (_files, attempts) = attempts().await;
    let (one, other) = tokio::join!(
        attempts.begin(0, "slot".into()),
        attempts.begin(0, "slot".into())
    );
    assert!(one.is_ok() != other.is_ok());
}

#[tokio::test]
async fn one_that_was_completed_is_not_given_up_though_all_answers_were_lost() {
    let (faulty, attempts) = faulty_attempts().await;
    let attempt = attempts.begin(0, "slot".into()).await.unwrap();
    // The create takes effect, but nothing can be read after it.
    faulty.refuse_reads(usize::MAX);
    attempts.complete(&attempt, backup()).await.unwrap_err();
    attempts.abandon(&attempt).await.unwrap_err();
    faulty.refuse_reads(0);
    assert!(!attempts.is_ours(&attempt).await.unwrap());
    let Fate::Completed(found) = attempts.abandon(&attempt).await.unwrap() else {
        panic!("it was given up");
    };
    assert_eq!(found, backup());
    let newest = attempts.newest().await.unwrap().unwrap();
    assert_eq!(newest.state, Progress::Completed(backup()));
}

#[tokio::test]
async fn one_that_was_given_up_cannot_be_completed_by_a_create_that_comes_late() {
    let (_files, attempts) = attempts().await;
    let attempt = attempts.begin(0, "slot".into()).await.unwrap();
    let Fate::Abandoned(_) = attempts.abandon(&attempt).await.unwrap() else {
        panic!("nothing stood in the way");
    };
    let late = attempts.complete(&attempt, backup()).await;
    assert!(late.unwrap_err().is_lost());
    // A repeat, as after an error on the way.
    let Fate::Abandoned(abandoned) = attempts.abandon(&attempt).await.unwrap() else {
        panic!("it is not undone yet");
    };
    attempts.undone(&abandoned).await.unwrap();
    attempts.undone(&abandoned).await.unwrap();
    assert!(matches!(
        attempts.abandon(&attempt).await.unwrap(),
        Fate::Undone
    ));
    let newest = attempts.newest().await.unwrap().unwrap();
    assert_eq!(newest.state, Progress::Undone);
}
