//! A timeline with all who work on it: a writer, compactors that crash or stand still, readers.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use palimpsest_api::{
    broker::{ClusterView, TimelineState},
    redo::RedoTenant,
};
use palimpsest_layer::{
    DeltaLayer as _, LogRecord, OpenLayer, delta_file::write_delta_layer, image::ImageLayerWriter,
};
use palimpsest_manifest::{
    InvalidManifestError, KeySpan, LayerEntry, LayerKind, LsnSpan, TimelineManifest,
    TimelineManifests, Versioned,
};
use palimpsest_read::{BlockCache, LayerFiles, Layers, PageCache, Tail, TimelineReader};
use palimpsest_runtime::TaskScope;
use palimpsest_store::{
    ObjectStore,
    faulty::{Fault, FaultyStore},
};
use palimpsest_types::{BlockNumber, ByteCount, Key, Lsn, WriterEpoch};
use tokio::sync::watch;

use super::{
    super::{
        CompactError, Compactor, Done, Engines, Policy,
        fixture::{START, TIMELINE, layers_directory, source, view},
    },
    world::{Event, Mixing, World, slru_key},
};

pub(super) type Reader = TimelineReader<Mixing>;

/// One timeline.
pub(super) struct Site {
    /// What everybody's store leads to.
    inner: Arc<FaultyStore>,
    store: ObjectStore,
    manifests: TimelineManifests,
    /// As the writer knows it.
    manifest: Versioned<TimelineManifest>,
    cluster: watch::Sender<ClusterView>,
    policy: Policy,
    /// Read by the live reader, too.
    tail: Arc<Tail>,
    frozen: VecDeque<Arc<OpenLayer>>,
    /// What the source tells anew to a writer that asks.
    log: Vec<LogRecord>,
    /// Everything as it was from each of these LSNs on, the last as it is.
    moments: Vec<(Lsn, World)>,
    caches: Caches,
    live: Reader,
    /// Of older manifests.
    kept: VecDeque<Reader>,
    process: Process,
    halted: Option<Halted>,
}

/// A compactor, with its own way to the store.
struct Process {
    compactor: Arc<Compactor<Mixing>>,
    way: Arc<FaultyStore>,
    scope: TaskScope,
}

/// A compactor that stands still in the middle of its work.
struct Halted {
    process: Process,
    work: Work,
}

type Work = Pin<Box<dyn Future<Output = Result<Option<Done>, CompactError>>>>;

#[derive(Clone)]
struct Caches {
    blocks: Arc<BlockCache>,
    pages: Arc<PageCache>,
}

/// What happens to a compactor at some operation on the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It dies.
    Crash,
    /// It stands still, and another takes its place.
    Halt,
    /// The store refuses everything from then on …
    Refuse,
    /// … or does what it is asked for and does not say so.
    LoseAnswers,
}

/// What has come of compactions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) merges: usize,
    pub(super) images: usize,
    /// Crashes in the middle of something.
    pub(super) crashes: usize,
    /// Those that were told that another has the timeline.
    pub(super) superseded: usize,
    /// Those that published after they had stood still.
    pub(super) late: usize,
    /// Those that the store would not let go on.
    pub(super) failures: usize,
}

/// Older readers that are kept, at most.
const KEPT: usize = 3;

impl Engines for Mixing {
    type Engine = Self;

    fn of(&self, _: RedoTenant) -> Self {
        *self
    }
}

impl Site {
    pub(super) async fn new(policy: Policy) -> Self {
        let (inner, store) = FaultyStore::in_memory().await.unwrap();
        let start = Lsn::new(START);
        let mut manifest = TimelineManifest::new(source(), start, start);
        let world = World::of_base();
        manifest
            .add_layers(vec![put_base(&store, &world).await])
            .unwrap();
        let manifests = TimelineManifests::new(store.clone(), TIMELINE.tenant, TIMELINE.timeline);
        let manifest = manifests.publish(0, manifest).await.unwrap();
        let tail = Arc::new(Tail::new(manifest.state.writer_epoch, start));
        let caches = Caches::new();
        let live = caches
            .reader(&store, &manifest.state, Arc::clone(&tail))
            .await;
        let cluster = watch::Sender::new(view(TimelineState::Streaming));
        Self {
            process: Process::start(&inner, &cluster, policy).await,
            inner,
            store,
            manifests,
            manifest,
            cluster,
            policy,
            tail,
            frozen: VecDeque::new(),
            log: Vec::new(),
            moments: vec![(start, world)],
            caches,
            live,
            kept: VecDeque::new(),
            halted: None,
        }
    }

