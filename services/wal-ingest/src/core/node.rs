//! The timelines that this node writes, as the broker assigns them.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use palimpsest_api::{
    TimelineRef,
    broker::{AssignedTask, Assignment, TimelineState, TimelineStatus},
    tenant_settings::TenantSettings,
};
use palimpsest_disk::Disk;
use palimpsest_runtime::{CancellationToken, TaskScope};
use palimpsest_store::ObjectStore;
use palimpsest_telemetry::Sample;
use palimpsest_types::{ByteCount, Lsn, Percent};
use tokio::{
    sync::Semaphore,
    time::{interval, timeout},
};

use super::{
    archive::RestoreCommand,
    broker::Broker,
    budget::Budget,
    delete::Stored,
    follow::Follower,
    freeze,
    growth::FREEZE_INTERVAL,
    laggard::Places,
    metrics::{IngestMetrics, as_f64},
    timeline::Timeline,
};

/// Bounds on what wal-ingest holds, here and at the source. The first two are the node's, of all tenants; the others may
/// be a tenant's own.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Changes kept in memory, of all timelines.
    pub memory: ByteCount,
    /// WAL and layers kept on the local disk until the object store has them, of all timelines.
    pub local_disk: ByteCount,
    /// Changes that become one layer, as they are in memory.
    pub layer_size: ByteCount,
    /// Changes become a layer after this time, however few.
    pub layer_age: Duration,
    /// WAL that our slot may hold back on the source's disk before it is dropped.
    pub slot_retention: ByteCount,
    /// Whether a timeline whose slot was dropped goes on from a base backup by itself.
    pub reattach_after_drop: bool,
    /// Part of the memory that a tenant's timelines may have together.
    pub memory_share: Percent,
}

/// What all timelines use.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: ObjectStore,
    pub(super) directory: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) restore_command: Option<RestoreCommand>,
    pub(super) limits: Limits,
    pub(super) budget: Arc<Budget>,
    /// Layers that are in memory for their upload.
    pub(super) uploads: Semaphore,
    /// Feeds that are served from the local WAL.
    pub(super) laggards: Arc<Places>,
    pub(super) broker: Broker,
    pub(super) metrics: IngestMetrics,
    /// Cancelled when the node leaves: no more WAL is read, and what was is handed on.
    pub(super) leaving: CancellationToken,
}

/// What a node has on its machine.
#[derive(Debug, Clone)]
pub struct Local {
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Where its own are.
    pub directory: PathBuf,
    /// How WAL is fetched that a source has no more.
    pub restore_command: Option<RestoreCommand>,
}

/// Runs a task for each assigned timeline.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    scope: TaskScope,
    timelines: Mutex<NodeTimelines>,
}

#[derive(Debug, Default)]
struct NodeTimelines {
    running: HashMap<TimelineRef, Running>,
    /// What was given back and may still be busy, as blocking work can't be cancelled. A timeline
    /// that comes back waits for it: two at once would write to one directory.
    leaving: HashMap<TimelineRef, TaskScope>,
}

#[derive(Debug)]
struct Running {
    timeline: Arc<Timeline>,
    task: AssignedTask,
    scope: TaskScope,
    /// Cancelled when its task has ended.
    ended: CancellationToken,
}

/// Layers uploaded at once.
const UPLOADS: usize = 2;
/// Feeds for which local WAL is decoded at once; more take turns, as each takes a processor from
/// ingest.
const LAGGARDS: usize = 4;

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: ByteCount::gib(1),
            local_disk: ByteCount::gib(20),
            layer_size: ByteCount::mib(256),
            layer_age: Duration::from_secs(300),
            slot_retention: ByteCount::gib(10),
            reattach_after_drop: true,
            memory_share: Percent::WHOLE,
        }
    }
}

impl Limits {
    /// The same for a tenant that has set these.
    pub(super) fn of_tenant(self, set: &TenantSettings) -> Self {
        Self {
            layer_size: set.layer_size.unwrap_or(self.layer_size),
            layer_age: set.layer_age.unwrap_or(self.layer_age),
            slot_retention: set.slot_retention_limit.unwrap_or(self.slot_retention),
            reattach_after_drop: set.reattach_after_drop.unwrap_or(self.reattach_after_drop),
            memory_share: set.memory_share.unwrap_or(self.memory_share),
            ..self
        }
    }

