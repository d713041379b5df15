//! A timeline of random layers, in real files in a real store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, TimelineState, TimelineStatus, TimelineView},
};
use palimpsest_layer::{
    LogRecord, OpenLayer,
    delta_file::{Stored, write_delta_layer},
    image::ImageLayerWriter,
};
use palimpsest_manifest::{
    KeySpan, LayerEntry, LayerKind, LsnSpan, SourceCluster, TimelineManifest, TimelineManifests,
    Versioned,
};
use palimpsest_read::{BlockCache, KeyBounds, LayerFiles, LayerScan, Layers, Versions as _};
use palimpsest_runtime::TaskScope;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{
    BlockNumber, ByteCount, Fork, Key, Lsn, RelTag, SystemIdentifier, TenantId, TimelineId,
    WriterEpoch,
};
use palimpsest_wal::{Change, RawRecord, Value};
use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::watch;

use super::{Compactor, Policy};

pub(super) type Versions = BTreeMap<(Key, Lsn), Value>;

pub(super) const TIMELINE: TimelineRef = TimelineRef {
    tenant: TenantId::from_bytes([1; 16]),
    timeline: TimelineId::from_bytes([2; 16]),
};
pub(super) const START: u64 = 100;

/// Changes of one record: of these blocks, by a record or by an image.
pub(super) type Written = (BTreeSet<u32>, bool, u16);

/// A store with a timeline, on a disk.
pub(super) struct Fixture {
    _directory: tempfile::TempDir,
    pub(super) store: ObjectStore,
    pub(super) cluster: watch::Sender<ClusterView>,
}

impl Fixture {
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(directory.path()).await.unwrap();
        let mut manifest = TimelineManifest::new(source(), Lsn::new(START), Lsn::new(START));
        manifest
            .add_layers(vec![put_empty_base(&store).await])
            .unwrap();
        let fixture = Self {
            _directory: directory,
            store,
            cluster: watch::Sender::new(view(TimelineState::Streaming)),
        };
        fixture.manifests().publish(0, manifest).await.unwrap();
        fixture
    }

    pub(super) fn manifests(&self) -> TimelineManifests {
        TimelineManifests::new(self.store.clone(), TIMELINE.tenant, TIMELINE.timeline)
    }

    pub(super) fn compactor(&self, policy: Policy) -> Compactor {
        let scope = TaskScope::default();
        Compactor::new(self.store.clone(), self.cluster.subscribe(), policy, scope)
    }

    pub(super) fn files(&self) -> LayerFiles {
        let blocks = Arc::new(BlockCache::new(ByteCount::mib(1)));
        LayerFiles::new(self.store.clone(), layers_directory(), blocks)
    }

    pub(super) async fn newest(&self) -> Versioned<TimelineManifest> {
        self.manifests().newest().await.unwrap().unwrap()
    }

    /// Puts a layer of changes into the store and the manifest, as a wal-ingest does.
    pub(super) async fn add(&self, epoch: WriterEpoch, layer: &OpenLayer) {
        let Versioned { number, mut state } = self.newest().await;
        let mut bytes = Vec::new();
        let summary = write_delta_layer(layer, &mut bytes).unwrap();
        let lsns = LsnSpan {
            after: layer.start(),
            up_to: layer.last(),
        };
        let name = format!("delta-{}-{}", layer.start(), layer.last()).replace('/', "-");
        let path = layers_directory().child(&name);
        self.store.put_once(&path, bytes).await.unwrap();
        let kind = LayerKind::Delta(lsns);
        let mut entry = layer_entry(&name, kind, summary.size.get(), summary.entries, epoch);
        if let Some(keys) = summary.keys {
            (entry.keys.first, entry.keys.last) = (keys.first, keys.last);
        }
        state.add_layers(vec![entry]).unwrap();
        state.lsn = layer.last();
        self.manifests().publish(number, state).await.unwrap();
    }

    /// All versions that the layers of the newest manifest have; each must be in one of them only.
    pub(super) async fn versions(&self) -> Versions {
        let mut versions = Versions::new();
        for entry in self.newest().await.state.layers() {
            let LayerKind::Delta(lsns) = entry.kind else {
                continue;
            };
            let scan = LayerScan::open(&self.files(), entry, lsns).await.unwrap();
            let mut entries = scan.entries(KeyBounds::default(), lsns);
            while let Some((key, lsn, stored)) = entries.next().await.unwrap() {
                assert!(entry.keys.contains(key) && lsns.after < lsn && lsn <= lsns.up_to);
                let value = match stored {
                    Stored::Value(value) => value,
                    Stored::Shared { at, will_init } => {
                        let record = scan.records([at].into()).next().await.unwrap().unwrap().1;
                        Value::Record { will_init, record }
                    }
                };
                assert_eq!(
                    versions.insert((key, lsn), value),
                    None,
                    "{key} at {lsn} twice"
                );
            }
        }
        versions
    }

    /// Looks for each of these versions as a reader does, who goes down from layer to layer.
    pub(super) async fn read_each(&self, versions: &Versions) {
        let manifest = self.newest().await.state;
        let layers = Layers::open(self.files(), &manifest, None).await.unwrap();
        let mut before: Option<(Key, Lsn)> = None;
        for (key, lsn) in versions.keys().copied() {
            let found = layers.newest(key, Lsn::ZERO..=lsn).await.unwrap();
            assert_eq!(found.map(|(at, _)| at), Some(lsn), "{key} at {lsn}");
            let older = before.filter(|(of, _)| *of == key).map(|(_, at)| at);
            let just_before = Lsn::new(lsn.get() - 1);
            let found = layers.newest(key, Lsn::new(START + 1)..=just_before).await;
            let found = found.unwrap().map(|(at, _)| at);
            assert_eq!(found, older, "{key} before {lsn}");
            before = Some((key, lsn));
        }
    }
}

