use std::sync::Arc;

use palimpsest_store::faulty::FaultyStore;
use palimpsest_types::{ByteCount, Lsn, SystemIdentifier, WriterEpoch};
use tokio::task::JoinSet;

use super::*;
use crate::{
    error::UpdateError,
    layer_entry::LsnSpan,
    publisher::Publisher,
    test_layers::{base, delta},
    timeline::{Ancestor, CompactorEpoch, Pin, PinKind, SourceCluster},
    validate::InvalidManifestError,
};

const IDS: (TenantId, TimelineId) = (
    TenantId::from_bytes([1; 16]),
    TimelineId::from_bytes([2; 16]),
);

fn first() -> TimelineManifest {
    let source = SourceCluster {
        system_identifier: SystemIdentifier::new(7),
        pg_version: 15,
        pg_timeline: 3,
        wal_segment_size: ByteCount::mib(16),
        wal_log_hints: false,
    };
    let mut manifest = TimelineManifest::new(source, Lsn::new(100), Lsn::new(120));
    manifest.add_layers(vec![base("base", 100)]).unwrap();
    manifest
}

async fn timeline() -> (Arc<FaultyStore>, ObjectStore, TimelineManifests) {
    let (faulty, store) = FaultyStore::in_memory().await.unwrap();
    let manifests = TimelineManifests::new(store.clone(), IDS.0, IDS.1);
    (faulty, store, manifests)
}

/// Adds the layer with the next ten LSNs.
fn grow(manifest: &mut TimelineManifest) {
    let from = manifest.lsn.get();
    let layer = delta(&format!("layer-{from}"), from, from + 10);
    manifest.add_layers(vec![layer]).unwrap();
    manifest.lsn = Lsn::new(from + 10);
}

fn growing(manifest: &mut TimelineManifest) -> Result<bool, InvalidManifestError> {
    grow(manifest);
    Ok(true)
}

async fn lists(store: &ObjectStore) -> usize {
    let path = StorePath::timeline(IDS.0, IDS.1).child("lists");
    store.list(&path).await.unwrap().len()
}

#[tokio::test]
async fn what_is_published_is_what_is_read() {
    let (_, store, manifests) = timeline().await;
    assert_eq!(manifests.newest().await.unwrap(), None);
    let mut manifest = first();
    manifest.compactor_epoch = CompactorEpoch::new(4);
    manifest.gc_cutoff = Lsn::new(50);
    manifest.ancestor = Some(Ancestor {
        timeline: IDS.1,
        lsn: Lsn::new(100),
    });
    manifest.holes = vec![LsnSpan {
        after: Lsn::new(40),
        up_to: Lsn::new(100),
    }];
    for (id, kind) in [
        (u128::MAX, PinKind::Branch { timeline: IDS.1 }),
        (2, PinKind::Lease),
    ] {
        let pin = Pin {
            id,
            kind,
            lsn: Lsn::new(60),
            expires_unix_ms: Some(u64::MAX),
        };
        manifest.add_pin(pin).unwrap();
    }
    let published = manifests.publish(0, manifest).await.unwrap();
    assert_eq!(manifests.newest().await.unwrap(), Some(published.clone()));
    let elsewhere = TimelineManifests::new(store, IDS.0, IDS.1);
    assert_eq!(elsewhere.newest().await.unwrap(), Some(published));
}

#[tokio::test]
async fn a_manifest_with_a_gap_is_not_published() {
    let (_, _, manifests) = timeline().await;
    let mut manifest = first();
    manifest.lsn = Lsn::new(110);
    let refused = manifests.publish(0, manifest).await;
    assert!(matches!(refused, Err(ManifestError::Refused(_))));
    assert_eq!(manifests.newest().await.unwrap(), None);
}