    /// Memory that a tenant's timelines may have together.
    pub(super) fn tenant_memory(&self) -> ByteCount {
        ByteCount::new(self.memory_share.of(self.memory.get()))
    }
}

impl Shared {
    pub(super) fn new(store: ObjectStore, local: Local, limits: Limits, broker: Broker) -> Self {
        let Local {
            disk,
            directory,
            restore_command,
        } = local;
        Self {
            store,
            directory,
            disk,
            restore_command,
            budget: Arc::new(Budget::new(&limits)),
            uploads: Semaphore::new(UPLOADS),
            laggards: Arc::new(Places::new(LAGGARDS)),
            limits,
            broker,
            metrics: IngestMetrics::default(),
            leaving: CancellationToken::new(),
        }
    }
}

impl Node {
    /// A node without timelines. Its tasks live in `scope`.
    pub fn new(
        store: ObjectStore,
        local: Local,
        limits: Limits,
        broker: Broker,
        scope: TaskScope,
    ) -> Self {
        let shared = Arc::new(Shared::new(store, local, limits, broker));
        Self {
            shared,
            scope,
            timelines: Mutex::default(),
        }
    }

    /// How far each timeline is.
    pub fn statuses(&self) -> Vec<(TimelineRef, TimelineStatus)> {
        let timelines = self.lock();
        let running = timelines.running.iter();
        running
            .map(|(id, running)| (*id, running.timeline.status()))
            .collect()
    }

    /// What is counted here.
    pub fn metrics(&self) -> &IngestMetrics {
        &self.shared.metrics
    }

