//! One timeline, from its assignment to its end.

use std::{
    future::pending,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use palimpsest_api::{
    TimelineRef,
    broker::{Assignment, LeavingWriter, LogicalSize, Promotion, TimelineState, TimelineStatus},
};
use palimpsest_layer::OpenLayer;
use palimpsest_manifest::{
    ManifestError, SourceCluster, TimelineManifest, TimelineManifests, Versioned,
};
use palimpsest_postgres::{SlotName, Tli};
use palimpsest_read::{StoredError, Tail};
use palimpsest_runtime::{CancellationToken, TaskScope};
use palimpsest_store::StorePath;
use palimpsest_types::{Lsn, WriterEpoch};
use palimpsest_wal::{LogIdentity, SegmentSize};
use tokio::{
    sync::{Mutex, mpsc::UnboundedReceiver, watch},
    task::JoinHandle,
};

use super::{
    attach,
    back_off::BackOff,
    decoder::Decoder,
    error::{IngestError, Remedy, Stop},
    file_work::FileWork,
    flush,
    growth::Growth,
    keeper::{self, Duty},
    laggard::{Beginning, LocalHistory},
    local_layers::LocalLayers,
    node::Shared,
    replay::replay,
    slotless,
    stream::{self, End},
    subscribers::Subscribers,
    succession::Switch,
    wal_files::{WalFiles, WalReader, WalTrim},
    warnings::{Topic, Warnings},
};

/// What the node and the feed know of a timeline.
#[derive(Debug)]
pub(super) struct Timeline {
    pub(super) assignment: Assignment,
    pub(super) slot: SlotName,
    pub(super) shared: Arc<Shared>,
    /// Its tasks, which all end before another takes over from them on this node.
    scope: TaskScope,
    /// Blocking work on the local files, which ends before they are opened again.
    work: FileWork,
    /// Kept, because it remembers what it has read.
    manifests: TimelineManifests,
    status: watch::Sender<TimelineStatus>,
    opened: RwLock<Option<Arc<Opened>>>,
    warnings: StdMutex<Warnings>,
    /// The cluster, once a slot there may be ours.
    source: StdMutex<Option<SourceCluster>>,
    /// The slot was dropped on purpose.
    slotless: AtomicBool,
    superseded: AtomicBool,
    /// All of an earlier cluster's WAL that is here is in the object store.
    settled: AtomicBool,
    /// What comes after the PostgreSQL timeline that was read to its end.
    switch: StdMutex<Option<Switch>>,
    /// The PostgreSQL timeline of a later primary than the one that is read, until that is looked at.
    later: watch::Sender<Option<Tli>>,
}

/// A timeline that this node has taken over.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) epoch: WriterEpoch,
    /// Where the history that this writer tells begins.
    pub(super) epoch_start: Lsn,
    pub(super) growth: Arc<Growth>,
    pub(super) local_layers: LocalLayers,
    pub(super) wal: WalTrim,
    wal_reader: WalReader,
    segment_size: SegmentSize,
    /// Where the local WAL can be decoded from, for those who are behind.
    pub(super) beginning: Arc<Beginning>,
    /// The manifest as we know it; only the flush changes it.
    pub(super) manifest: Mutex<Versioned<TimelineManifest>>,
    /// Ends the feeds when this is dropped: nothing comes to its tail any more.
    over: CancellationToken,
}

/// A timeline that is ready to read more WAL.
pub(super) struct Resumed {
    pub(super) manifest: TimelineManifest,
    pub(super) files: WalFiles,
    pub(super) decoder: Decoder,
}

/// Who writes a timeline from an LSN on.
#[derive(Debug, Clone, Copy)]
struct Successor {
    cluster: SourceCluster,
    begin: Lsn,
}

/// What the change feed tells of a timeline.
#[derive(Debug)]
pub(super) struct Feed {
    /// Generation of the writer.
    pub(super) epoch: WriterEpoch,
    /// Where its history begins.
    pub(super) epoch_start: Lsn,
    /// The newest changes.
    pub(super) tail: Arc<Tail>,
    /// The changes before those.
    pub(super) history: LocalHistory,
    /// Who follows it.
    pub(super) subscribers: Subscribers,
    /// Cancelled when nothing more will come.
    pub(super) over: CancellationToken,
}

