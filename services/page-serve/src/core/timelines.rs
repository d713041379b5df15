use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, TimelineView},
    redo::{RedoPool, TenantRedo},
};
use palimpsest_read::{BlockCache, PageCache, TimelineReader};
use palimpsest_runtime::TaskScope;
use palimpsest_store::ObjectStore;
use palimpsest_telemetry::Sample;
use palimpsest_types::{ByteCount, TenantId};
use tokio::{sync::watch, time::Instant};

use super::{
    admission::Admission,
    answer_memory::AnswerMemory,
    error::ServeError,
    follow::FollowError,
    metrics::{self, ReadMetrics},
    pace::Pace,
    room::TailRoom,
    served::Served,
};

/// Every timeline that the cluster knows, opened and kept up with.
#[derive(Debug)]
pub struct Timelines {
    shared: Arc<Shared>,
    /// Whether the timelines are those that the storage-broker told of. Changes with them locked.
    heard: watch::Sender<bool>,
    admission: Admission,
    pace: Pace,
    scope: TaskScope,
}

/// Bounds on what page-serve holds and waits for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Pages kept, of all timelines.
    pub page_cache: ByteCount,
    /// Blocks of layers kept, of all timelines.
    pub block_cache: ByteCount,
    /// Changes kept that no layer has yet, of all timelines.
    pub tail: ByteCount,
    /// Answers that are made or not sent, all together.
    pub answers: AnswerMemory,
    /// How long a request waits for its LSN.
    pub patience: Duration,
}

/// What all timelines use.
#[derive(Debug)]
pub(super) struct Shared {
    /// All that there are. A task of one that has ended holds this no longer.
    timelines: Mutex<HashMap<TimelineRef, Entry>>,
    pub(super) store: ObjectStore,
    pub(super) redo: RedoPool,
    pub(super) cache: Arc<PageCache>,
    pub(super) blocks: Arc<BlockCache>,
    pub(super) cluster: watch::Receiver<ClusterView>,
    pub(super) limits: Limits,
    pub(super) room: Arc<TailRoom>,
    pub(super) metrics: ReadMetrics,
}

#[derive(Debug)]
struct Entry {
    served: Arc<Served>,
    scope: TaskScope,
}

impl Timelines {
    /// Follows the cluster: opens what appears in it, closes what goes.
    pub fn start(
        store: ObjectStore,
        redo: RedoPool,
        cluster: watch::Receiver<ClusterView>,
        limits: Limits,
        scope: TaskScope,
    ) -> Arc<Self> {
        let cache = Arc::new(PageCache::new(limits.page_cache));
        let shared = Shared {
            timelines: Mutex::default(),
            store,
            redo,
            cache,
            blocks: Arc::new(BlockCache::new(limits.block_cache)),
            cluster: cluster.clone(),
            limits,
            room: TailRoom::new(limits.tail),
            metrics: ReadMetrics::default(),
        };
        let timelines = Arc::new(Self {
            shared: Arc::new(shared),
            heard: watch::Sender::new(false),
            admission: Admission::new(limits.answers),
            pace: Pace::default(),
            scope,
        });
        let following = Arc::clone(&timelines);
        timelines
            .scope
            .spawn("timelines", async move { following.follow(cluster).await });
        timelines
    }

    /// The reader of a timeline.
    ///
    /// # Errors
    /// If there is no such timeline, or it is not open yet.
    pub async fn reader(
        &self,
        timeline: TimelineRef,
    ) -> Result<Arc<TimelineReader<TenantRedo>>, ServeError> {
        match self.shared.served(timeline) {
            Some(served) => served.reader().await,
            None if *self.heard.borrow() => Err(ServeError::UnknownTimeline(timeline)),
            None => Err(ServeError::NotHeard(timeline)),
        }
    }

    /// Waits until the storage-broker has said what timelines there are.
    pub async fn heard(&self) {
        // The sender is here, so it does not go away.
        let _ = self.heard.subscribe().wait_for(|heard| *heard).await;
    }

