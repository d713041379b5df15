use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use palimpsest_manifest::{
    CompactorClaim, KeySpan, LayerEntry, LayerKind, LsnSpan, SourceCluster, TimelineManifest,
    Versioned,
};
use palimpsest_store::{ObjectStore, faulty::FaultyStore};
use palimpsest_types::{
    ByteCount, Fork, Key, Lsn, RelTag, SystemIdentifier, TenantId, TimelineId, WriterEpoch,
};

use super::*;
use crate::strikes::{Diary, Moment, Plan, store::StruckStore};

const TENANT: TenantId = TenantId::from_bytes([1; 16]);
const TIMELINE: TimelineId = TimelineId::from_bytes([2; 16]);
/// More than a manifest holds itself.
const MANY: usize = 600;

#[test]
fn an_operation_is_known_by_what_it_is_about() {
    let of = |name: &str| Path::from(format!("tenants/t/timelines/u/{name}"));
    let nothing = Bytes::new();
    let put = |name| Known::default().creating(&of(name), &nothing);
    assert_eq!(put("layers/delta-1"), Some(Step::Upload));
    assert_eq!(put("layers/image-1"), Some(Step::Image));
    assert_eq!(put("lists/1"), Some(Step::Fold));
    assert_eq!(put("manifest/2"), None, "it is no manifest");
    assert_eq!(reading(&of("layers/delta-1")), Some(Step::Read));
    assert_eq!(reading(&of("manifest/1")), None);
    assert_eq!(listing(&of("manifest")), Some(Step::Look));
    assert_eq!(listing(&of("layers")), None);
    assert_eq!(deleting(&of("layers/delta-1")), Some(Step::Remove));
    assert_eq!(deleting(&of("manifest/1")), Some(Step::Sweep));
    assert_eq!(deleting(&Path::from("probe/layers")), None);
}

fn layer(name: &str, kind: LayerKind, entries: u64) -> LayerEntry {
    let rel = RelTag {
        spc: 1663,
        db: 5,
        rel: 16384,
        fork: Fork::Main,
    };
    let key = Key::RelSize(rel);
    LayerEntry {
        name: name.to_owned(),
        kind,
        keys: KeySpan {
            first: key,
            last: key,
        },
        size: ByteCount::mib(1),
        entries,
        level: 0,
        epoch: WriterEpoch::FIRST,
    }
}

fn delta(name: &str, after: u64, up_to: u64, entries: u64) -> LayerEntry {
    let (after, up_to) = (Lsn::new(after), Lsn::new(up_to));
    layer(name, LayerKind::Delta(LsnSpan { after, up_to }), entries)
}

fn image(name: &str) -> LayerEntry {
    layer(name, LayerKind::Image(Lsn::new(120)), 1)
}

fn first_manifest() -> TimelineManifest {
    let source = SourceCluster {
        system_identifier: SystemIdentifier::new(7),
        pg_version: 15,
        pg_timeline: 1,
        wal_segment_size: ByteCount::mib(16),
        wal_log_hints: false,
    };
    let start = Lsn::new(100);
    let mut manifest = TimelineManifest::new(source, start, start);
    manifest.lsn = Lsn::new(140);
    let layers = vec![
        layer("base", LayerKind::Base(start), 1),
        delta("a", 100, 120, 10),
        delta("b", 120, 140, 10),
    ];
    manifest.add_layers(layers).unwrap();
    manifest
}

/// Publishes a change on behalf of the compactor.
async fn change(
    manifests: &TimelineManifests,
    newest: &mut Versioned<TimelineManifest>,
    edit: impl Fn(&mut TimelineManifest),
) {
    let epoch = newest.state.compactor_epoch;
    let edit = |manifest: &mut TimelineManifest| {
        edit(manifest);
        Ok::<_, Infallible>(true)
    };
    let changed = manifests.update(epoch, newest, edit).await;
    assert!(changed.unwrap());
}

fn word() -> CompactorClaim {
    CompactorClaim::new(1, SystemTime::now(), Duration::from_secs(60))
}

fn claim(manifest: &mut TimelineManifest) {
    manifest.claim(word(), SystemTime::now()).unwrap();
}

fn renew(manifest: &mut TimelineManifest) {
    manifest.compactor_claim = Some(word());
}

fn add(manifest: &mut TimelineManifest) {
    manifest.add_layers(vec![image("image-1")]).unwrap();
}

fn publish(manifest: &mut TimelineManifest) {
    let by = vec![delta("c", 100, 140, 20)];
    manifest.replace_layers(&["a", "b"], by).unwrap();
    manifest.compactor_claim = None;
}

fn let_go(manifest: &mut TimelineManifest) {
    manifest.compactor_claim = None;
}

fn add_many(manifest: &mut TimelineManifest) {
    let images = (0..MANY).map(|number| image(&format!("image-of-many-{number}")));
    manifest.add_layers(images.collect()).unwrap();
}

#[tokio::test]
async fn what_is_done_to_manifests_is_told_apart() {
    let files = tempfile::tempdir().unwrap();
    let diary = Diary::at(files.path().join("diary"));
    let (inner, store) = FaultyStore::in_memory().await.unwrap();
    let writer = TimelineManifests::new(store, TENANT, TIMELINE);
    let mut written = writer.publish(0, first_manifest()).await.unwrap();
    let struck = StruckStore::new(inner, diary.path(), Plan::default()).unwrap();
    let struck = ObjectStore::with(Arc::new(struck)).await.unwrap();
    let compactor = TimelineManifests::new(struck, TENANT, TIMELINE);
    let mut newest = compactor.newest().await.unwrap().unwrap();

    change(&compactor, &mut newest, claim).await;
    change(&compactor, &mut newest, renew).await;
    change(&compactor, &mut newest, add).await;
    // What others do meanwhile is not taken for what the compactor does.
    let write = |manifest: &mut TimelineManifest| {
        manifest.add_layers(vec![delta("d", 140, 160, 10)]).unwrap();
        manifest.lsn = Lsn::new(160);
        Ok::<_, Infallible>(true)
    };
    let epoch = written.state.writer_epoch;
    writer.update(epoch, &mut written, write).await.unwrap();
    change(&compactor, &mut newest, renew).await;
    change(&compactor, &mut newest, publish).await;
    change(&compactor, &mut newest, claim).await;
    change(&compactor, &mut newest, let_go).await;
    change(&compactor, &mut newest, claim).await;
    change(&compactor, &mut newest, add_many).await;
    change(&compactor, &mut newest, let_go).await;
    compactor.take_over(newest).await.unwrap();

    let done = diary.read().unwrap().into_iter();
    let done = done.filter(|it| it.moment == Moment::After);
    let steps = done.map(|it| it.step);
    let steps: Vec<_> = steps
        .filter(|step| !matches!(step, Step::Look | Step::Sweep))
        .collect();
    let expected = [
        Step::Claim,
        Step::Renew,
        Step::Add,
        Step::Renew,
        Step::Publish,
        Step::Claim,
        Step::LetGo,
        Step::Claim,
        Step::Fold,
        Step::Add,
        Step::LetGo,
        Step::TakeOver,
    ];
    assert_eq!(steps, expected);
}
