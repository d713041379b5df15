//! Which tenants have processes, and who gets their room.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt::Debug,
    future::Future,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::future::try_join_all;
use palimpsest_api::redo::{RedoTenant, Urgency};
use palimpsest_redo::{ApplyRequest, Engine, EngineError, START_LIMIT};
use palimpsest_telemetry::Gauge;
use palimpsest_types::{ErrorKind, Reason};
use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::metrics::RedoMetrics;

/// Starts processes.
pub trait ProcessSource: Send + Sync + 'static {
    /// What it starts.
    type Process: RedoProcess;

    /// Refuses a tenant that no process could serve.
    ///
    /// # Errors
    /// Why not.
    fn check(&self, tenant: &RedoTenant) -> Result<(), StartFailure>;

    /// A process for this tenant alone, and for jobs of this urgency.
    fn start(
        &self,
        tenant: &RedoTenant,
        urgency: Urgency,
    ) -> impl Future<Output = Result<Self::Process, StartFailure>> + Send;
}

/// A process that applies records. Dropping the last clone ends it too, but nobody waits then.
pub trait RedoProcess: Engine + Clone + Debug + 'static {
    /// How often it died and was replaced.
    fn deaths(&self) -> u64;

    /// Answers what it has, then ends.
    fn stop(self) -> impl Future<Output = ()> + Send;
}

/// There is no process for a tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    /// What the caller may do.
    pub kind: ErrorKind,
    /// Why not, in words.
    pub message: String,
}

/// How many processes there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For one tenant, besides the one that does what nobody waits for.
    pub processes_per_tenant: NonZeroUsize,
    /// Tenants that have some at the same time.
    pub tenants: NonZeroUsize,
}

/// The processes of all tenants. They are started when first used; when another tenant needs the
/// room, those that were idle for longest end.
#[derive(Debug)]
pub struct TenantEngines<S: ProcessSource> {
    source: S,
    limits: Limits,
    /// One permit per tenant with processes. Its queue is fair: with more busy tenants than room
    /// they take turns.
    room: Arc<Semaphore>,
    tenants: Mutex<Tenants<S::Process>>,
    deaths: Arc<AtomicU64>,
    metrics: RedoMetrics,
}

#[derive(Debug)]
struct Tenants<P: RedoProcess> {
    slots: HashMap<RedoTenant, Arc<Slot<P>>>,
    /// Counts uses, to tell which slot was used last.
    uses: u64,
    stopped: bool,
}

/// One tenant's processes, from before they are started.
#[derive(Debug)]
struct Slot<P: RedoProcess> {
    last_use: AtomicU64,
    started: OnceCell<Started<P>>,
}

/// A process does its jobs in the order in which it gets them, each at the process's own priority. So what somebody
/// waits for has processes of its own. Of either kind they are started when they are first needed.
#[derive(Debug)]
struct Started<P: RedoProcess> {
    awaited: OnceCell<Vec<Counted<P>>>,
    background: OnceCell<Counted<P>>,
    deaths_before: Arc<AtomicU64>,
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Counted<P> {
    process: P,
    jobs: AtomicUsize,
}

impl<S: ProcessSource> TenantEngines<S> {
    /// No processes yet.
    pub fn new(source: S, limits: Limits) -> Self {
        let tenants = Tenants {
            slots: HashMap::new(),
            uses: 0,
            stopped: false,
        };
        Self {
            source,
            limits,
            room: Arc::new(Semaphore::new(limits.tenants.get())),
            tenants: Mutex::new(tenants),
            deaths: Arc::default(),
            metrics: RedoMetrics::default(),
        }
    }

    /// Applies a job by a process of its tenant. Dropping the future abandons the job.
    ///
    /// # Errors
    /// What the process says, or why there is none.
    pub async fn apply(
        &self,
        tenant: RedoTenant,
        urgency: Urgency,
        request: ApplyRequest,
    ) -> Result<Bytes, EngineError> {
        let running = Running::enter(&self.metrics.running);
        let outcome = self.apply_by_tenant(tenant, urgency, request).await;
        drop(running);
        self.metrics.jobs.inc();
        if outcome.is_err() {
            self.metrics.failures.inc();
        }
        outcome
    }

    /// What is counted here.
    pub fn metrics(&self) -> &RedoMetrics {
        &self.metrics
    }

    async fn apply_by_tenant(
        &self,
        tenant: RedoTenant,
        urgency: Urgency,
        request: ApplyRequest,
    ) -> Result<Bytes, EngineError> {
        let (rel, block) = (request.rel, request.block);
        let failed = |StartFailure { kind, message }| EngineError {
            rel,
            block,
            kind,
            reason: Reason::NoWorker,
            message,
        };
        self.source.check(&tenant).map_err(failed)?;
        let slot = self.slot(tenant).map_err(failed)?;
        let process = self.process(&slot, &tenant, urgency);
        let process = timeout(START_LIMIT, process).await;
        let process = process.unwrap_or_else(|_| Err(overdue()));
        process.map_err(failed)?.apply(request).await
    }

