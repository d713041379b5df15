//! Looking for what is to be compacted, and doing it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use palimpsest_api::{TimelineRef, broker::ClusterView};
use palimpsest_layer::delta_file::DeltaLayerSummary;
use palimpsest_manifest::{
    CompactorClaim, CompactorEpoch, InvalidManifestError, KeySpan, LayerEntry, LayerKind,
    TimelineManifest, TimelineManifests, Versioned,
};
use palimpsest_read::{BlockCache, LayerFiles, LayerScan};
use palimpsest_runtime::TaskScope;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{ByteCount, Lsn, WriterEpoch};
use tokio::{runtime::Handle, sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    activity::{Activity, Done},
    cut::{Cell, Piece, cut},
    error::CompactError,
    merge::{Merged, merge},
    metrics::CompactionMetrics,
    plan::{Plan, Policy, choose},
};

/// Compacts the timelines of a cluster, one after the other.
#[derive(Debug)]
pub struct Compactor {
    store: ObjectStore,
    cluster: watch::Receiver<ClusterView>,
    policy: Policy,
    /// Differs at every start.
    id: u128,
    /// Readers need one; what is compacted goes past it.
    blocks: Arc<BlockCache>,
    metrics: CompactionMetrics,
    activity: Activity,
    /// Held by the one compaction that goes on: memory is for one.
    turn: tokio::sync::Mutex<()>,
    scope: TaskScope,
}

/// How long the timelines are left alone when there was nothing to do.
const LOOK: Duration = Duration::from_secs(2);

impl Compactor {
    /// A compactor of the cluster's timelines. What it starts is in `scope`.
    pub fn new(
        store: ObjectStore,
        cluster: watch::Receiver<ClusterView>,
        policy: Policy,
        scope: TaskScope,
    ) -> Self {
        Self {
            store,
            cluster,
            policy,
            id: rand::random(),
            blocks: Arc::new(BlockCache::new(ByteCount::mib(1))),
            metrics: CompactionMetrics::default(),
            activity: Activity::default(),
            turn: tokio::sync::Mutex::default(),
            scope,
        }
    }

    /// What is counted here.
    pub fn metrics(&self) -> &CompactionMetrics {
        &self.metrics
    }

    /// What it does and has done.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The newest manifest of a timeline.
    ///
    /// # Errors
    /// If there is none, or it can't be read.
    pub async fn manifest(&self, timeline: TimelineRef) -> Result<TimelineManifest, CompactError> {
        let newest = self.manifests(timeline).newest().await?;
        let newest = newest.ok_or(CompactError::NoTimeline(timeline))?;
        Ok(newest.state)
    }

    /// What it goes by, but that so many layers are worth it.
    pub fn policy_with(&self, threshold: Option<usize>) -> Policy {
        Policy {
            threshold: threshold.unwrap_or(self.policy.threshold),
            ..self.policy
        }
    }

    /// Goes on until the scope's token is cancelled; then ends between two layers.
    pub async fn run(&self) {
        let token = self.scope.token().clone();
        // Up to where each timeline was looked at and had nothing to do.
        let mut idle: HashMap<TimelineRef, Lsn> = HashMap::new();
        while !token.is_cancelled() {
            let known = self.known();
            idle.retain(|timeline, _| known.iter().any(|(known, _)| known == timeline));
            let mut did = false;
            for (timeline, lsn) in known {
                if idle.get(&timeline) == Some(&lsn) || token.is_cancelled() {
                    continue;
                }
                match self.compact(timeline, &self.policy).await {
                    Ok(Some(_)) => did = true,
                    Ok(None) => drop(idle.insert(timeline, lsn)),
                    Err(CompactError::Stopped) => return,
                    Err(error) if error.is_of_another() => {
                        tracing::debug!(%timeline, %error, "left to another compactor");
                    }
                    Err(error) => {
                        self.metrics.failures.inc();
                        tracing::warn!(%timeline, error = &error as &dyn std::error::Error, "compaction came to nothing; nothing is lost, trying again");
                    }
                }
            }
            if !did {
                // Cancel-safe: nothing is consumed.
                token.run_until_cancelled(sleep(LOOK)).await;
            }
        }
    }

    /// The timelines there are, and up to where their layers reach.
    fn known(&self) -> Vec<(TimelineRef, Lsn)> {
        let view = self.cluster.borrow();
        let timelines = view.timelines.iter();
        timelines
            .map(|view| (view.timeline, view.status.remote_consistent))
            .collect()
    }