#[cfg(test)]
mod tests;

type Prepared = (Arc<Opened>, Resumed, UnboundedReceiver<Arc<OpenLayer>>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl Timeline {
    pub(super) fn new(
        assignment: Assignment,
        slot: SlotName,
        shared: Arc<Shared>,
        scope: TaskScope,
    ) -> Self {
        let (status, _) = watch::channel(TimelineStatus::default());
        let TimelineRef { tenant, timeline } = assignment.timeline;
        let manifests = TimelineManifests::new(shared.store.clone(), tenant, timeline);
        Self {
            manifests,
            assignment,
            slot,
            shared,
            work: FileWork::new(scope.clone()),
            scope,
            status,
            opened: RwLock::default(),
            warnings: StdMutex::default(),
            source: StdMutex::default(),
            slotless: AtomicBool::new(false),
            superseded: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            switch: StdMutex::default(),
            later: watch::Sender::default(),
        }
    }

    pub(super) fn id(&self) -> TimelineRef {
        self.assignment.timeline
    }

    pub(super) fn status(&self) -> TimelineStatus {
        self.status.borrow().clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut TimelineStatus)) {
        self.status.send_modify(change);
    }

    /// WAL is decoded up to here; and how large the databases are, if that was added up.
    pub(super) fn note_decoded(&self, last_record: Lsn, size: Option<LogicalSize>) {
        self.update(|status| {
            status.last_record = last_record;
            status.logical_size = size.or(status.logical_size.take());
        });
    }

    /// A primary on a later PostgreSQL timeline than the one that is read was seen.
    pub(super) fn note_later(&self, found: Tli) {
        self.later.send_replace(Some(found));
    }

    /// What was seen before is not to be waited for: whoever is read from now on was found among all.
    pub(super) fn forget_later(&self) {
        self.later.send_replace(None);
    }

    /// Waits until a primary on a later PostgreSQL timeline than this one is seen.
    pub(super) async fn later_than(&self, read_from: Tli) -> Tli {
        let mut seen = self.later.subscribe();
        let is_later = |found: &Option<Tli>| found.is_some_and(|found| found > read_from);
        // It can't fail: the sender is ours.
        let found = seen.wait_for(is_later).await;
        found.map_or(read_from, |found| found.unwrap_or(read_from))
    }

    /// Says in the status what is to be said about a topic from now on; whether that is news.
    pub(super) fn warn(&self, topic: Topic, texts: Vec<String>) -> bool {
        let mut warnings = (self.warnings.lock()).unwrap_or_else(PoisonError::into_inner);
        let news = warnings.set(topic, texts);
        if news {
            self.update(|status| status.warnings = warnings.all());
        }
        news
    }

    /// Says in the status what of the local WAL was damaged and has not come again.
    pub(super) fn warn_of_damage(&self, files: &WalFiles) {
        let damaged = files.awaited().map(|(directory, end)| {
            let directory = directory.display();
            format!(
                "the WAL on our own disk was damaged; it is read again from the source, and what there \
                 is of it is kept in {directory} until all before {end} has come"
            )
        });
        self.warn(Topic::LocalWal, damaged.collect());
    }

    /// The changes in memory, once the timeline was taken over.
    pub(super) fn growth(&self) -> Option<Arc<Growth>> {
        Some(Arc::clone(&self.opened()?.growth))
    }

    fn opened(&self) -> Option<Arc<Opened>> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        opened.clone()
    }

    /// What subscribers are told, once the timeline was taken over.
    pub(super) fn feed(self: &Arc<Self>) -> Option<Feed> {
        let opened = self.opened()?;
        let history = LocalHistory {
            wal: opened.wal_reader.clone(),
            segment_size: opened.segment_size,
            beginning: Arc::clone(&opened.beginning),
            places: Arc::clone(&self.shared.laggards),
            scope: self.scope.clone(),
            timeline: Arc::downgrade(self),
        };
        Some(Feed {
            epoch: opened.epoch,
            epoch_start: opened.epoch_start,
            tail: Arc::clone(opened.growth.tail()),
            history,
            subscribers: opened.growth.subscribers().clone(),
            over: opened.over.clone(),
        })
    }

    /// Starts blocking work on the local files.
    pub(super) fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.work.spawn(work)
    }

    /// The slot at this cluster may be ours from now on.
    pub(super) fn note_source(&self, source: SourceCluster) {
        *self.lock_source() = Some(source);
    }

    /// No slot is ours there any more.
    pub(super) fn forget_source(&self) {
        *self.lock_source() = None;
    }

    fn lock_source(&self) -> MutexGuard<'_, Option<SourceCluster>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wal_directory(&self) -> PathBuf {
        self.directory().join("pg_wal")
    }

    /// Everything local of this timeline.
    pub(super) fn directory(&self) -> PathBuf {
        let TimelineRef { tenant, timeline } = self.id();
        self.shared
            .directory
            .join(tenant.to_string())
            .join(timeline.to_string())
    }

    pub(super) fn store_path(&self) -> StorePath {
        let TimelineRef { tenant, timeline } = self.id();
        StorePath::timeline(tenant, timeline)
    }

    pub(super) fn manifests(&self) -> &TimelineManifests {
        &self.manifests
    }

    /// Attaches or takes over, then reads WAL until something can't be mended or the node leaves.
    pub(super) async fn run(&self) {
        let leaving = &self.shared.leaving;
        let mut back_off = BackOff::default();
        loop {
            // Boxed: its state is large, and starts anew with each turn.
            let error = match Box::pin(self.run_once()).await {
                End::Left => return,
                End::Renewed => {
                    self.settled.store(true, Ordering::Relaxed);
                    self.work.finished().await;
                    continue;
                }
                End::Switched(switch) => {
                    *self.switch.lock().unwrap_or_else(PoisonError::into_inner) = Some(switch);
                    self.settled.store(true, Ordering::Relaxed);
                    self.work.finished().await;
                    continue;
                }
                End::Stop(error) => {
                    self.stop(&error);
                    let handing = async {
                        match &error {
                            IngestError::Stop(Stop::Left(promotion)) => {
                                self.hand_over(*promotion).await;
                            }
                            _ => pending().await,
                        }
                    };
                    let ended = async {
                        // Cancel-safe: a visit to the slot is repeated by whoever has it next.
                        tokio::select! {
                            () = handing => {}
                            // Whatever becomes of the slot, handing over goes on.
                            () = async { self.guard_slot(&error).await; pending().await } => {}
                        }
                    };
                    // Boxed: its state is large, and needed once in the timeline's life.
                    leaving.run_until_cancelled(Box::pin(ended)).await;
                    return;
                }
                End::Reopen(error) => error,
            };
            let reason = error.in_words();
            tracing::error!(timeline = %self.id(), reason, "local files failed; taking the timeline over again");
            self.update(|status| {
                status.state = TimelineState::Disconnected;
                status.reason = reason;
            });
            let pause = async {
                // A flush that was dropped may be writing still.
                self.work.finished().await;
                self.guarding(back_off.wait()).await;
            };
            if leaving.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn run_once(&self) -> End {
        let leaving = &self.shared.leaving;
        // Cancel-safe: an attach that is cut off begins anew, and a take-over is repeated.
        let (opened, resumed, frozen) = match leaving.run_until_cancelled(self.prepare()).await {
            Some(Ok(prepared)) => prepared,
            Some(Err(error)) => return End::Stop(error),
            None => return End::Left,
        };
        let source = resumed.manifest.source;
        let is_renewed = self.successor(&resumed.manifest).is_some();
        let working = async {
            // Cancel-safe: what was decoded is in the tail, and the rest is decoded by the next start.
            let resumed = match leaving.run_until_cancelled(replay(self, resumed)).await {
                Some(Ok(resumed)) => resumed,
                Some(Err(error)) if error.remedy() != Remedy::GiveUp => return End::Reopen(error),
                Some(Err(error)) => return End::Stop(error),
                None => return End::Left,
            };
            match is_renewed {
                true => End::Renewed,
                false => stream::run(self, resumed).await,
            }
        };
        let working = async {
            tokio::select! {
                end = working => end,
                stop = slotless::follow(self, &source), if !is_renewed => End::Stop(stop.into()),
            }
        };
        let mut flushing = pin!(flush::run(self, &opened, frozen));
        // Cancel-safe: the WAL files have what the flush has not done, WAL that was not fsynced was
        // not acknowledged, and the slot is where the last visit moved it.
        let end = tokio::select! {
            end = working => end,
            Err(error) = &mut flushing => return End::Stop(error),
        };
        match &end {
            End::Reopen(_) => return end,
            End::Stop(error) => self.stop(error),
            End::Renewed | End::Switched(_) | End::Left => {}
        }
        // What has come until now is history that the object store is to have. Who leaves gives it
        // no more than a limited time, and the slot is not looked after meanwhile.
        opened.growth.freeze();
        let flushed = async {
            match end {
                End::Left => self.flushed().await,
                // The slot is at a server whose history is not read yet.
                End::Switched(_) | End::Stop(IngestError::Stop(Stop::Left(_))) => {
                    self.guarding_as(Duty::Guard, self.flushed()).await;
                }
                _ => self.guarding(self.flushed()).await,
            }
        };
        tokio::select! {
            Err(error) = &mut flushing => End::Stop(error),
            () = flushed => end,
        }
    }

    /// Waits until the object store has all that was decoded.
    async fn flushed(&self) {
        let has_all = |status: &TimelineStatus| status.remote_consistent >= status.last_record;
        // It can't fail: the sender is ours.
        let _ = self.status.subscribe().wait_for(has_all).await;
    }

    /// Has another timeline read from the server that was promoted, once the object store has all that is here.
    /// Returns when that is so; never if it is refused.
    async fn hand_over(&self, promotion: Promotion) {
        self.flushed().await;
        let writer = LeavingWriter {
            timeline: self.id(),
            epoch: self.status().epoch,
        };
        let mut back_off = BackOff::default();
        loop {
            // Before anybody else begins: the storage-broker takes this timeline away when it has answered.
            let handed = match self.remove_directory().await {
                Ok(()) => {
                    let asked = self.shared.broker.follow_promotion(writer, promotion);
                    asked.await.map_err(IngestError::from)
                }
                Err(error) => Err(error),
            };
            let error = match handed {
                Ok(next) => {
                    tracing::info!(timeline = %self.id(), %next, at = %promotion.at, "another timeline goes on with the source's history");
                    return;
                }
                Err(error) => error,
            };
            let reason = error.in_words();
            let is_final = error.remedy() == Remedy::GiveUp;
            tracing::warn!(timeline = %self.id(), reason, is_final, "can't have the source's history read on another timeline");
            self.update(|status| {
                status.reason = format!("{}; {reason}", Stop::Left(promotion));
            });
            if is_final {
                return pending().await;
            }
            back_off.wait().await;
        }
    }

    /// A timeline that has stopped still has a slot, which must not fill the source's disk.
    async fn guard_slot(&self, error: &IngestError) {
        let Some(source) = *self.lock_source() else {
            return;
        };
        let mut duty = keeper::duty_after(error);
        while let Some(held) = duty {
            let end = IngestError::from(keeper::run(self, &source, held).await);
            let next = keeper::duty_after(&end);
            if (held, next) == (Duty::Guard, Some(Duty::Guard)) {
                // It is gone, as was said already.
                return;
            }
            self.warn_of_slot(&end);
            duty = next.filter(|next| *next != held);
        }
    }

    /// Waits for something, and looks after the slot meanwhile, if there may be one.
    pub(super) async fn guarding<T>(&self, waiting: impl Future<Output = T>) -> T {
        // A slot that is there again, or still, may keep too much.
        let duty = match self.is_slotless() {
            true => Duty::Guard,
            false => Duty::Follow,
        };
        self.guarding_as(duty, waiting).await
    }

    async fn guarding_as<T>(&self, duty: Duty, waiting: impl Future<Output = T>) -> T {
        let mut waiting = pin!(waiting);
        let source = *self.lock_source();
        if let Some(source) = source {
            // Cancel-safe: `waiting` stays, and the next visit does what this one has not.
            let stop = tokio::select! {
                done = &mut waiting => return done,
                stop = keeper::run(self, &source, duty) => stop,
            };
            if duty == Duty::Follow {
                self.warn_of_slot(&stop.into());
            }
        }
        waiting.await
    }

    /// The slot is not what it was, while something else goes on or has ended.
    fn warn_of_slot(&self, end: &IngestError) {
        let reason = end.in_words();
        tracing::error!(timeline = %self.id(), reason, "the slot");
        self.warn(Topic::Slot, vec![reason]);
    }

    /// Whether the timeline goes on without a slot, which was dropped to save the source's disk.
    pub(super) fn is_slotless(&self) -> bool {
        self.slotless.load(Ordering::Relaxed)
    }

    pub(super) fn note_slotless(&self, slotless: bool) {
        self.slotless.store(slotless, Ordering::Relaxed);
    }

    /// Whether this writer ended because another took over.
    pub(super) fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Relaxed)
    }

    /// What can't be done at the moment is tried again; an attach that fails and was undone is not.
    async fn prepare(&self) -> Result<Prepared, IngestError> {
        let mut back_off = BackOff::default();
        loop {
            let newest = match slotless::remember(self).await {
                Ok(()) => self.manifests().newest().await.map_err(IngestError::from),
                Err(error) => Err(error),
            };
            let outcome = match newest {
                Ok(Some(manifest)) => {
                    let source = manifest.state.source;
                    let id = |successor: Successor| successor.cluster.system_identifier;
                    match self.successor(&manifest.state).map(id) {
                        // What is told of the timeline so far is not about the slot there.
                        Some(id) if id != source.system_identifier => self.forget_source(),
                        Some(_) | None => self.note_source(source),
                    }
                    // Boxed: its state is large, and needed once.
                    Box::pin(self.take_over(manifest)).await
                }
                // It is deleted, or is to be.
                Ok(None) if self.assignment.writer.is_some() => Err(ManifestError::Gone.into()),
                Ok(None) => {
                    self.update(|status| status.state = TimelineState::Attaching);
                    // Boxed: its state is large, and needed once in the timeline's life.
                    Box::pin(attach::attach(self)).await?;
                    continue;
                }
                Err(error) => Err(error),
            };
            match outcome {
                Err(error) if error.remedy() != Remedy::GiveUp => {
                    let reason = error.in_words();
                    // Its writer has been told, and needs some seconds.
                    let reason = match &error {
                        IngestError::Stored(StoredError::Behind { .. }) => {
                            tracing::info!(timeline = %self.id(), reason, "waiting for what the branch begins on");
                            format!("waiting for what the branch begins on: {reason}")
                        }
                        _ => {
                            tracing::warn!(timeline = %self.id(), reason, "can't resume the timeline; trying again");
                            format!("can't resume, trying again: {reason}")
                        }
                    };
                    self.update(|status| {
                        status.state = TimelineState::Resuming;
                        status.reason = reason;
                    });
                    self.guarding(back_off.wait()).await;
                }
                Ok(prepared) => {
                    let manifest = &prepared.1.manifest;
                    if self.successor(manifest).is_none() {
                        self.note_source(manifest.source);
                    }
                    return Ok(prepared);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the timeline over under a new epoch.
    async fn take_over(
        &self,
        newest: Versioned<TimelineManifest>,
    ) -> Result<Prepared, IngestError> {
        let taken = self.taken(newest).await?;
        let manifest = taken.state.clone();
        let (epoch, start) = (manifest.writer_epoch, manifest.lsn);
        let interpreter = self.interpreter(&manifest).await?;
        let beginning = Beginning::new(start, interpreter.clone());
        let tail = Arc::new(Tail::new(epoch, start));
        let limits = &self.shared.limits;
        let share = self.shared.budget.share();
        let (growth, frozen) = Growth::new(tail, share, limits.layer_size);
        let growth = Arc::new(growth);
        let segment_size = SegmentSize::new(manifest.source.wal_segment_size.get())
            .unwrap_or(SegmentSize::DEFAULT);
        let decoder = Decoder::new(start, segment_size, interpreter, Arc::clone(&growth));
        let decoder = decoder.of(LogIdentity {
            system_identifier: manifest.source.system_identifier,
            timeline: manifest.source.pg_timeline,
        });
        let disk = Arc::clone(&self.shared.disk);
        let (wal, layers) = (self.wal_directory(), self.directory().join("layers"));
        let pg_timeline = manifest.source.pg_timeline;
        let work = self.work.clone();
        let opening = self.spawn_blocking(move || {
            let local_layers = LocalLayers::prepare(Arc::clone(&disk), layers, work)?;
            let files = WalFiles::open(disk, wal, segment_size, pg_timeline, start)?;
            Ok::<_, IngestError>((local_layers, files))
        });
        let opening = opening.await.map_err(|error| self.wal_failed(error))?;
        let (local_layers, files) = opening?;
        growth.share().set_wal(files.size());
        let opened = Arc::new(Opened {
            epoch,
            epoch_start: start,
            growth,
            local_layers,
            wal: files.trim(),
            wal_reader: files.reader(),
            segment_size,
            beginning: Arc::new(beginning),
            manifest: Mutex::new(taken),
            over: self.scope.token().child_token(),
        });
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&opened));
        self.update(|status| {
            status.reason.clear();
            status.epoch = epoch;
            status.disk_consistent = start;
            status.remote_consistent = start;
            status.oldest_readable = manifest.oldest_readable;
            status.last_record = start;
        });
        tracing::info!(timeline = %self.id(), %epoch, at = %start, "timeline taken over");
        let resumed = Resumed {
            manifest,
            files,
            decoder,
        };
        Ok((opened, resumed, frozen))
    }

    /// The manifest under a new epoch, and of the cluster that goes on where it ends, if that is another.
    async fn taken(
        &self,
        newest: Versioned<TimelineManifest>,
    ) -> Result<Versioned<TimelineManifest>, IngestError> {
        let Some(successor) = self.successor(&newest.state) else {
            return Ok(self.manifests().take_over(newest).await?);
        };
        let (Successor { cluster, begin }, end) = (successor, newest.state.lsn);
        if begin >= end && !self.settled.load(Ordering::Relaxed) {
            // First what is here of the earlier one: it may be acknowledged.
            return Ok(self.manifests().take_over(newest).await?);
        }
        if begin != end {
            return Err(Stop::NotTheEnd { end, begin }.into());
        }
        // All that was history of it is in the object store.
        self.remove_directory().await?;
        if cluster.system_identifier == newest.state.source.system_identifier {
            slotless::after_promotion(self).await?;
        }
        let manifests = self.manifests();
        let taken = manifests.take_over_from(newest, (cluster, begin)).await?;
        let SourceCluster {
            system_identifier,
            pg_timeline,
            ..
        } = cluster;
        tracing::info!(timeline = %self.id(), cluster = %system_identifier, pg_timeline, at = %end, "another history goes on");
        Ok(taken)
    }

    /// Who writes the timeline where what the manifest tells of ends, if that is another than it says.
    fn successor(&self, manifest: &TimelineManifest) -> Option<Successor> {
        let source = manifest.source;
        let switch = *self.switch.lock().unwrap_or_else(PoisonError::into_inner);
        let promoted = switch.map(|Switch { at, next }| Successor {
            begin: at,
            cluster: SourceCluster {
                pg_timeline: next,
                ..source
            },
        });
        let writer = self.assignment.writer.map(|writer| Successor {
            begin: writer.begin,
            cluster: SourceCluster {
                system_identifier: writer.system_identifier,
                pg_timeline: writer.pg_timeline,
                ..source
            },
        });
        // Where the manifest is, or beyond, nothing succeeds any more: who was promoted since has a later number.
        let later = |successor: &Successor| {
            let cluster = successor.cluster;
            cluster.system_identifier != source.system_identifier
                || cluster.pg_timeline > source.pg_timeline
        };
        writer.filter(later).or(promoted.filter(later))
    }

    pub(super) fn wal_failed(&self, error: tokio::task::JoinError) -> IngestError {
        IngestError::WalFile {
            path: self.wal_directory(),
            source: std::io::Error::other(error),
        }
    }

    /// The end of the road: says why.
    pub(super) fn stop(&self, error: &IngestError) {
        if let IngestError::Stop(Stop::Superseded) = error {
            self.superseded.store(true, Ordering::Relaxed);
        }
        let reason = error.in_words();
        tracing::error!(timeline = %self.id(), reason, "timeline stopped");
        self.update(|status| {
            status.state = TimelineState::Stopped;
            status.reason = reason;
        });
    }
}