/// Puts a base into the store that has a relation without pages, and no other.
async fn put_empty_base(store: &ObjectStore) -> LayerEntry {
    let lsn = Lsn::new(START);
    let mut base = ImageLayerWriter::new(lsn);
    let Key::RelBlock(rel, _) = key(0) else {
        panic!("a page is of a relation");
    };
    let empty = Key::RelSize(RelTag { rel: 1, ..rel });
    base.rel_size(empty, BlockNumber::ZERO);
    let (bytes, _) = base.finish().unwrap();
    let (kind, size) = (LayerKind::Base(lsn), bytes.len() as u64);
    let path = layers_directory().child("base");
    store.put_once(&path, bytes).await.unwrap();
    let mut entry = layer_entry("base", kind, size, 1, WriterEpoch::FIRST);
    (entry.keys.first, entry.keys.last) = (empty, empty);
    entry
}

/// The cluster that it is of.
pub(super) fn source() -> SourceCluster {
    SourceCluster {
        system_identifier: SystemIdentifier::new(7),
        pg_version: 15,
        pg_timeline: 1,
        wal_segment_size: ByteCount::mib(16),
        wal_log_hints: false,
    }
}

/// What the storage-broker tells of a cluster that has this timeline only.
pub(super) fn view(state: TimelineState) -> ClusterView {
    let timeline = TimelineView {
        timeline: TIMELINE,
        tenant_name: "shop".to_owned(),
        timeline_name: "main".to_owned(),
        status: TimelineStatus {
            state,
            ..TimelineStatus::default()
        },
        writer: None,
        source: String::new(),
        slot: String::new(),
        branch: None,
        source_cluster: None,
    };
    ClusterView {
        timelines: vec![timeline],
        ..ClusterView::default()
    }
}

pub(super) fn layers_directory() -> StorePath {
    StorePath::timeline(TIMELINE.tenant, TIMELINE.timeline).child("layers")
}

pub(super) fn layer_entry(
    name: &str,
    kind: LayerKind,
    size: u64,
    entries: u64,
    epoch: WriterEpoch,
) -> LayerEntry {
    let keys = KeySpan {
        first: key(0),
        last: key(0),
    };
    LayerEntry {
        name: name.to_owned(),
        kind,
        keys,
        size: ByteCount::new(size),
        entries,
        level: 0,
        epoch,
    }
}

pub(super) fn key(block: u32) -> Key {
    let rel = RelTag {
        spc: 1663,
        db: 5,
        rel: 16384,
        fork: Fork::Main,
    };
    Key::RelBlock(rel, BlockNumber::new(block))
}

pub(super) fn log_record(lsn: u64, (blocks, is_image, len): &Written) -> LogRecord {
    // As good as random: compressed, it takes as much as it is long.
    let mut noise = vec![0; 24 + usize::from(*len)];
    StdRng::seed_from_u64(lsn).fill_bytes(&mut noise);
    let bytes = Bytes::from(noise);
    let record = RawRecord {
        start_lsn: Lsn::new(lsn - 8),
        end_lsn: Lsn::new(lsn),
        bytes: bytes.clone(),
    };
    let change = |block: &u32| Change {
        key: key(*block),
        value: match is_image {
            true => Value::File(bytes.clone()),
            false => Value::Record {
                will_init: block.is_multiple_of(2),
                record: record.clone(),
            },
        },
    };
    LogRecord {
        lsn: Lsn::new(lsn),
        changes: blocks.iter().map(change).collect(),
    }
}

pub(super) fn any_layers() -> impl Strategy<Value = Vec<Vec<Written>>> {
    let written = (
        prop::collection::btree_set(prop_oneof![3 => 0..40u32, 2 => Just(7u32)], 0..4),
        any::<bool>(),
        prop_oneof![4 => 0..300u16, 1 => 20_000..40_000u16],
    );
    let layer = prop::collection::vec(written, 0..40);
    prop::collection::vec(layer, 2..8)
}

/// Writes the layers, one of them by each writer; all versions.
pub(super) async fn fill(fixture: &Fixture, layers: &[Vec<Written>]) -> Versions {
    let mut lsn = START;
    let mut all = Versions::new();
    let mut epoch = WriterEpoch::FIRST;
    for records in layers {
        let mut layer = OpenLayer::new(epoch, Lsn::new(lsn));
        for written in records {
            lsn += 10;
            let record = log_record(lsn, written);
            for Change { key, value } in &record.changes {
                all.insert((*key, record.lsn), value.clone());
            }
            layer.append(record).unwrap();
        }
        lsn += 5;
        layer.advance(Lsn::new(lsn));
        fixture.add(epoch, &layer).await;
        epoch = epoch.next().unwrap();
    }
    all
}

pub(super) fn policy(threshold: usize, at_once: usize, target: u64) -> Policy {
    Policy {
        images: 3,
        threshold,
        at_once,
        target: ByteCount::new(target),
        claim: Duration::from_secs(30),
    }
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}