    /// Compacts a timeline once, if anything is worth it and nobody else does.
    ///
    /// # Errors
    /// If it came to nothing; the timeline is as it was.
    pub async fn compact(
        &self,
        timeline: TimelineRef,
        policy: &Policy,
    ) -> Result<Option<Done>, CompactError> {
        let _turn = self.turn.lock().await;
        let manifests = self.manifests(timeline);
        let Some(mut newest) = manifests.newest().await? else {
            return Ok(None);
        };
        self.metrics.backlog.set(fresh(&newest.state));
        if choose(newest.state.layers(), policy).is_none() {
            return Ok(None);
        }
        let epoch = self.claim(&manifests, &mut newest).await?;
        // Made anew from the manifest that has the claim: nobody else replaces layers of that.
        let Some(plan) = choose(newest.state.layers(), policy) else {
            return Ok(None);
        };
        let doing = self.activity.begin(timeline, total(&plan.inputs));
        let made = self.execute(timeline, &plan, epoch);
        let renewing = self.renew(&manifests, newest.clone(), epoch);
        // Cancel-safe: a layer that was begun is a file that nobody refers to.
        let layers = tokio::select! {
            made = made => made?,
            error = renewing => return Err(error),
        };
        publish(&manifests, &mut newest, epoch, &plan, &layers).await?;
        let done = doing.end(total(&layers));
        self.metrics.note(&done);
        tracing::info!(%timeline, layers = done.read.0, bytes = %done.read.1, by = done.written.0, of = %done.written.1, took = ?done.took, "compacted");
        Ok(Some(done))
    }

    fn manifests(&self, timeline: TimelineRef) -> TimelineManifests {
        TimelineManifests::new(self.store.clone(), timeline.tenant, timeline.timeline)
    }

    async fn claim(
        &self,
        manifests: &TimelineManifests,
        newest: &mut Versioned<TimelineManifest>,
    ) -> Result<CompactorEpoch, CompactError> {
        let before = newest.state.compactor_epoch;
        let now = unix_ms();
        let claim = self.claim_from(now);
        let edit = |manifest: &mut TimelineManifest| manifest.claim(claim, now).map(|_| true);
        manifests.update(before, newest, edit).await?;
        Ok(newest.state.compactor_epoch)
    }

    fn claim_from(&self, now_unix_ms: u64) -> CompactorClaim {
        CompactorClaim {
            by: self.id,
            until_unix_ms: now_unix_ms.saturating_add(self.policy.claim.as_millis() as u64),
        }
    }

    /// Keeps the claim for as long as the work takes. Ends only if the timeline was taken away.
    async fn renew(
        &self,
        manifests: &TimelineManifests,
        mut newest: Versioned<TimelineManifest>,
        epoch: CompactorEpoch,
    ) -> CompactError {
        loop {
            sleep(self.policy.claim / 3).await;
            let claim = self.claim_from(unix_ms());
            let edit = |manifest: &mut TimelineManifest| {
                manifest.compactor_claim = Some(claim);
                Ok::<_, InvalidManifestError>(true)
            };
            match manifests.update(epoch, &mut newest, edit).await {
                Ok(_) => {}
                Err(error) => {
                    let error = CompactError::from(error);
                    if error.is_of_another() {
                        return error;
                    }
                    // The claim only saves work; what is published is held to the epoch.
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "can't renew the claim of a timeline"
                    );
                }
            }
        }
    }

    /// Makes the layers of a plan and puts them into the object store.
    async fn execute(
        &self,
        timeline: TimelineRef,
        plan: &Plan,
        epoch: CompactorEpoch,
    ) -> Result<Vec<LayerEntry>, CompactError> {
        let directory = StorePath::timeline(timeline.tenant, timeline.timeline).child("layers");
        let blocks = Arc::clone(&self.blocks);
        let files = LayerFiles::new(self.store.clone(), directory.clone(), blocks);
        let mut scans = Vec::with_capacity(plan.inputs.len());
        for entry in &plan.inputs {
            if let LayerKind::Delta(lsns) = entry.kind {
                scans.push(LayerScan::open(&files, entry, lsns).await?);
            }
        }
        let scans = Arc::new(scans);
        let cells = cut(&pieces(&scans), plan.lsns, self.policy.target);
        let writer = newest_writer(&plan.inputs);
        let mut layers: Vec<LayerEntry> = Vec::with_capacity(cells.len());
        self.activity.plan(cells.len());
        let last = cells.len().saturating_sub(1);
        for (at, cell) in cells.into_iter().enumerate() {
            let Merged { bytes, summary } = self.merged(&scans, cell, writer).await?;
            // Without any versions there must still be a layer that says so.
            if summary.entries == 0 && !(at == last && layers.is_empty()) {
                continue;
            }
            let layer = entry(&cell, &summary, writer, epoch, plan);
            tracing::debug!(%timeline, layer = layer.name, size = %layer.size, entries = layer.entries, "layer made");
            self.store
                .put_once(&directory.child(&layer.name), bytes.into())
                .await?;
            layers.push(layer);
            self.activity.wrote(layers.len());
        }
        Ok(layers)
    }

    /// The layer of a cell, made on a thread that may block: it takes a CPU for seconds.
    async fn merged(
        &self,
        scans: &Arc<Vec<LayerScan>>,
        cell: Cell,
        writer: WriterEpoch,
    ) -> Result<Merged, CompactError> {
        let scans = Arc::clone(scans);
        // Ends with this future, too: nobody would want what it makes.
        let token = self.scope.token().child_token();
        let guard = token.clone().drop_guard();
        let handle = Handle::current();
        let work = self
            .scope
            .spawn_blocking(move || handle.block_on(merge_until(&token, &scans, &cell, writer)));
        let merged = work.await.map_err(|_| CompactError::Panicked)?;
        drop(guard);
        merged
    }
}