    fn now(&self) -> &(Lsn, World) {
        self.moments.last().unwrap()
    }

    /// A record comes.
    pub(super) fn write(&mut self, event: &Event) {
        let (lsn, mut world) = self.now().clone();
        let lsn = Lsn::new(lsn.get() + 10);
        let changes = world.happen(event, lsn);
        let record = LogRecord { lsn, changes };
        self.log.push(record.clone());
        self.extend(vec![record], lsn);
        self.moments.push((lsn, world));
    }

    /// Records come that change nothing.
    pub(super) fn pass(&mut self) {
        let (lsn, world) = self.now().clone();
        let lsn = Lsn::new(lsn.get() + 5);
        self.extend(Vec::new(), lsn);
        self.moments.push((lsn, world));
    }

    fn extend(&self, records: Vec<LogRecord>, up_to: Lsn) {
        self.tail.extend(records, up_to, ByteCount::gib(1)).unwrap();
    }

    pub(super) fn freeze(&mut self) {
        self.frozen.extend(self.tail.freeze());
    }

    /// Puts what is frozen into the store and the manifest, as a wal-ingest does.
    pub(super) async fn flush(&mut self) {
        self.freeze();
        // Or else every other publish comes too late, and waits before it is tried again.
        self.manifest = self.manifests.newest().await.unwrap().unwrap();
        while let Some(piece) = self.frozen.pop_front() {
            let entry = self.put(&piece).await;
            let edit = |manifest: &mut TimelineManifest| {
                manifest.add_layers(vec![entry.clone()])?;
                manifest.lsn = piece.last();
                Ok::<_, InvalidManifestError>(true)
            };
            let epoch = self.manifest.state.writer_epoch;
            let published = self.manifests.update(epoch, &mut self.manifest, edit).await;
            assert!(published.unwrap());
        }
    }

    async fn put(&self, piece: &OpenLayer) -> LayerEntry {
        let mut bytes = Vec::new();
        let summary = write_delta_layer(piece, &mut bytes).unwrap();
        let (after, up_to, epoch) = (piece.start(), piece.last(), piece.epoch());
        let name = format!("delta-{:X}-{:X}-{epoch}", after.get(), up_to.get());
        let path = layers_directory().child(&name);
        self.store.put_once(&path, bytes).await.unwrap();
        let keys = summary.keys.map(|keys| (keys.first, keys.last));
        let (first, last) = keys.unwrap_or((Key::Parameters, Key::Parameters));
        LayerEntry {
            name,
            kind: LayerKind::Delta(LsnSpan { after, up_to }),
            keys: KeySpan { first, last },
            size: summary.size,
            entries: summary.entries,
            level: 0,
            epoch,
        }
    }

    /// The live reader takes the newest layers, and the tail lets go of what they have.
    pub(super) async fn follow(&mut self) {
        let newest = self.newest().await;
        let before = self.live.layers();
        if before.are_superseded_by(&newest) {
            let files = self.caches.files(&self.store);
            let layers = Layers::open(files, &newest, Some(&before)).await;
            self.live.advance(layers.unwrap());
        }
        self.freeze();
        self.tail.drop_until(newest.lsn);
    }

