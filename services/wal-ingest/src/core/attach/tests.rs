use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use palimpsest_api::broker::TimelineState;
use palimpsest_manifest::{KeySpan, LayerEntry, LayerKind};
use palimpsest_store::faulty::FaultyStore;
use palimpsest_types::{Key, Lsn};
use tokio::time::timeout;

use super::{attempts::Fate, *};
use crate::core::{
    fixtures::{timeline, timeline_of},
    node::Limits,
};

/// Long for everything that is tried again. The clock is not the real one.
const LONG: Duration = Duration::from_secs(60);

async fn new() -> (tempfile::TempDir, Arc<FaultyStore>, Timeline) {
    let files = tempfile::tempdir().unwrap();
    let (faulty, store) = FaultyStore::in_memory().await.unwrap();
    let timeline = timeline(store, files.path(), Limits::default());
    (files, faulty, timeline)
}

fn image() -> LayerEntry {
    let only = Key::Parameters;
    LayerEntry {
        name: "image".to_owned(),
        kind: LayerKind::Base(Lsn::new(8)),
        keys: KeySpan {
            first: only,
            last: only,
        },
        size: ByteCount::new(1),
        epoch: WriterEpoch::FIRST,
        entries: 1,
        level: 0,
    }
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
        layers: vec![image()],
    }
}

async fn begin(timeline: &Timeline) -> Attempt {
    let attempts = attempts(timeline);
    let begun = attempts.begin(0, timeline.slot.to_string()).await;
    begun.unwrap()
}

async fn complete_one(timeline: &Timeline) {
    let ours = begin(timeline).await;
    let attempts = attempts(timeline);
    attempts.complete(&ours, backup()).await.unwrap();
}

async fn put_layer(timeline: &Timeline, name: &str) -> StorePath {
    let path = timeline.store_path().child("layers").child(name);
    let put = timeline.shared.store.create(&path, Bytes::new());
    put.await.unwrap();
    path
}

async fn layers(timeline: &Timeline) -> Vec<StorePath> {
    stored_files(timeline).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_was_completed_is_published_once_the_store_is_there() {
    let (_files, faulty, timeline) = new().await;
    complete_one(&timeline).await;
    // Right after a restart, which would otherwise stop the timeline and leave its slot to itself.
    faulty.refuse_reads(3);
    attach(&timeline).await.unwrap();
    let manifest = timeline.manifests().newest().await.unwrap().unwrap();
    assert_eq!(manifest.state.lsn, backup().start);
}

#[tokio::test(start_paused = true)]
async fn p9_the_slot_is_looked_after_while_the_manifest_cannot_be_published() {
    let files = tempfile::tempdir().unwrap();
    let (faulty, store) = FaultyStore::in_memory().await.unwrap();
    let source = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = source.local_addr().unwrap().port();
    let timeline = timeline_of(port, store, files.path(), Limits::default());
    complete_one(&timeline).await;
    faulty.refuse_puts(usize::MAX);
    let visits = AtomicUsize::new(0);
    let counting = async {
        loop {
            source.accept().await.unwrap();
            visits.fetch_add(1, Ordering::SeqCst);
        }
    };
    tokio::select! {
        () = counting => {}
        attached = timeout(LONG, attach(&timeline)) => assert!(attached.is_err(), "{attached:?}"),
    }
    assert!(visits.into_inner() > 0, "nobody looked after the slot");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_completed_is_not_undone_whatever_was_heard() {
    let (_files, faulty, timeline) = new().await;
    let ours = begin(&timeline).await;
    let layer = put_layer(&timeline, &format!("image-0-{:016x}-0", ours.tag())).await;
    let attempts = attempts(&timeline);
    faulty.refuse_reads(usize::MAX);
    let error = attempts.complete(&ours, backup()).await.unwrap_err();
    let giving_up = give_up(&timeline, &attempts, &ours, error.into());
    let healing = async {
        tokio::time::sleep(LONG).await;
        faulty.refuse_reads(0);
    };
    let (kept, ()) = tokio::join!(giving_up, healing);
    assert_eq!(kept.unwrap(), backup());
    assert_eq!(layers(&timeline).await, [layer]);
}

#[tokio::test(start_paused = true)]
async fn p9_an_attempt_that_failed_is_undone_for_as_long_as_it_takes() {
    let (_files, _faulty, timeline) = new().await;
    let ours = begin(&timeline).await;
    let layer = put_layer(&timeline, &format!("image-0-{:016x}-0", ours.tag())).await;
    let attempts = attempts(&timeline);
    // The source is away, so its slot can't be dropped.
    let giving_up = give_up(
        &timeline,
        &attempts,
        &ours,
        IngestError::Backup("on purpose"),
    );
    let given_up = timeout(LONG, giving_up).await;
    assert!(given_up.is_err(), "{given_up:?}");
    let status = timeline.status();
    assert_eq!(status.state, TimelineState::Stopped);
    assert!(status.reason.contains("on purpose"), "{}", status.reason);
    assert!(status.reason.contains("trying again"), "{}", status.reason);
    assert_eq!(layers(&timeline).await, [layer]);
    let completed = attempts.complete(&ours, backup()).await;
    assert!(completed.unwrap_err().is_lost());
    assert!(owns_slot(&timeline).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn p4_one_that_slept_after_it_began_removes_nothing_of_the_next() {
    let (_files, _faulty, timeline) = new().await;
    let first = begin(&timeline).await;
    put_layer(&timeline, &format!("image-0-{:016x}-0", first.tag())).await;
    let attempts = attempts(&timeline);
    let Turn::Attempt(sleeper) = take_turn(&timeline, &attempts).await.unwrap() else {
        panic!("nothing was completed");
    };
    // Now it sleeps, and another does all that it would have done.
    let Turn::Attempt(other) = take_turn(&timeline, &attempts).await.unwrap() else {
        panic!("nothing was completed");
    };
    remove_files(&timeline, &other.stale).await.unwrap();
    let name = format!("image-0-{:016x}-0", other.ours.tag());
    let layer = put_layer(&timeline, &name).await;

    remove_files(&timeline, &sleeper.stale).await.unwrap();
    assert_eq!(layers(&timeline).await, std::slice::from_ref(&layer));
    let refused = expect_turn(&attempts, &sleeper.ours).await;
    assert!(matches!(refused, Err(IngestError::Stop(Stop::Superseded))));
    let error = IngestError::Backup("on purpose");
    let given_up = give_up(&timeline, &attempts, &sleeper.ours, error).await;
    assert!(matches!(given_up, Err(IngestError::Stop(Stop::Superseded))));
    assert_eq!(layers(&timeline).await, [layer]);
    let fate = attempts.abandon(&other.ours).await.unwrap();
    assert!(matches!(fate, Fate::Abandoned(_)));
}