async fn merge_until(
    token: &CancellationToken,
    scans: &[LayerScan],
    cell: &Cell,
    writer: WriterEpoch,
) -> Result<Merged, CompactError> {
    // Cancel-safe: it only reads.
    let merged = token.run_until_cancelled(merge(scans, cell, writer, token));
    merged.await.unwrap_or(Err(CompactError::Stopped))
}

async fn publish(
    manifests: &TimelineManifests,
    newest: &mut Versioned<TimelineManifest>,
    epoch: CompactorEpoch,
    plan: &Plan,
    layers: &[LayerEntry],
) -> Result<(), CompactError> {
    let replaced: Vec<_> = plan.inputs.iter().map(|layer| &layer.name).collect();
    let edit = |manifest: &mut TimelineManifest| {
        let is_there = |layer: &LayerEntry| layers.first().is_some_and(|it| it.name == layer.name);
        if manifest.layers().iter().any(is_there) {
            return Ok(false);
        }
        manifest.replace_layers(&replaced, layers.to_vec())?;
        manifest.compactor_claim = None;
        Ok::<_, InvalidManifestError>(true)
    };
    manifests.update(epoch, newest, edit).await?;
    Ok(())
}

fn pieces(scans: &[LayerScan]) -> Vec<Piece> {
    let blocks = scans.iter().flat_map(|scan| scan.index().entry_blocks());
    let piece = blocks.map(|block| Piece {
        first: block.first.0,
        last: block.last,
        size: ByteCount::new(block.stored_len.into()),
    });
    piece.collect()
}

/// What the manifest says of a layer that was made.
fn entry(
    cell: &Cell,
    summary: &DeltaLayerSummary,
    writer: WriterEpoch,
    epoch: CompactorEpoch,
    plan: &Plan,
) -> LayerEntry {
    let keys = match (summary.keys, plan.inputs.first()) {
        (Some(keys), _) => KeySpan {
            first: keys.first,
            last: keys.last,
        },
        // Any will do of a layer that has none.
        (None, Some(input)) => input.keys,
        (None, None) => KeySpan {
            first: palimpsest_types::Key::Parameters,
            last: palimpsest_types::Key::Parameters,
        },
    };
    let (after, up_to) = (cell.lsns.after.get(), cell.lsns.up_to.get());
    let random = rand::random::<u64>();
    LayerEntry {
        name: format!("delta-{after:016X}-{up_to:016X}-c{epoch}-{random:016x}"),
        kind: LayerKind::Delta(cell.lsns),
        keys,
        size: summary.size,
        entries: summary.entries,
        level: 1,
        epoch: writer,
    }
}

/// The generation of what a layer of all these has: readers take versions of one LSN for the same
/// only within a generation, so an older one would be wrong, and a newer one costs nothing.
fn newest_writer(layers: &[LayerEntry]) -> WriterEpoch {
    let epochs = layers.iter().map(|layer| layer.epoch);
    epochs.max().unwrap_or(WriterEpoch::FIRST)
}

fn total(layers: &[LayerEntry]) -> (usize, ByteCount) {
    let bytes = layers.iter().map(|layer| layer.size.get()).sum();
    (layers.len(), ByteCount::new(bytes))
}

/// How many layers are as they were written from WAL.
fn fresh(manifest: &TimelineManifest) -> i64 {
    let layers = manifest.layers().iter();
    let fresh =
        layers.filter(|layer| layer.level == 0 && matches!(layer.kind, LayerKind::Delta(_)));
    i64::try_from(fresh.count()).unwrap_or(i64::MAX)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests;