    /// What there is to know about timelines, feeds, memory and disk at the moment.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = self.shared.metrics.samples(&self.statuses());
        samples.extend(self.shared.budget.samples());
        let timelines = self.lock();
        let running = timelines.running.values();
        let in_memory: usize = running
            .filter_map(|running| Some(running.timeline.growth()?.subscribers().count()))
            .sum();
        let on_disk = self.shared.laggards.behind();
        let help = "Feeds that are served, from memory or, being behind, from the local WAL";
        let mut feeds = Sample::gauge("feed_subscribers", None, help);
        feeds.push([("from", "memory".to_owned())], as_f64(in_memory as u64));
        feeds.push([("from", "disk".to_owned())], as_f64(on_disk as u64));
        let help = "Timelines that this node writes";
        let assigned = Sample::gauge("ingest_timelines", None, help);
        samples.extend([feeds, assigned.of(as_f64(timelines.running.len() as u64))]);
        samples
    }

    /// One who follows a timeline from `after` on, once it was taken over.
    pub fn follow(&self, timeline: TimelineRef, after: Lsn) -> Option<Follower> {
        let timeline = Arc::clone(&self.lock().running.get(&timeline)?.timeline);
        Some(Follower::new(timeline.feed()?, after))
    }

    /// Freezes pieces of changes that are old or in the way, for ever.
    pub async fn freeze_in_time(&self) {
        let mut ticks = interval(FREEZE_INTERVAL);
        loop {
            ticks.tick().await;
            self.freeze_due();
        }
    }

    fn freeze_due(&self) {
        let begun_on = self.shared.broker.begun_on();
        let timelines = self.lock();
        let grown: Vec<_> = timelines
            .running
            .iter()
            .filter_map(|(id, running)| {
                let growth = running.timeline.growth()?;
                let limits = running.timeline.limits();
                growth.set_limits(&limits);
                growth.relieve();
                if let Some(needed) = begun_on.get(id) {
                    growth.freeze_up_to(*needed);
                }
                let growing = growth.growing(id.tenant, &limits)?;
                Some((growth, growing))
            })
            .collect();
        drop(timelines);
        let growing: Vec<_> = grown.iter().map(|(_, growing)| *growing).collect();
        for at in freeze::due(&growing, self.shared.limits.memory) {
            if let Some((growth, _)) = grown.get(at) {
                growth.freeze();
            }
        }
    }

    /// Starts what is assigned and does not run; lets go of what is not assigned any more.
    pub fn assign(&self, assignments: Vec<Assignment>) {
        let mut timelines = self.lock();
        let NodeTimelines { running, leaving } = &mut *timelines;
        leaving.retain(|_, scope| !scope.is_idle());
        running.retain(|id, entry| {
            let stays = assignments
                .iter()
                .any(|assignment| assignment.timeline == *id);
            if !stays {
                entry.scope.token().cancel();
                leaving.insert(*id, entry.scope.clone());
            }
            stays
        });
        for assignment in assignments {
            let id = assignment.timeline;
            let before = match running.get(&id) {
                // Of a writer that was superseded nothing runs; proposed again, it begins anew.
                // Read from another place, it begins anew, too.
                Some(entry) if entry.does(&assignment) && !entry.timeline.is_superseded() => {
                    entry.timeline.set_settings(assignment.settings);
                    continue;
                }
                Some(entry) => Some(entry.scope.clone()),
                None => leaving.remove(&id),
            };
            running.insert(id, self.start(assignment, before));
        }
    }

    /// Ends all timelines, side by side: each hands the object store what that does not have yet,
    /// for no longer than `limit`; not at all if that is zero. What is not there then stays on the
    /// local disk, as after a crash.
    pub async fn leave(&self, limit: Duration) {
        let timelines: Vec<_> = {
            let timelines = self.lock();
            let running = timelines.running.values();
            running
                .map(|running| (Arc::clone(&running.timeline), running.ended.clone()))
                .collect()
        };
        if !limit.is_zero() {
            self.shared.leaving.cancel();
            let ended = timelines.iter().map(|(_, ended)| ended.cancelled());
            // Cancel-safe: it only waits.
            let _ = timeout(limit, join_all(ended)).await;
        }
        self.scope.stop().await;
        for (timeline, _) in timelines {
            timeline.tell_what_stays();
        }
    }

    /// Starts a timeline's task, after the one before it has ended.
    fn start(&self, assignment: Assignment, before: Option<TaskScope>) -> Running {
        let scope = self.scope.child();
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        let task = assignment.task;
        let parsed = assignment.slot.parse();
        let invalid = parsed.as_ref().err().map(ToString::to_string);
        // A name that the broker made is valid; a name that is not never reaches the source.
        let slot = parsed.unwrap_or_else(|_| fallback_slot());
        let shared = Arc::clone(&self.shared);
        let timeline = Timeline::new(assignment, slot, shared, scope.clone());
        let timeline = Arc::new(timeline);
        if let Some(reason) = invalid {
            timeline.update(|status| {
                status.state = TimelineState::Stopped;
                status.reason = reason;
            });
            return Running {
                timeline,
                task,
                scope,
                ended,
            };
        }
        let token = scope.token().clone();
        let running = Arc::clone(&timeline);
        scope.spawn("timeline", async move {
            let _end = end;
            if let Some(before) = before {
                before.stop().await;
            }
            let work = async {
                match task {
                    AssignedTask::Ingest => running.run().await,
                    AssignedTask::Delete { forget_slot } => {
                        let stored = match running.assignment.writer {
                            None => Stored::OfTenant,
                            // The storage-broker removes it, in an order of its own.
                            Some(_) => Stored::Stays,
                        };
                        let end = TimelineState::Deleted;
                        running.remove(stored, forget_slot, end).await;
                    }
                    AssignedTask::Leave { forget_slot } => {
                        // Another end: it is never taken for that of a deletion.
                        let end = TimelineState::Idle;
                        running.remove(Stored::Stays, forget_slot, end).await;
                    }
                }
            };
            // Cancel-safe: WAL that was not fsynced was not acknowledged, an attach that is cut
            // off begins anew, and a deletion is repeated.
            tokio::select! {
                () = token.cancelled() => {}
                () = work => {}
            }
        });
        Running {
            timeline,
            task,
            scope,
            ended,
        }
    }

    fn lock(&self) -> MutexGuard<'_, NodeTimelines> {
        self.timelines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Whether what is assigned is what runs.
    fn does(&self, assignment: &Assignment) -> bool {
        let own = &self.timeline.assignment;
        self.task == assignment.task
            && own.source == assignment.source
            && own.writer == assignment.writer
            && own.reattach == assignment.reattach
    }
}

#[cfg(test)]
mod tests;

fn fallback_slot() -> palimpsest_postgres::SlotName {
    "palimpsest"
        .parse()
        .expect("the name follows PostgreSQL's rules")
}
