//! The timelines that this node writes, as the broker assigns them.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use palimpsest_api::{
    TimelineRef,
    broker::{AssignedTask, Assignment, ClusterView, TimelineState, TimelineStatus},
};
use palimpsest_read::Tail;
use palimpsest_runtime::TaskScope;
use palimpsest_store::ObjectStore;
use palimpsest_types::ByteCount;
use tokio::sync::watch;

use super::timeline::Timeline;

/// Bounds on what wal-ingest holds, here and at the source.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Changes kept in memory for each timeline.
    pub tail: ByteCount,
    /// WAL that our slot may hold back on the source's disk before it is dropped.
    pub slot_retention: ByteCount,
}

/// What all timelines use.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: ObjectStore,
    pub(super) directory: PathBuf,
    pub(super) limits: Limits,
    pub(super) cluster: watch::Receiver<ClusterView>,
}

/// Runs a task for each assigned timeline.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    scope: TaskScope,
    running: Mutex<HashMap<TimelineRef, Running>>,
}

#[derive(Debug)]
struct Running {
    timeline: Arc<Timeline>,
    task: AssignedTask,
    scope: TaskScope,
}

impl Shared {
    /// All other timelines of the cluster, with their tenants' names.
    pub(super) fn other_timelines(&self, but: TimelineRef) -> Vec<(TimelineRef, String)> {
        let view = self.cluster.borrow();
        let others = view.timelines.iter().filter(|other| other.timeline != but);
        others
            .map(|other| (other.timeline, other.tenant_name.clone()))
            .collect()
    }
}

impl Node {
    /// A node without timelines. Its tasks live in `scope`.
    pub fn new(
        store: ObjectStore,
        directory: PathBuf,
        limits: Limits,
        cluster: watch::Receiver<ClusterView>,
        scope: TaskScope,
    ) -> Self {
        let shared = Arc::new(Shared {
            store,
            directory,
            limits,
            cluster,
        });
        Self {
            shared,
            scope,
            running: Mutex::default(),
        }
    }

    /// How far each timeline is.
    pub fn statuses(&self) -> Vec<(TimelineRef, TimelineStatus)> {
        let running = self.lock();
        running
            .iter()
            .map(|(id, running)| (*id, running.timeline.status()))
            .collect()
    }

    /// The changes of a timeline, once it has been attached or resumed.
    pub fn tail(&self, timeline: TimelineRef) -> Option<Arc<Tail>> {
        self.lock().get(&timeline)?.timeline.tail().cloned()
    }

    /// Starts what is assigned and does not run; lets go of what is not assigned any more.
    pub fn assign(&self, assignments: Vec<Assignment>) {
        let mut running = self.lock();
        running.retain(|id, entry| {
            let stays = assignments
                .iter()
                .any(|assignment| assignment.timeline == *id);
            if !stays {
                entry.scope.token().cancel();
            }
            stays
        });
        for assignment in assignments {
            let id = assignment.timeline;
            match running.get(&id) {
                Some(entry) if entry.task == assignment.task => {}
                Some(entry) => {
                    let before = entry.scope.clone();
                    running.insert(id, self.start(assignment, Some(before)));
                }
                None => {
                    running.insert(id, self.start(assignment, None));
                }
            }
        }
    }

    /// Starts a timeline's task, after the one before it has ended.
    fn start(&self, assignment: Assignment, before: Option<TaskScope>) -> Running {
        let scope = self.scope.child();
        let task = assignment.task;
        let parsed = assignment.slot.parse();
        let invalid = parsed.as_ref().err().map(ToString::to_string);
        // A name that the broker made is valid; a name that is not never reaches the source.
        let slot = parsed.unwrap_or_else(|_| fallback_slot());
        let timeline = Arc::new(Timeline::new(assignment, slot, Arc::clone(&self.shared)));
        if let Some(reason) = invalid {
            timeline.update(|status| {
                status.state = TimelineState::Stopped;
                status.reason = reason;
            });
            return Running {
                timeline,
                task,
                scope,
            };
        }
        let token = scope.token().clone();
        let running = Arc::clone(&timeline);
        scope.spawn("timeline", async move {
            if let Some(before) = before {
                before.stop().await;
            }
            let work = async {
                match task {
                    AssignedTask::Ingest => running.run().await,
                    AssignedTask::Delete { forget_slot } => running.delete(forget_slot).await,
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
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TimelineRef, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fallback_slot() -> palimpsest_postgres::SlotName {
    "palimpsest"
        .parse()
        .expect("the name follows PostgreSQL's rules")
}
