//! One timeline, from its assignment to its end.

use std::{
    future::pending,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex as StdMutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use palimpsest_api::{
    TimelineRef,
    broker::{Assignment, LeavingWriter, LogicalSize, Promotion, TimelineState, TimelineStatus},
    tenant_settings::TenantSettings,
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
use palimpsest_wal::SegmentSize;
use tokio::{
    sync::{Mutex, mpsc::UnboundedReceiver, watch},
    task::JoinHandle,
};

use super::{
    archive, attach,
    back_off::BackOff,
    decoder::Decoder,
    error::{IngestError, Remedy, Stop},
    file_work::FileWork,
    flush,
    growth::Growth,
    keeper::Duty,
    laggard::{Beginning, LocalHistory},
    local_layers::LocalLayers,
    node::{Limits, Shared},
    reattach,
    replay::replay,
    set_back, slotless,
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
    /// What its tenant has set.
    settings: StdMutex<TenantSettings>,
    status: watch::Sender<TimelineStatus>,
    /// Nothing has come to the local disk since it was connected.
    is_fresh: AtomicBool,
    opened: RwLock<Option<Arc<Opened>>>,
    warnings: StdMutex<Warnings>,
    /// The cluster, once a slot there may be ours.
    source: StdMutex<Option<SourceCluster>>,
    /// The slot was dropped on purpose.
    slotless: AtomicBool,
    /// By us, because it kept too much; since then there was none.
    dropped: AtomicBool,
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

mod guarding;
mod recovering;
mod take_over;
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
            settings: StdMutex::new(assignment.settings),
            assignment,
            slot,
            shared,
            work: FileWork::new(scope.clone()),
            scope,
            status,
            is_fresh: AtomicBool::new(false),
            opened: RwLock::default(),
            warnings: StdMutex::default(),
            source: StdMutex::default(),
            slotless: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
            superseded: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            switch: StdMutex::default(),
            later: watch::Sender::default(),
        }
    }

    pub(super) fn id(&self) -> TimelineRef {
        self.assignment.timeline
    }

    /// Its tenant has set these.
    pub(super) fn set_settings(&self, settings: TenantSettings) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// What holds for it at the moment.
    pub(super) fn limits(&self) -> Limits {
        let set = *self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.limits.of_tenant(&set)
    }

    pub(super) fn status(&self) -> TimelineStatus {
        self.status.borrow().clone()
    }

    /// Another state, and the first WAL after that, are told soon, as somebody may wait for them; what comes after that is told
    /// when it is time.
    pub(super) fn update(&self, change: impl FnOnce(&mut TimelineStatus)) {
        let mut is_news = false;
        self.status.send_modify(|status| {
            let (state, flushed) = (status.state, status.flushed);
            change(status);
            if status.state != state {
                self.is_fresh.store(true, Ordering::Relaxed);
                is_news = true;
            } else if status.flushed > flushed {
                is_news = self.is_fresh.swap(false, Ordering::Relaxed);
            }
        });
        if is_news {
            self.shared.broker.tell_soon();
        }
    }

    /// WAL is decoded up to here; and how large the databases are, if that was added up.
    pub(super) fn note_decoded(&self, last_record: Lsn, size: Option<LogicalSize>) {
        self.update(|status| {
            status.last_record = last_record;
            status.logical_size = size.or(status.logical_size.take());
        });
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

    /// Ends the feeds: what comes next is not of this writer.
    pub(super) fn close(&self) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether all that is here is in the object store, before something else goes on.
    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Whether somebody has asked that it goes on from a base backup, and nobody has done it yet.
    pub(super) fn is_to_reattach(&self, manifest: &TimelineManifest) -> bool {
        let asked = self.assignment.reattach;
        asked.is_some_and(|asked| !manifest.was_reread_after(asked.after))
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
        archive::tidy(self).await;
        loop {
            // Boxed: its state is large, and starts anew with each turn.
            let error = match Box::pin(self.run_once()).await {
                End::Left => return,
                End::Renewed(switch) => {
                    if let Some(switch) = switch {
                        let mut known = self.switch.lock().unwrap_or_else(PoisonError::into_inner);
                        *known = Some(switch);
                    }
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
                            IngestError::Stop(stop) if self.is_lost_with_slot(stop) => {
                                self.reattach_by_itself().await;
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
            Some(Err(error)) => {
                return match self.note_set_back(&error).await {
                    true => End::Stop(error),
                    false => End::Left,
                };
            }
            None => return End::Left,
        };
        let source = resumed.manifest.source;
        let manifest = &resumed.manifest;
        let is_renewed = self.successor(manifest).is_some() || self.is_to_reattach(manifest);
        let working = async {
            // Cancel-safe: what was decoded is in the tail, and the rest is decoded by the next start.
            let resumed = match leaving.run_until_cancelled(replay(self, resumed)).await {
                Some(Ok(resumed)) => resumed,
                Some(Err(error)) if error.remedy() != Remedy::GiveUp => return End::Reopen(error),
                Some(Err(error)) => return End::Stop(error),
                None => return End::Left,
            };
            match is_renewed {
                true => End::Renewed(None),
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
            End::Stop(error) => {
                if !self.note_set_back(error).await {
                    return End::Left;
                }
                self.stop(error);
            }
            End::Renewed(_) | End::Left => {}
        }
        // What has come until now is history that the object store is to have. Who leaves gives it
        // no more than a limited time, and the slot is not looked after meanwhile.
        opened.growth.freeze();
        let flushed = async {
            match end {
                End::Left => self.flushed().await,
                // The slot is at a server whose history is not read yet.
                End::Renewed(Some(_)) | End::Stop(IngestError::Stop(Stop::Left(_))) => {
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

    /// Remembers that the source was set back, if an error says so, before anybody hears that it has stopped. False if the
    /// node leaves before it is done: whoever goes on sees the same.
    async fn note_set_back(&self, error: &IngestError) -> bool {
        if !set_back::tells(error) {
            return true;
        }
        let reason = error.in_words();
        self.update(|status| {
            status.state = TimelineState::Disconnected;
            status.reason = reason;
        });
        let remembering = self.guarding_as(Duty::Guard, set_back::remember(self));
        let leaving = &self.shared.leaving;
        leaving.run_until_cancelled(remembering).await.is_some()
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

    /// What can't be done at the moment is tried again; an attach that fails and was undone is not.
    async fn prepare(&self) -> Result<Prepared, IngestError> {
        let mut back_off = BackOff::default();
        loop {
            let newest = match slotless::remember(self).await {
                Ok(()) => self.manifests().newest().await.map_err(IngestError::from),
                Err(error) => Err(error),
            };
            let outcome = match newest {
                Ok(Some(manifest)) if self.is_to_reattach(&manifest.state) && self.is_settled() => {
                    // Boxed: its state is large, and needed seldom.
                    match Box::pin(reattach::reattach(self, manifest)).await {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    }
                }
                Ok(Some(manifest)) => {
                    let source = manifest.state.source;
                    let id = |successor: take_over::Successor| successor.cluster.system_identifier;
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