    /// A process for a job, started if need be. Cancel-safe: of those who wait for the same start, the next goes on.
    async fn process<'a>(
        &self,
        slot: &'a Slot<S::Process>,
        tenant: &RedoTenant,
        urgency: Urgency,
    ) -> Result<&'a Counted<S::Process>, StartFailure> {
        let started = slot.started.get_or_try_init(|| self.enter()).await?;
        let start = || self.start_one(tenant, urgency);
        match urgency {
            Urgency::Awaited => {
                // All at once: the first job waits for one start, however many there are.
                let count = self.limits.processes_per_tenant.get();
                let starts = || try_join_all((0..count).map(|_| start()));
                let processes = started.awaited.get_or_try_init(starts).await?;
                Ok(least_busy(processes))
            }
            Urgency::Background => started.background.get_or_try_init(start).await,
        }
    }

    /// How many processes died or were killed over jobs.
    pub fn deaths(&self) -> u64 {
        let before = self.deaths.load(Ordering::Relaxed);
        let slots = &self.lock().slots;
        let started = slots.values().filter_map(|slot| slot.started.get());
        before + started.map(Started::deaths).sum::<u64>()
    }

    /// Tenants that have processes or are about to.
    pub fn tenants(&self) -> usize {
        self.lock().slots.len()
    }

    /// Ends all processes after they have answered what was submitted to them. Later jobs fail as
    /// not ready, so that they are tried elsewhere.
    pub async fn stop(&self) {
        let slots: Vec<_> = {
            let mut tenants = self.lock();
            tenants.stopped = true;
            tenants.slots.drain().map(|(_, slot)| slot).collect()
        };
        for started in slots.iter().filter_map(|slot| slot.started.get()) {
            for counted in started.all() {
                counted.process.clone().stop().await;
            }
        }
    }

    /// The slot of a tenant, new if need be; then the least useful other one makes room for it.
    fn slot(&self, tenant: RedoTenant) -> Result<Arc<Slot<S::Process>>, StartFailure> {
        let mut tenants = self.lock();
        if tenants.stopped {
            return Err(StartFailure {
                kind: ErrorKind::NotReady,
                message: "this redo-worker is shutting down".to_owned(),
            });
        }
        tenants.uses += 1;
        let uses = tenants.uses;
        if let Some(slot) = tenants.slots.get(&tenant) {
            slot.last_use.store(uses, Ordering::Relaxed);
            return Ok(Arc::clone(slot));
        }
        if tenants.slots.len() >= self.limits.tenants.get()
            && let Some(victim) = least_useful(&tenants.slots)
        {
            // Its processes end and its room is free when its last job is done; at once if idle.
            tenants.slots.remove(&victim);
            tracing::debug!(tenant = %victim.tenant, "redo processes make room for another tenant");
        }
        let slot = Arc::new(Slot {
            last_use: uses.into(),
            started: OnceCell::new(),
        });
        tenants.slots.insert(tenant, Arc::clone(&slot));
        Ok(slot)
    }

    /// Waits for room for a tenant's processes.
    async fn enter(&self) -> Result<Started<S::Process>, StartFailure> {
        let room = Arc::clone(&self.room).acquire_owned().await;
        let room = room.map_err(|_| StartFailure {
            kind: ErrorKind::NotReady,
            message: "there is no room for processes".to_owned(),
        })?;
        Ok(Started {
            awaited: OnceCell::new(),
            background: OnceCell::new(),
            deaths_before: Arc::clone(&self.deaths),
            _room: room,
        })
    }

    async fn start_one(
        &self,
        tenant: &RedoTenant,
        urgency: Urgency,
    ) -> Result<Counted<S::Process>, StartFailure> {
        let process = self.source.start(tenant, urgency).await?;
        self.metrics.starts.inc();
        tracing::debug!(tenant = %tenant.tenant, ?urgency, "a redo process started");
        Ok(Counted {
            process,
            jobs: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Tenants<S::Process>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Not ready, so that the job is tried elsewhere.
fn overdue() -> StartFailure {
    StartFailure {
        kind: ErrorKind::NotReady,
        message: format!("no redo process of the tenant was there within {START_LIMIT:?}"),
    }
}

/// The tenant that loses its processes: an idle one if there is any, used least recently.
fn least_useful<P: RedoProcess>(slots: &HashMap<RedoTenant, Arc<Slot<P>>>) -> Option<RedoTenant> {
    let rank = |slot: &Arc<Slot<P>>| {
        let busy = Arc::strong_count(slot) > 1;
        (busy, slot.last_use.load(Ordering::Relaxed))
    };
    let victim = slots.iter().min_by_key(|(_, slot)| rank(slot));
    victim.map(|(tenant, _)| *tenant)
}

/// Of processes that do the same.
fn least_busy<P>(processes: &[Counted<P>]) -> &Counted<P> {
    let jobs = |counted: &&Counted<P>| counted.jobs.load(Ordering::Relaxed);
    let chosen = processes.iter().min_by_key(jobs);
    chosen.expect("a tenant has at least one process")
}

impl<P: RedoProcess> Started<P> {
    fn all(&self) -> impl Iterator<Item = &Counted<P>> {
        let awaited = self.awaited.get().into_iter().flatten();
        awaited.chain(self.background.get())
    }

    fn deaths(&self) -> u64 {
        self.all().map(|counted| counted.process.deaths()).sum()
    }
}

impl<P: RedoProcess> Counted<P> {
    async fn apply(&self, request: ApplyRequest) -> Result<Bytes, EngineError> {
        let _entered = Entered::enter(&self.jobs);
        self.process.apply(request).await
    }
}

impl<P: RedoProcess> Drop for Started<P> {
    fn drop(&mut self) {
        self.deaths_before
            .fetch_add(self.deaths(), Ordering::Relaxed);
    }
}

/// A job that a process has, until dropped.
struct Entered<'a>(&'a AtomicUsize);

impl<'a> Entered<'a> {
    fn enter(jobs: &'a AtomicUsize) -> Self {
        jobs.fetch_add(1, Ordering::Relaxed);
        Self(jobs)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A job that is worked on, until dropped.
struct Running<'a>(&'a Gauge);

impl<'a> Running<'a> {
    fn enter(running: &'a Gauge) -> Self {
        running.inc();
        Self(running)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
