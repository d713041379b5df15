//! Looking for what is to be compacted, and doing it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, TimelineState, TimelineView},
};
use palimpsest_layer::delta_file::{DeltaLayerSummary, EntryBlockSpan};
use palimpsest_manifest::{
    CompactorClaim, CompactorEpoch, InvalidManifestError, KeySpan, LayerEntry, LayerKind,
    TimelineManifest, TimelineManifests, Versioned,
};
use palimpsest_read::{BlockCache, LayerFiles, LayerScan};
use palimpsest_runtime::TaskScope;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{ByteCount, Lsn, WriterEpoch};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    activity::{Activity, Done},
    cut::{Cell, Piece, cut},
    error::CompactError,
    looks::Looks,
    merge::{Making, Merged, merge},
    metrics::CompactionMetrics,
    plan::{Plan, Policy, choose},
    uploads::Uploads,
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
    /// They remember what they have read of manifests.
    manifests: Mutex<HashMap<TimelineRef, TimelineManifests>>,
    /// Layers as they were written from WAL.
    backlogs: Mutex<HashMap<TimelineRef, i64>>,
    scope: TaskScope,
}

/// How long the timelines are left alone when there was nothing to do.
const LOOK: Duration = Duration::from_secs(2);
/// Who asks for a compaction hears so soon that another goes on.
const PATIENCE: Duration = Duration::from_secs(2);
/// A layer may become so many times as large as it should be, before it is cut smaller.
const SLACK: u64 = 3;
/// Layers are not cut for less than this because they would become too large.
const LEAST_TARGET: ByteCount = ByteCount::kib(16);
/// No layer is larger, whatever it has.
const MOST: ByteCount = ByteCount::gib(1);

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
            manifests: Mutex::default(),
            backlogs: Mutex::default(),
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

    /// Goes on until the scope's token is cancelled; what is half done then is left.
    pub async fn run(&self) {
        let token = self.scope.token().clone();
        let mut looks = Looks::default();
        while !token.is_cancelled() {
            let known = self.known();
            self.forget_but(&known);
            looks.retain(&known);
            let mut did = false;
            for (timeline, lsn) in known {
                if !looks.is_due(timeline, lsn, Instant::now()) {
                    continue;
                }
                let compact = async {
                    let _turn = self.turn.lock().await;
                    Box::pin(self.compact(timeline, &self.policy)).await
                };
                // Cancel-safe: files that nobody refers to may be left, as by a crash.
                let Some(outcome) = token.run_until_cancelled(compact).await else {
                    return;
                };
                did |= matches!(outcome, Ok(Some(_)));
                if let Err(error) = &outcome {
                    self.complain(timeline, error);
                }
                looks.note(timeline, lsn, &outcome, Instant::now());
            }
            if !did {
                // Cancel-safe: nothing is consumed.
                token.run_until_cancelled(sleep(LOOK)).await;
            }
        }
    }

    /// Compacts because somebody asks for it, whether they wait for it or not.
    ///
    /// # Errors
    /// If it came to nothing, in which case the timeline is as it was, or something else is compacted
    /// now.
    pub async fn compact_now(
        self: Arc<Self>,
        timeline: TimelineRef,
        policy: Policy,
    ) -> Result<Option<Done>, CompactError> {
        let (answer, answered) = oneshot::channel();
        let token = self.scope.token().clone();
        self.scope.clone().spawn("asked compaction", async move {
            let compact = async {
                // Whoever only looks is done by then.
                let turn = timeout(PATIENCE, self.turn.lock()).await;
                let _turn = turn.map_err(|_| CompactError::Busy)?;
                Box::pin(self.compact(timeline, &policy)).await
            };
            // Cancel-safe, as in [`Compactor::run`].
            if let Some(outcome) = token.run_until_cancelled(compact).await {
                if let Err(error) = &outcome {
                    self.complain(timeline, error);
                }
                // Whoever asked may have gone away.
                let _ = answer.send(outcome);
            }
        });
        answered.await.unwrap_or(Err(CompactError::Stopped))
    }

    fn complain(&self, timeline: TimelineRef, error: &CompactError) {
        if error.is_of_another() || matches!(error, CompactError::Busy) {
            tracing::debug!(%timeline, %error, "left alone");
            return;
        }
        self.metrics.failures.inc();
        let error = error as &dyn std::error::Error;
        tracing::warn!(%timeline, error, "compaction came to nothing; nothing is lost, trying again");
    }

    /// The timelines there are, and up to where their layers reach.
    fn known(&self) -> Vec<(TimelineRef, Lsn)> {
        let view = self.cluster.borrow();
        let alive = view.timelines.iter().filter(|view| !is_going(view));
        alive
            .map(|view| (view.timeline, view.status.remote_consistent))
            .collect()
    }

    /// Whether the storage-broker says that a timeline goes, or does not know it any more.
    fn is_deleted(&self, timeline: TimelineRef) -> bool {
        let view = self.cluster.borrow();
        // Without a picture nothing is known of anybody.
        let says = !view.timelines.is_empty();
        says && view.timeline(timeline).is_none_or(is_going)
    }

    fn forget_but(&self, known: &[(TimelineRef, Lsn)]) {
        let known: HashSet<_> = known.iter().map(|(timeline, _)| *timeline).collect();
        lock(&self.manifests).retain(|timeline, _| known.contains(timeline));
        lock(&self.backlogs).retain(|timeline, _| known.contains(timeline));
        self.note_backlog(None);
    }

    fn note_backlog(&self, of: Option<(TimelineRef, i64)>) {
        let mut backlogs = lock(&self.backlogs);
        backlogs.extend(of);
        let most = backlogs.values().copied().max();
        self.metrics.backlog.set(most.unwrap_or(0));
    }

    /// Compacts a timeline once, if anything is worth it and nobody else does.
    ///
    /// # Errors
    /// If it came to nothing; the timeline is as it was.
    async fn compact(
        &self,
        timeline: TimelineRef,
        policy: &Policy,
    ) -> Result<Option<Done>, CompactError> {
        let manifests = self.manifests(timeline);
        let Some(mut newest) = manifests.newest().await? else {
            return Ok(None);
        };
        self.note_backlog(Some((timeline, fresh(&newest.state))));
        if choose(newest.state.layers(), policy).is_none() {
            return Ok(None);
        }
        let epoch = self.claim(&manifests, &mut newest).await?;
        // Made anew from the manifest that has the claim: nobody else replaces layers of that.
        let Some(plan) = choose(newest.state.layers(), policy) else {
            return Ok(None);
        };
        let doing = self.activity.begin(timeline, total(&plan.inputs));
        let uploads = Uploads::default();
        let made = self.execute(timeline, &plan, epoch, &uploads);
        let renewing = self.renew(&manifests, newest.clone(), epoch);
        // Cancel-safe: what was uploaded is known.
        let made = tokio::select! {
            made = made => made,
            error = renewing => Err(error),
        };
        let layers = match made {
            Ok(layers) => layers,
            Err(error) => {
                uploads.remove(&self.store).await;
                return Err(error);
            }
        };
        publish(&manifests, &mut newest, epoch, &plan, &layers).await?;
        let done = doing.end(total(&layers));
        self.metrics.note(&done);
        tracing::info!(%timeline, layers = done.read.0, bytes = %done.read.1, by = done.written.0, of = %done.written.1, took = ?done.took, "compacted");
        Ok(Some(done))
    }

    fn manifests(&self, timeline: TimelineRef) -> TimelineManifests {
        let TimelineRef {
            tenant,
            timeline: id,
        } = timeline;
        let mut known = lock(&self.manifests);
        let manifests = known.entry(timeline);
        let make = || TimelineManifests::new(self.store.clone(), tenant, id);
        manifests.or_insert_with(make).clone()
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
        uploads: &Uploads,
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
        let pieces = pieces(&plan.inputs, &scans);
        let mut target = self.policy.target;
        loop {
            let cells = cut(&pieces, plan.lsns, target);
            self.activity.plan(cells.len());
            let making = Making {
                epoch: newest_writer(&plan.inputs),
                most: most(self.policy.target, target),
            };
            let mut layers = Vec::with_capacity(cells.len());
            let made = async {
                let last = cells.len().saturating_sub(1);
                for (at, cell) in cells.iter().enumerate() {
                    let merged = self.merged(&scans, *cell, making).await?;
                    // Without any versions there must still be a layer that says so.
                    if merged.summary.entries == 0 && !(at == last && layers.is_empty()) {
                        continue;
                    }
                    if self.is_deleted(timeline) {
                        return Err(CompactError::Deleted);
                    }
                    let layer = entry(cell, &merged.summary, making.epoch, epoch, plan);
                    tracing::debug!(%timeline, layer = layer.name, size = %layer.size, entries = layer.entries, "layer made");
                    let path = directory.child(&layer.name);
                    uploads.add(&path);
                    self.store.put_once(&path, merged.bytes.into()).await?;
                    layers.push(layer);
                    self.activity.wrote(layers.len());
                }
                // What was put there while all was being deleted would stay.
                match self.is_deleted(timeline) {
                    true => Err(CompactError::Deleted),
                    false => Ok(()),
                }
            };
            match made.await {
                Ok(()) => return Ok(layers),
                // The index told too little: of records that many versions share, or of how well they
                // are compressed.
                Err(CompactError::TooLarge { .. }) if target > LEAST_TARGET => {
                    target = ByteCount::new(target.get() / 2);
                    uploads.remove(&self.store).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The layer of a cell, made on a thread that may block: it takes a CPU for seconds.
    async fn merged(
        &self,
        scans: &Arc<Vec<LayerScan>>,
        cell: Cell,
        making: Making,
    ) -> Result<Merged, CompactError> {
        let scans = Arc::clone(scans);
        // Ends with this future, too: nobody would want what it makes.
        let token = self.scope.token().child_token();
        let guard = token.clone().drop_guard();
        let handle = Handle::current();
        let work = self
            .scope
            .spawn_blocking(move || handle.block_on(merge_until(&token, &scans, &cell, making)));
        let merged = work.await.map_err(CompactError::Panicked)?;
        drop(guard);
        merged
    }
}

async fn merge_until(
    token: &CancellationToken,
    scans: &[LayerScan],
    cell: &Cell,
    making: Making,
) -> Result<Merged, CompactError> {
    // Cancel-safe: it only reads.
    let merged = token.run_until_cancelled(merge(scans, cell, making));
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

/// How large a layer may become that is cut for `target`, which may be less by now than it should be. What
/// can't be cut any smaller, as one huge record, is written as it is.
fn most(should_be: ByteCount, target: ByteCount) -> ByteCount {
    match target > LEAST_TARGET {
        true => ByteCount::new(should_be.get().saturating_mul(SLACK)),
        false => MOST,
    }
}

/// What there is in layers, by their indexes. Records that versions share are in no block of theirs, so
/// each block counts for a part of all that its layer has.
fn pieces(entries: &[LayerEntry], scans: &[LayerScan]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (entry, scan) in entries.iter().zip(scans) {
        let stored = |blocks: EntryBlockSpan| u64::from(blocks.stored_len);
        let own: u64 = scan.index().entry_blocks().map(stored).sum();
        for block in scan.index().entry_blocks() {
            let part = u128::from(stored(block)) * u128::from(entry.size.get());
            let size = part / u128::from(own.max(1));
            pieces.push(Piece {
                first: block.first.0,
                last: block.last,
                size: ByteCount::new(u64::try_from(size).unwrap_or(u64::MAX)),
            });
        }
    }
    pieces
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
        level: plan.level,
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

/// Whether a timeline is on its way out.
fn is_going(view: &TimelineView) -> bool {
    matches!(
        view.status.state,
        TimelineState::Deleting | TimelineState::Deleted
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests;
