//! Carrying out a plan: its layers are read, and those that are made of them go into the object store.

use std::sync::Arc;

use palimpsest_api::TimelineRef;
use palimpsest_layer::delta_file::{DeltaLayerIndex, DeltaLayerSummary, EntryBlockSpan};
use palimpsest_manifest::{CompactorEpoch, KeySpan, LayerEntry, LayerKind};
use palimpsest_read::{BlockCache, LayerFiles, LayerScan, PageCache, StoredTimelines};
use palimpsest_runtime::TaskScope;
use palimpsest_store::{Body, ObjectStore, StorePath};
use palimpsest_types::ByteCount;

use super::{
    activity::Activity,
    background::{in_background, rest_in_between},
    cut::{Cell, Piece, cut},
    error::CompactError,
    known::Known,
    merge::{Making, Merged, merge},
    plan::Plan,
    uploads::Uploads,
};

/// What layers of all timelines are made with.
#[derive(Debug)]
pub(super) struct Workshop {
    store: ObjectStore,
    known: Known,
    scope: TaskScope,
    activity: Activity,
    /// For reading what images are made of; what is merged goes past it.
    blocks: Arc<BlockCache>,
}

/// Layers that are made of one timeline, by one claim.
#[derive(Debug)]
pub(super) struct Job<'a> {
    shop: &'a Workshop,
    timeline: TimelineRef,
    epoch: CompactorEpoch,
    /// Layers become about so large.
    target: ByteCount,
    directory: StorePath,
    uploads: Uploads,
}

/// Blocks and indexes of layers that are in memory while images are made. Keys are read in order, but their records
/// are in blocks from everywhere: with twice as much images are made faster, and the compactor takes more than it
/// should.
const BLOCKS: ByteCount = ByteCount::mib(32);
/// A layer may become so many times as large as it should be, before it is cut smaller.
const SLACK: u64 = 3;
/// Layers are not cut for less than this because they would become too large.
const LEAST_TARGET: ByteCount = ByteCount::kib(16);
/// No layer is larger, whatever it has.
const MOST: ByteCount = ByteCount::gib(1);

impl Workshop {
    pub(super) fn new(store: ObjectStore, known: Known, scope: TaskScope) -> Self {
        Self {
            store,
            known,
            scope,
            activity: Activity::default(),
            blocks: Arc::new(BlockCache::new(BLOCKS)),
        }
    }

    pub(super) fn store(&self) -> &ObjectStore {
        &self.store
    }

    pub(super) fn known(&self) -> &Known {
        &self.known
    }

    pub(super) fn scope(&self) -> &TaskScope {
        &self.scope
    }

    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The layer files of a timeline.
    pub(super) fn files(&self, timeline: TimelineRef) -> LayerFiles {
        let blocks = Arc::clone(&self.blocks);
        LayerFiles::new(self.store.clone(), layers_of(timeline), blocks)
    }

    /// All timelines of the tenant of one, as they are in the object store.
    pub(super) fn stored(&self, timeline: TimelineRef, pages: Arc<PageCache>) -> StoredTimelines {
        let caches = (pages, Arc::clone(&self.blocks));
        StoredTimelines::new(
            self.store.reading_here(rest_in_between),
            timeline.tenant,
            caches,
        )
    }

    /// Begins to make layers of about `target` each of a timeline that is claimed.
    pub(super) fn begin(
        &self,
        timeline: TimelineRef,
        epoch: CompactorEpoch,
        target: ByteCount,
    ) -> Job<'_> {
        Job {
            shop: self,
            timeline,
            epoch,
            target,
            directory: layers_of(timeline),
            uploads: Uploads::default(),
        }
    }
}