    /// Waits until each timeline that is known and wanted now is open, or is gone, or can't be opened for a
    /// reason that waiting does not remove: one such timeline must not hold up the others.
    pub async fn opened(&self) {
        let known: Vec<_> = {
            let timelines = self.shared.lock();
            let wanted = timelines.values().filter(|entry| entry.served.is_wanted());
            let entry = |entry: &Entry| (Arc::clone(&entry.served), entry.scope.token().clone());
            wanted.map(entry).collect()
        };
        for (served, gone) in known {
            gone.run_until_cancelled(served.settled()).await;
        }
    }

    /// How long a request waits for its LSN.
    pub fn patience(&self) -> Duration {
        self.shared.limits.patience
    }

    /// Who may ask for pages, and for how many at once.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Waits until a tenant may have so many more pages.
    ///
    /// # Errors
    /// If it asks for far more than it may.
    pub async fn in_turn(&self, tenant: TenantId, pages: usize) -> Result<(), ServeError> {
        self.pace.wait(tenant, pages).await
    }

    /// What is measured here.
    pub fn metrics(&self) -> &ReadMetrics {
        &self.shared.metrics
    }

    /// What there is to know about caches and memory at the moment.
    pub fn samples(&self) -> Vec<Sample> {
        let timelines = self.shared.lock();
        let tails = timelines
            .values()
            .map(|entry| entry.served.tail_size().get());
        let tails: u64 = tails.sum();
        drop(timelines);
        let budget = self.shared.room.limit().get();
        let caches = [
            ("pages", self.shared.cache.in_use()),
            ("blocks", self.shared.blocks.in_use()),
        ];
        let (answers, most) = self.admission.in_use();
        let parts = [
            ("changes", tails, budget),
            ("answers", answers.get(), most.get()),
        ];
        metrics::samples(&caches, &parts)
    }

    async fn follow(&self, mut cluster: watch::Receiver<ClusterView>) {
        loop {
            // What is there before the first change is nobody's word.
            // Cancel-safe: the newest picture is still there after a cancelled wait.
            tokio::select! {
                () = self.scope.token().cancelled() => return,
                changed = cluster.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let known: HashMap<_, _> = {
                let view = cluster.borrow_and_update();
                self.pace.set(&view.tenants, Instant::now());
                self.shared.room.set_shares(&view.tenants);
                let timelines = view.timelines.iter();
                timelines
                    .map(|view| (view.timeline, Use::of(view)))
                    .collect()
            };
            self.open_and_close(&known);
        }
    }

    /// Opens what appears, but for what nobody writes to: that is opened when somebody reads it.
    fn open_and_close(&self, known: &HashMap<TimelineRef, Use>) {
        let mut timelines = self.shared.lock();
        timelines.retain(|timeline, entry| {
            let stays = known.contains_key(timeline);
            if !stays {
                entry.scope.token().cancel();
            }
            stays
        });
        for (timeline, used) in known {
            let entry = timelines.entry(*timeline).or_insert_with(|| {
                let scope = self.scope.child();
                let served = Served::start(*timeline, Arc::clone(&self.shared), &scope);
                Entry { served, scope }
            });
            match used {
                Use::Branch => {}
                Use::Written => entry.served.follow(),
            }
        }
        self.heard.send_replace(true);
    }
}

/// What a timeline is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It is written to, or was attached to be.
    Written,
    /// It is a branch that nobody writes to, so it changes no more.
    Branch,
}

impl Use {
    fn of(view: &TimelineView) -> Self {
        match view.is_written() {
            true => Self::Written,
            false => Self::Branch,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<TimelineRef, Entry>> {
        let timelines = self.timelines.lock();
        timelines.unwrap_or_else(PoisonError::into_inner)
    }

    fn served(&self, timeline: TimelineRef) -> Option<Arc<Served>> {
        let timelines = self.lock();
        let entry = timelines.get(&timeline)?;
        Some(Arc::clone(&entry.served))
    }

    /// The reader of a timeline that another one begins on.
    pub(super) async fn ancestor(
        &self,
        timeline: TimelineRef,
    ) -> Result<Arc<TimelineReader<TenantRedo>>, FollowError> {
        let served = self.served(timeline);
        let served = served.ok_or(FollowError::NoAncestor(timeline))?;
        Ok(served.reader().await?)
    }
}