#[tokio::test]
async fn a_manifest_of_another_version_is_named() {
    let (_, store, manifests) = timeline().await;
    let sequence = Sequence::new(store, StorePath::timeline(IDS.0, IDS.1).child("manifest"));
    let object = seal(MAGIC, 1, &serde_json::json!({"nonce": 1})).unwrap();
    sequence.append(0, object).await.unwrap();
    let error = manifests.newest().await.unwrap_err();
    assert!(matches!(error, ManifestError::Damaged { number: 1, .. }));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn many_layers_take_few_lists_and_old_lists_go() {
    const LAYERS: usize = 4_000;
    let (_, store, manifests) = timeline().await;
    let mut newest = manifests.publish(0, first()).await.unwrap();
    let mut widest = 0;
    for step in 0..LAYERS / 40 {
        let mut manifest = newest.state.clone();
        for _ in 0..40 {
            grow(&mut manifest);
        }
        newest = manifests.publish(newest.number, manifest).await.unwrap();
        assert!(newest.state.edits.len() <= crate::fold::INLINE_EDITS);
        widest = widest.max(newest.state.lists.len());
        if step % 10 == 0 {
            let fresh = TimelineManifests::new(store.clone(), IDS.0, IDS.1);
            assert_eq!(fresh.newest().await.unwrap().as_ref(), Some(&newest));
        }
    }
    assert!((2..=4).contains(&widest), "{widest}");
    assert_eq!(newest.state.layers().len(), LAYERS + 1);
    // Once no manifest that is kept refers to a list, it goes.
    for _ in 0..9 {
        let manifest = newest.state.clone();
        newest = manifests.publish(newest.number, manifest).await.unwrap();
    }
    assert_eq!(newest.state.obsolete, []);
    assert_eq!(lists(&store).await, newest.state.lists.len());
}

#[tokio::test]
async fn a_change_of_a_hundred_thousand_layers_writes_only_itself() {
    let (_, store, manifests) = timeline().await;
    let mut manifest = first();
    let end = 1_000_100;
    let layers = (100..end).step_by(10);
    let layers = layers.map(|from| delta(&format!("layer-{from}"), from, from + 10));
    manifest.add_layers(layers.collect()).unwrap();
    manifest.lsn = Lsn::new(end);
    let mut newest = manifests.publish(0, manifest).await.unwrap();
    let epoch = WriterEpoch::FIRST;
    for _ in 0..3 {
        let grown = manifests.update(epoch, &mut newest, growing).await;
        assert!(grown.unwrap());
    }
    let path = StorePath::timeline(IDS.0, IDS.1).child("manifest");
    let object = store.get(&path.child(&format!("{:020}", 4))).await.unwrap();
    assert!(object.len() < 2_000, "{}", object.len());
    assert_eq!(newest.state.layers().len(), 100_004);
    assert_eq!(lists(&store).await, 1);
    assert_eq!(manifests.newest().await.unwrap(), Some(newest));
}

#[tokio::test]
async fn removed_layers_stay_removed_across_lists() {
    let (_, store, manifests) = timeline().await;
    let mut manifest = first();
    for _ in 0..2_000 {
        grow(&mut manifest);
    }
    let newest = manifests.publish(0, manifest).await.unwrap();
    let mut manifest = newest.state.clone();
    let gone: Vec<_> = (0..700)
        .map(|at| format!("layer-{}", 100 + at * 10))
        .collect();
    manifest.remove_layers(&gone).unwrap();
    let end = 100 + 7_000;
    manifest
        .add_layers(vec![delta("compacted", 100, end)])
        .unwrap();
    let newest = manifests.publish(newest.number, manifest).await.unwrap();
    assert_eq!(
        newest.state.lists.len(),
        2,
        "removals in a list of their own"
    );
    let fresh = TimelineManifests::new(store.clone(), IDS.0, IDS.1);
    let read = fresh.newest().await.unwrap().unwrap();
    assert_eq!(read, newest);
    assert_eq!(read.state.layers().len(), 1_302);

    // All of it goes: additions and removals cancel.
    let names: Vec<_> = read.state.layers()[1..]
        .iter()
        .map(|l| l.name.clone())
        .collect();
    let mut manifest = read.state.clone();
    manifest.remove_layers(&names).unwrap();
    manifest
        .add_layers(vec![delta("all", 100, 20_100)])
        .unwrap();
    let newest = fresh.publish(read.number, manifest).await.unwrap();
    assert_eq!(newest.state.lists.len(), 1);
    assert_eq!(newest.state.lists[0].edits, 2);
    assert_eq!(manifests.newest().await.unwrap(), Some(newest));
}

#[tokio::test]
async fn a_missing_list_is_damage() {
    let (_, store, manifests) = timeline().await;
    let mut manifest = first();
    for _ in 0..600 {
        grow(&mut manifest);
    }
    manifests.publish(0, manifest).await.unwrap();
    let path = StorePath::timeline(IDS.0, IDS.1).child("lists");
    store.delete_below(&path).await.unwrap();
    let fresh = TimelineManifests::new(store, IDS.0, IDS.1);
    let error = fresh.newest().await.unwrap_err();
    assert!(matches!(error, ManifestError::MissingList { .. }));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_publish_whose_answer_was_lost_has_happened_once() {
    let (faulty, _, manifests) = timeline().await;
    let mut cached = manifests.publish(0, first()).await.unwrap();
    faulty.lose_answers(1);
    let updated = manifests
        .update(WriterEpoch::FIRST, &mut cached, growing)
        .await;
    assert!(updated.unwrap());
    assert_eq!(cached.number, 2);
    assert_eq!(manifests.newest().await.unwrap(), Some(cached));
}

#[tokio::test]
async fn a_list_written_for_a_lost_publish_is_deleted() {
    let (_, store, manifests) = timeline().await;
    let newest = manifests.publish(0, first()).await.unwrap();
    let other = newest.state.clone();
    manifests.publish(newest.number, other).await.unwrap();
    let mut manifest = newest.state.clone();
    for _ in 0..600 {
        grow(&mut manifest);
    }
    let lost = manifests.publish(newest.number, manifest).await;
    assert!(matches!(
        lost,
        Err(ManifestError::Sequence(SequenceError::Lost { .. }))
    ));
    assert_eq!(lists(&store).await, 0);
}

#[tokio::test]
async fn a_change_is_made_anew_on_the_newest_manifest() {
    let (_, _, manifests) = timeline().await;
    let mut writer = manifests.publish(0, first()).await.unwrap();
    let mut broker = writer.clone();
    assert!(
        manifests
            .update(WriterEpoch::FIRST, &mut writer, growing)
            .await
            .unwrap()
    );
    let pin = Pin {
        id: 1,
        kind: PinKind::Lease,
        lsn: Lsn::new(130),
        expires_unix_ms: None,
    };
    let set = |manifest: &mut TimelineManifest| {
        let needed = !manifest.pins().contains(&pin);
        manifest.add_pin(pin).map(|()| needed)
    };
    assert!(
        manifests
            .update(Publisher::Broker, &mut broker, set)
            .await
            .unwrap()
    );
    assert_eq!(broker.state.lsn, writer.state.lsn);
    assert!(
        !manifests
            .update(Publisher::Broker, &mut broker, set)
            .await
            .unwrap()
    );
    assert_eq!(broker.number, 3);
}

#[tokio::test]
async fn a_superseded_writer_publishes_nothing() {
    let (_, _, manifests) = timeline().await;
    let mut old = manifests.publish(0, first()).await.unwrap();
    assert!(
        manifests
            .update(WriterEpoch::FIRST, &mut old, growing)
            .await
            .unwrap()
    );
    let taken = manifests.take_over(old.clone()).await.unwrap();
    assert_eq!(taken.state.writer_epoch, WriterEpoch::new(2));
    assert_eq!(taken.state.epoch_start, Lsn::new(110));
    let error = manifests
        .update(WriterEpoch::FIRST, &mut old, growing)
        .await;
    let Err(UpdateError::Manifest(error)) = error else {
        panic!("published");
    };
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert_eq!(
        error.to_string(),
        "the manifest is of the writer of epoch 2 now, and the writer of epoch 1 may not change it any more"
    );
    assert_eq!(manifests.newest().await.unwrap(), Some(taken));
}

#[tokio::test]
async fn p4_another_cluster_goes_on_only_where_the_timeline_ends() {
    let (_, _, manifests) = timeline().await;
    let published = manifests.publish(0, first()).await.unwrap();
    let end = published.state.lsn;
    let other = SourceCluster {
        system_identifier: SystemIdentifier::new(4_711),
        pg_timeline: 9,
        ..published.state.source
    };
    // The writer before publishes more after the look at its manifest: that is where the timeline ends then.
    let mut grown = published.clone();
    let update = manifests.update(WriterEpoch::FIRST, &mut grown, growing);
    assert!(update.await.unwrap());
    let late = manifests.take_over_from(published, (other, end)).await;
    assert!(matches!(late, Err(ManifestError::Contended)), "{late:?}");
    let newest = manifests.newest().await.unwrap().unwrap();
    assert_eq!(newest.state.source, grown.state.source);

    let end = newest.state.lsn;
    let taken = manifests.take_over_from(newest, (other, end)).await;
    let taken = taken.unwrap().state;
    assert_eq!((taken.source, taken.epoch_start), (other, end));
    let begun = taken.pg_timeline_history.last().copied().unwrap();
    assert_eq!((begun.pg_timeline, begun.begin), (9, end));
}

#[tokio::test]
async fn an_old_writer_is_fenced_even_after_its_number_was_deleted() {
    let (_, _, manifests) = timeline().await;
    let mut old = manifests.publish(0, first()).await.unwrap();
    let mut new = manifests.take_over(old.clone()).await.unwrap();
    for _ in 0..20 {
        let epoch = new.state.writer_epoch;
        assert!(manifests.update(epoch, &mut new, growing).await.unwrap());
    }
    let late = manifests
        .update(WriterEpoch::FIRST, &mut old, growing)
        .await;
    assert!(matches!(
        late,
        Err(UpdateError::Manifest(ManifestError::Superseded { .. }))
    ));
    assert_eq!(manifests.newest().await.unwrap(), Some(new));
}

#[tokio::test]
async fn of_a_timeline_that_was_deleted_nothing_is_made_again() {
    for (published, grown) in [(1, 1), (2, 1), (20, 1), (20, 600)] {
        let (_, store, manifests) = timeline().await;
        let mut known = manifests.publish(0, first()).await.unwrap();
        for _ in 1..published {
            let updated = manifests.update(WriterEpoch::FIRST, &mut known, growing);
            assert!(updated.await.unwrap());
        }
        let path = StorePath::timeline(IDS.0, IDS.1);
        store.delete_below(&path).await.unwrap();
        // So much at once that it needs a list of its own.
        let grow_much = |manifest: &mut TimelineManifest| {
            (0..grown).for_each(|_| grow(manifest));
            Ok::<_, InvalidManifestError>(true)
        };
        let late = manifests.update(WriterEpoch::FIRST, &mut known, grow_much);
        let late = late.await;
        assert!(
            matches!(late, Err(UpdateError::Manifest(ManifestError::Gone))),
            "{late:?}"
        );
        assert_eq!(store.list(&path).await.unwrap(), []);
        assert_eq!(manifests.newest().await.unwrap(), None);
    }
}

/// Writers take over from each other while all of them publish. The layers of each epoch must begin
/// where it took over, with nothing of an older epoch after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_of_a_superseded_writer_becomes_visible_in_a_race() {
    let directory = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(directory.path()).await.unwrap();
    let manifests = TimelineManifests::new(store.clone(), IDS.0, IDS.1);
    manifests.publish(0, first()).await.unwrap();
    let mut writers = JoinSet::new();
    for _ in 0..4 {
        let manifests = TimelineManifests::new(store.clone(), IDS.0, IDS.1);
        writers.spawn(async move {
            let mut published = 0;
            for _ in 0..6 {
                published += write_until_superseded(&manifests).await;
            }
            published
        });
    }
    let published: usize = writers.join_all().await.into_iter().sum();
    let newest = manifests.newest().await.unwrap().unwrap().state;
    assert_eq!(newest.layers().len(), 1 + published);
    let epochs: Vec<_> = newest.layers().iter().map(|layer| layer.epoch).collect();
    assert!(epochs.is_sorted(), "{epochs:?}");
}

/// Gives the number of layers that it published.
async fn write_until_superseded(manifests: &TimelineManifests) -> usize {
    let newest = manifests.newest().await.unwrap().unwrap();
    let mut cached = match manifests.take_over(newest).await {
        Ok(cached) => cached,
        Err(ManifestError::Superseded { .. } | ManifestError::Contended) => return 0,
        Err(error) => panic!("{error:?}"),
    };
    let epoch = cached.state.writer_epoch;
    for count in 0..5 {
        let nothing = cached.state.lsn;
        let write = |manifest: &mut TimelineManifest| {
            // The LSN is ours alone to move: where it has moved, it was our own lost answer.
            if manifest.lsn > nothing {
                return Ok(false);
            }
            let from = manifest.lsn.get();
            let mut layer = delta(&format!("{epoch}-{from}"), from, from + 10);
            layer.epoch = epoch;
            manifest.lsn = Lsn::new(from + 10);
            manifest.add_layers(vec![layer]).map(|()| true)
        };
        match manifests.update(epoch, &mut cached, write).await {
            Ok(_) => {}
            Err(UpdateError::Manifest(ManifestError::Superseded { .. })) => return count,
            Err(error) => panic!("{error:?}"),
        }
    }
    5
}