    /// A reader of the newest manifest stays with that.
    pub(super) async fn keep(&mut self) {
        let newest = self.newest().await;
        let tail = Arc::new(Tail::new(newest.writer_epoch, newest.lsn));
        self.kept
            .push_back(self.caches.reader(&self.store, &newest, tail).await);
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// Another writer takes over. What no layer has it is told anew, or it never happened: the source
    /// had crashed.
    pub(super) async fn take_over(&mut self, never_happened: bool) {
        let newest = self.manifests.newest().await.unwrap().unwrap();
        self.manifest = self.manifests.take_over(newest).await.unwrap();
        let TimelineManifest {
            lsn, writer_epoch, ..
        } = self.manifest.state;
        self.follow().await;
        self.frozen.clear();
        self.tail.rewind(writer_epoch, lsn);
        if never_happened {
            self.log.retain(|record| record.lsn <= lsn);
            self.moments.retain(|(at, _)| *at <= lsn);
            return;
        }
        let again = self.log.iter().filter(|record| record.lsn > lsn);
        self.extend(again.cloned().collect(), self.now().0);
    }

    /// Has a compactor compact, which may come into trouble after so many operations on the store.
    pub(super) async fn compact(&mut self, trouble: Option<(usize, Trouble)>, seen: &mut Seen) {
        let Process { compactor, way, .. } = &self.process;
        if let Some((operations, trouble)) = trouble {
            way.set_after(operations, trouble.fault());
        }
        let mut work: Work = Box::pin(Arc::clone(compactor).compact_now(TIMELINE, self.policy));
        // What stands still goes on when it is polled again.
        let ended = tokio::select! {
            biased;
            outcome = &mut work => Some(outcome),
            () = way.stands_still() => None,
        };
        if let Some(outcome) = ended {
            way.set(Fault::None);
            seen.note(&outcome);
            if let Err(error) = outcome {
                assert!(trouble.is_some(), "no trouble, and yet: {error:?}");
                seen.failures += 1;
            }
            return;
        }
        let next = Process::start(&self.inner, &self.cluster, self.policy).await;
        let process = std::mem::replace(&mut self.process, next);
        match trouble {
            Some((_, Trouble::Halt)) => {
                if let Some(halted) = self.halted.replace(Halted { process, work }) {
                    halted.process.scope.stop().await;
                }
            }
            Some((_, Trouble::Crash)) => {
                process.scope.stop().await;
                seen.crashes += 1;
            }
            other => panic!("it stands still because of {other:?}"),
        }
        self.end_claim().await;
    }

    /// A compactor that stood still goes on, until it has ended.
    pub(super) async fn resume(&mut self, seen: &mut Seen) {
        let Some(Halted { process, work }) = self.halted.take() else {
            return;
        };
        process.way.set(Fault::None);
        match work.await {
            Ok(done) => seen.late += usize::from(done.is_some()),
            Err(error) if error.is_of_another() => seen.superseded += 1,
            Err(error) => panic!("no trouble any more, and yet: {error:?}"),
        }
        process.scope.stop().await;
        self.end_claim().await;
    }

    /// A compactor ends while it does nothing, and another is started.
    pub(super) async fn restart(&mut self) {
        self.process.scope.stop().await;
        self.process = Process::start(&self.inner, &self.cluster, self.policy).await;
        self.end_claim().await;
    }

    /// Lets the time pass for which the timeline is claimed.
    async fn end_claim(&mut self) {
        let mut newest = self.manifests.newest().await.unwrap().unwrap();
        let edit = |manifest: &mut TimelineManifest| {
            let Some(claim) = &mut manifest.compactor_claim else {
                return Ok(false);
            };
            claim.until_unix_ms = 0;
            Ok::<_, InvalidManifestError>(true)
        };
        let epoch = newest.state.compactor_epoch;
        self.manifests
            .update(epoch, &mut newest, edit)
            .await
            .unwrap();
    }

    async fn newest(&self) -> TimelineManifest {
        self.manifests.newest().await.unwrap().unwrap().state
    }

    /// The readers that stay, the live one first.
    pub(super) fn readers(&self) -> impl Iterator<Item = &Reader> {
        std::iter::once(&self.live).chain(&self.kept)
    }

    /// A reader like the live one that has not read anything yet.
    pub(super) async fn stranger(&self) -> Reader {
        let newest = self.newest().await;
        Caches::new()
            .reader(&self.store, &newest, Arc::clone(&self.tail))
            .await
    }

    /// What there was, and at which LSNs, without a gap.
    pub(super) fn moments(&self) -> impl Iterator<Item = (std::ops::RangeInclusive<Lsn>, &World)> {
        let ends = self
            .moments
            .iter()
            .skip(1)
            .map(|(next, _)| Lsn::new(next.get() - 1));
        let ends = ends.chain([self.now().0]);
        let each = self.moments.iter().zip(ends);
        each.map(|((lsn, world), end)| (*lsn..=end, world))
    }

    /// All who work on it end.
    pub(super) async fn stop(self) {
        self.process.scope.stop().await;
        if let Some(halted) = &self.halted {
            halted.process.scope.stop().await;
        }
    }
}

impl Process {
    async fn start(
        inner: &Arc<FaultyStore>,
        cluster: &watch::Sender<ClusterView>,
        policy: Policy,
    ) -> Self {
        let way = Arc::new(FaultyStore::new(Arc::clone(inner) as _));
        let store = ObjectStore::with(Arc::clone(&way) as _).await.unwrap();
        let (cluster, scope) = (cluster.subscribe(), TaskScope::default());
        let compactor = Compactor::with_engines(store, cluster, Mixing, policy, scope.clone());
        let compactor = Arc::new(compactor);
        Self {
            compactor,
            way,
            scope,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // When a case fails nobody stops it.
        self.scope.token().cancel();
    }
}

impl Caches {
    fn new() -> Self {
        Self {
            blocks: Arc::new(BlockCache::new(ByteCount::mib(4))),
            pages: Arc::new(PageCache::new(ByteCount::mib(16))),
        }
    }

