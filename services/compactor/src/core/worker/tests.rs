//! Compaction of real files in a real store.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    task::{Context, Waker},
};

use bytes::Bytes;
use palimpsest_layer::{LogRecord, OpenLayer, delta_file::Stored, delta_file::write_delta_layer};
use palimpsest_manifest::LsnSpan;
use palimpsest_manifest::{ManifestError, SourceCluster};
use palimpsest_read::KeyBounds;
use palimpsest_types::{BlockNumber, Fork, Key, RelTag, SystemIdentifier, TenantId, TimelineId};
use palimpsest_wal::{Change, RawRecord, Value};
use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

type Versions = BTreeMap<(Key, Lsn), Value>;

const TIMELINE: TimelineRef = TimelineRef {
    tenant: TenantId::from_bytes([1; 16]),
    timeline: TimelineId::from_bytes([2; 16]),
};
const START: u64 = 100;

/// Changes of one record: of these blocks, by a record or by an image.
type Written = (BTreeSet<u32>, bool, u16);

/// A store with a timeline, on a disk.
struct Fixture {
    _directory: tempfile::TempDir,
    store: ObjectStore,
    cluster: watch::Sender<ClusterView>,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(directory.path()).await.unwrap();
        let source = SourceCluster {
            system_identifier: SystemIdentifier::new(7),
            pg_version: 15,
            pg_timeline: 1,
            wal_segment_size: ByteCount::mib(16),
            wal_log_hints: false,
        };
        let mut manifest = TimelineManifest::new(source, Lsn::new(START), Lsn::new(START));
        // Nobody reads the base here.
        let base = layer_entry(
            "base",
            LayerKind::Base(Lsn::new(START)),
            1,
            1,
            WriterEpoch::FIRST,
        );
        manifest.add_layers(vec![base]).unwrap();
        let fixture = Self {
            _directory: directory,
            store,
            cluster: watch::Sender::new(ClusterView::default()),
        };
        fixture.manifests().publish(0, manifest).await.unwrap();
        fixture
    }

    fn manifests(&self) -> TimelineManifests {
        TimelineManifests::new(self.store.clone(), TIMELINE.tenant, TIMELINE.timeline)
    }

    fn compactor(&self, policy: Policy) -> Compactor {
        let scope = TaskScope::default();
        Compactor::new(self.store.clone(), self.cluster.subscribe(), policy, scope)
    }

    fn files(&self) -> LayerFiles {
        let blocks = Arc::new(BlockCache::new(ByteCount::mib(1)));
        LayerFiles::new(self.store.clone(), layers_directory(), blocks)
    }

    async fn newest(&self) -> Versioned<TimelineManifest> {
        self.manifests().newest().await.unwrap().unwrap()
    }

    /// Puts a layer of changes into the store and the manifest, as a wal-ingest does.
    async fn add(&self, epoch: WriterEpoch, layer: &OpenLayer) {
        let Versioned { number, mut state } = self.newest().await;
        let mut bytes = Vec::new();
        let summary = write_delta_layer(layer, &mut bytes).unwrap();
        let lsns = LsnSpan {
            after: layer.start(),
            up_to: layer.last(),
        };
        let name = format!("delta-{}-{}", layer.start(), layer.last()).replace('/', "-");
        let path = layers_directory().child(&name);
        self.store.put_once(&path, bytes.into()).await.unwrap();
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
    async fn versions(&self) -> Versions {
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
}

fn layers_directory() -> StorePath {
    StorePath::timeline(TIMELINE.tenant, TIMELINE.timeline).child("layers")
}

fn layer_entry(
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

fn key(block: u32) -> Key {
    let rel = RelTag {
        spc: 1663,
        db: 5,
        rel: 16384,
        fork: Fork::Main,
    };
    Key::RelBlock(rel, BlockNumber::new(block))
}

fn log_record(lsn: u64, (blocks, is_image, len): &Written) -> LogRecord {
    let bytes = Bytes::from(vec![lsn as u8; 24 + usize::from(*len)]);
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

fn any_layers() -> impl Strategy<Value = Vec<Vec<Written>>> {
    let written = (
        prop::collection::btree_set(prop_oneof![3 => 0..40u32, 2 => Just(7u32)], 0..4),
        any::<bool>(),
        prop_oneof![4 => 0..300u16, 1 => 20_000..40_000u16],
    );
    let layer = prop::collection::vec(written, 0..40);
    prop::collection::vec(layer, 2..8)
}

/// Writes the layers, one of them by each writer; all versions.
async fn fill(fixture: &Fixture, layers: &[Vec<Written>]) -> Versions {
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

fn policy(threshold: usize, at_once: usize, target: u64) -> Policy {
    Policy {
        threshold,
        at_once,
        target: ByteCount::new(target),
        claim: Duration::from_secs(30),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn p5_compaction_keeps_every_version_and_leaves_few_layers_for_each_key() {
    let runtime = runtime();
    let input = (any_layers(), 2..4usize, 2..6usize, 200..60_000u64);
    let config = ProptestConfig::with_cases(48);
    let tested = TestRunner::new(config).run(&input, |(layers, threshold, at_once, target)| {
        runtime.block_on(async {
            let fixture = Fixture::new().await;
            let written = fill(&fixture, &layers).await;
            assert_eq!(fixture.versions().await, written);
            let at_once = at_once.max(threshold);
            let compactor = fixture.compactor(policy(threshold, at_once, target));
            let mut rounds = 0;
            while let Some(done) = compactor
                .compact(TIMELINE, &compactor.policy)
                .await
                .unwrap()
            {
                // Two generations at least, however large they are: else nothing would come of it.
                assert!(done.read.0 >= 2, "{done:?}");
                assert_eq!(fixture.versions().await, written);
                rounds += 1;
            }
            let manifest = fixture.newest().await.state;
            let fresh = manifest.layers().iter().filter(|layer| layer.level == 0);
            assert!(fresh.count() - 1 < threshold, "but for the base");
            // Of each key the layers that a read may visit: one for each round, and what was left.
            let visits = |key| {
                let has = |layer: &&LayerEntry| layer.level > 0 && layer.keys.contains(key);
                manifest.layers().iter().filter(has).count()
            };
            let most = (0..40)
                .filter(|block| *block != 7)
                .map(|block| visits(key(block)));
            let most = most.max().unwrap_or(0);
            let is_hot = target < 2_000;
            assert!(
                most <= rounds || is_hot,
                "{most} layers of a key after {rounds} rounds"
            );
        });
        Ok(())
    });
    tested.unwrap();
}

#[test]
fn p4_what_a_superseded_compactor_made_is_not_published() {
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        let one = |block| vec![([block].into(), false, 10)];
        let written = fill(&fixture, &[one(1), one(2), one(3)]).await;
        let policy = policy(2, 8, 1 << 20);
        let (slow, quick) = (fixture.compactor(policy), fixture.compactor(policy));
        let manifests = fixture.manifests();
        let mut known = fixture.newest().await;
        let epoch = slow.claim(&manifests, &mut known).await.unwrap();
        let plan = choose(known.state.layers(), &policy).unwrap();
        let made = slow
            .execute(TIMELINE, &plan, epoch, &Uploads::default())
            .await
            .unwrap();
        // While the claim holds, others do not begin.
        let taken = quick.compact(TIMELINE, &policy).await.unwrap_err();
        assert!(taken.is_of_another(), "{taken}");
        // Then its time is up.
        let mut expired = fixture.newest().await;
        let edit = |manifest: &mut TimelineManifest| {
            manifest.compactor_claim = Some(CompactorClaim {
                by: slow.id,
                until_unix_ms: 1,
            });
            Ok::<_, InvalidManifestError>(true)
        };
        manifests.update(epoch, &mut expired, edit).await.unwrap();
        quick.compact(TIMELINE, &policy).await.unwrap().unwrap();
        let after = fixture.newest().await;
        let late = publish(&manifests, &mut known, epoch, &plan, &made).await;
        assert!(matches!(
            late,
            Err(CompactError::Manifest(ManifestError::Superseded { .. }))
        ));
        assert_eq!(fixture.newest().await, after);
        assert_eq!(fixture.versions().await, written);
        assert!(
            quick.compact(TIMELINE, &policy).await.unwrap().is_none(),
            "all done"
        );
    });
}

#[test]
fn what_is_cancelled_ends_at_the_next_read() {
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        let one = |block| vec![([block].into(), false, 10)];
        fill(&fixture, &[one(1), one(2)]).await;
        let manifest = fixture.newest().await.state;
        let plan = choose(manifest.layers(), &policy(2, 8, 1 << 20)).unwrap();
        let mut scans = Vec::new();
        for entry in &plan.inputs {
            let LayerKind::Delta(lsns) = entry.kind else {
                panic!("{entry:?} is planned");
            };
            scans.push(
                LayerScan::open(&fixture.files(), entry, lsns)
                    .await
                    .unwrap(),
            );
        }
        let cell = Cell {
            keys: KeyBounds::default(),
            lsns: plan.lsns,
        };
        let making = Making {
            epoch: WriterEpoch::FIRST,
            most: ByteCount::mib(1),
        };
        let token = CancellationToken::new();
        let mut merged = pin!(merge_until(&token, &scans, &cell, making));
        let mut context = Context::from_waker(Waker::noop());
        // It waits for what it reads first, and is asked whether to go on when that comes.
        assert!(merged.as_mut().poll(&mut context).is_pending());
        token.cancel();
        let outcome = merged.await;
        assert!(matches!(outcome, Err(CompactError::Stopped)), "{outcome:?}");
    });
}