impl Job<'_> {
    /// Makes the layers of a plan.
    ///
    /// # Errors
    /// If one can't be read or made, or the timeline is deleted. Some may be in the store then: see
    /// [`Job::undo`].
    pub(super) async fn make(&self, plan: &Plan) -> Result<Vec<LayerEntry>, CompactError> {
        let files = self.shop.files(self.timeline);
        let mut scans = Vec::with_capacity(plan.inputs.len());
        let mut pieces = Vec::new();
        for entry in &plan.inputs {
            if let LayerKind::Delta(lsns) = entry.kind {
                let scan = LayerScan::open(&files, entry, lsns).await?;
                pieces.extend(pieces_of(entry.size, scan.index()));
                scans.push(scan);
            }
        }
        let scans = Arc::new(scans);
        let mut target = self.target;
        loop {
            let cells = cut(&pieces, plan.lsns, target);
            let most = most(self.target, target);
            match self.make_cells(plan, &scans, &cells, most).await {
                // The index told too little: of records that many versions share, or of how well they
                // are compressed.
                Err(CompactError::TooLarge { .. }) if target > LEAST_TARGET => {
                    target = ByteCount::new(target.get() / 2);
                    self.undo().await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn make_cells(
        &self,
        plan: &Plan,
        scans: &Arc<Vec<LayerScan>>,
        cells: &[Cell],
        most: ByteCount,
    ) -> Result<Vec<LayerEntry>, CompactError> {
        self.shop.activity.plan(cells.len());
        let epoch = plan.writer;
        let mut layers = Vec::with_capacity(cells.len());
        for (at, cell) in cells.iter().enumerate() {
            let merged = self.merged(scans, *cell, Making { epoch, most }).await?;
            // Without any versions there must still be a layer that says so.
            let is_last = at + 1 == cells.len();
            if merged.summary.entries == 0 && !(is_last && layers.is_empty()) {
                continue;
            }
            let layer = self.entry(plan, cell, &merged.summary);
            self.put(&layer, merged.bytes).await?;
            layers.push(layer);
            self.shop.activity.wrote(layers.len());
        }
        Ok(layers)
    }

    /// The generation of the claim it is made by.
    pub(super) fn epoch(&self) -> CompactorEpoch {
        self.epoch
    }

    /// What it has put into the store, which it does not undo any more.
    pub(super) fn hand_over(&self) -> Uploads {
        self.uploads.take()
    }

    /// The tasks that work for it.
    pub(super) fn scope(&self) -> &TaskScope {
        &self.shop.scope
    }

    /// Puts a layer that was made into the store.
    pub(super) async fn put(&self, layer: &LayerEntry, bytes: Body) -> Result<(), CompactError> {
        let timeline = self.timeline;
        self.shop.known.check(timeline)?;
        tracing::debug!(%timeline, layer = layer.name, size = %layer.size, entries = layer.entries, "layer made");
        let path = self.directory.child(&layer.name);
        self.uploads.add(&path);
        self.shop.store.put_once(&path, bytes).await?;
        Ok(())
    }

    /// Removes what it has put into the store. Only for what no manifest can name.
    pub(super) async fn undo(&self) {
        self.uploads.remove(&self.shop.store).await;
    }

    /// The layer of a cell.
    async fn merged(
        &self,
        scans: &Arc<Vec<LayerScan>>,
        cell: Cell,
        making: Making,
    ) -> Result<Merged, CompactError> {
        let scans = Arc::clone(scans);
        let work = async move { merge(&scans, &cell, making).await };
        in_background(&self.shop.scope, work).await?
    }

    /// What the manifest says of the layer of a cell.
    fn entry(&self, plan: &Plan, cell: &Cell, summary: &DeltaLayerSummary) -> LayerEntry {
        let keys = summary.keys.as_ref().map(|keys| KeySpan {
            first: keys.first,
            last: keys.last,
        });
        let (after, up_to) = (cell.lsns.after.get(), cell.lsns.up_to.get());
        let (epoch, random) = (self.epoch, rand::random::<u64>());
        LayerEntry {
            name: format!("delta-{after:016X}-{up_to:016X}-c{epoch}-{random:016x}"),
            kind: LayerKind::Delta(cell.lsns),
            keys: keys.unwrap_or(plan.keys),
            size: summary.size,
            entries: summary.entries,
            level: plan.level,
            epoch: plan.writer,
        }
    }
}

/// Where the layers of a timeline are.
fn layers_of(timeline: TimelineRef) -> StorePath {
    StorePath::timeline(timeline.tenant, timeline.timeline).child("layers")
}

/// How large a layer may become that is cut for `target`, which may be less by now than it should be. What
/// can't be cut any smaller, as one huge record, is written as it is.
fn most(should_be: ByteCount, target: ByteCount) -> ByteCount {
    match target > LEAST_TARGET {
        true => ByteCount::new(should_be.get().saturating_mul(SLACK)),
        false => MOST,
    }
}

/// What there is in a layer of this size, by its index. Records that versions share are in no block of
/// theirs, so each block counts for a part of all that the layer has.
fn pieces_of(size: ByteCount, index: &DeltaLayerIndex) -> Vec<Piece> {
    let stored = |block: EntryBlockSpan| u64::from(block.stored_len);
    let own: u64 = index.entry_blocks().map(stored).sum();
    let piece = |block: EntryBlockSpan| {
        let part = u128::from(stored(block)) * u128::from(size.get());
        let size = part / u128::from(own.max(1));
        Piece {
            first: block.first.0,
            last: block.last,
            size: ByteCount::new(u64::try_from(size).unwrap_or(u64::MAX)),
        }
    };
    index.entry_blocks().map(piece).collect()
}