    fn files(&self, store: &ObjectStore) -> LayerFiles {
        LayerFiles::new(store.clone(), layers_directory(), Arc::clone(&self.blocks))
    }

    async fn reader(
        &self,
        store: &ObjectStore,
        manifest: &TimelineManifest,
        tail: Arc<Tail>,
    ) -> Reader {
        let layers = Layers::open(self.files(store), manifest, None).await;
        let shared = (Arc::clone(&self.pages), Mixing);
        TimelineReader::new(TIMELINE.timeline, layers.unwrap(), tail, shared)
    }
}

impl Trouble {
    fn fault(self) -> Fault {
        match self {
            Self::Crash | Self::Halt => Fault::Halt,
            Self::Refuse => Fault::Refuse,
            Self::LoseAnswers => Fault::LoseAnswers,
        }
    }
}

impl Seen {
    fn note(&mut self, outcome: &Result<Option<Done>, CompactError>) {
        if let Ok(Some(done)) = outcome {
            // Images replace nothing.
            match done.read.0 {
                0 => self.images += done.written.0,
                _ => self.merges += 1,
            }
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            merges: self.merges + other.merges,
            images: self.images + other.images,
            crashes: self.crashes + other.crashes,
            superseded: self.superseded + other.superseded,
            late: self.late + other.late,
            failures: self.failures + other.failures,
        }
    }
}

/// Stores what a base backup has of a world.
async fn put_base(store: &ObjectStore, world: &World) -> LayerEntry {
    let lsn = Lsn::new(START);
    let mut layer = ImageLayerWriter::new(lsn);
    let len = |pages: &Vec<_>| BlockNumber::new(pages.len() as u32);
    for (rel, pages) in world.relations() {
        layer.rel_size(Key::RelSize(rel), len(pages));
        for (block, page) in (0..).zip(pages) {
            let key = Key::RelBlock(rel, BlockNumber::new(block));
            layer.page(key, page[..].try_into().unwrap());
        }
    }
    for (segment, pages) in &world.segments {
        layer.rel_size(Key::SlruSegment(segment.0, segment.1), len(pages));
        for (at, page) in pages.iter().enumerate() {
            layer.page(slru_key(*segment, at), page[..].try_into().unwrap());
        }
    }
    let (bytes, keys) = layer.finish().unwrap();
    let (size, entries) = (ByteCount::new(bytes.len() as u64), 1);
    let path = layers_directory().child("base");
    store.put_once(&path, bytes).await.unwrap();
    let (first, last) = (keys.first, keys.last);
    LayerEntry {
        name: "base".to_owned(),
        kind: LayerKind::Base(lsn),
        keys: KeySpan { first, last },
        size,
        entries,
        level: 0,
        epoch: WriterEpoch::FIRST,
    }
}
