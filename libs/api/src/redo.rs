//! Redo by a pool of workers: who is chosen, what is retried, how jobs are batched.

mod connection;
mod convert;
mod limits;
mod metrics;
mod quarantine;
#[cfg(test)]
mod tests;
mod workers;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use palimpsest_proto::redo::v1 as wire;
use palimpsest_redo::{ApplyRequest, Engine, EngineError};
use palimpsest_runtime::TaskScope;
use palimpsest_telemetry::trace;
use palimpsest_types::{ErrorKind, Reason, TenantId};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tonic::Streaming;
use wire::redo_service_client::RedoServiceClient;

use crate::{
    broker::{ClusterView, Role},
    channel::{MAX_MESSAGE, connect_lazily},
    status::RemoteError,
};

use connection::Pending;
pub use convert::result_to_wire;
pub use limits::{BACKGROUND_LIMIT, BEAT, JOB_LIMIT, SILENCE};
use metrics::PoolMetrics;
use quarantine::{Quarantine, Suspect};
use workers::{REST, Worker, Workers};

/// What a worker must know about a tenant's cluster to replay its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RedoTenant {
    /// The tenant; its processes are kept apart from others'.
    pub tenant: TenantId,
    /// 15 for PostgreSQL 15.
    pub pg_version: u32,
    /// Data checksums or `wal_log_hints` are on.
    pub wal_log_hints: bool,
}

/// Whether somebody waits for the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Urgency {
    /// A reader does.
    #[default]
    Awaited,
    /// Nobody does: these jobs let the others go first.
    Background,
}

/// All redo workers that are alive. Clones share the connections.
#[derive(Debug, Clone)]
pub struct RedoPool {
    cluster: watch::Receiver<ClusterView>,
    workers: Arc<Mutex<Workers>>,
    quarantine: Arc<Mutex<Quarantine>>,
    metrics: PoolMetrics,
    urgency: Urgency,
    /// A worker that has jobs and says nothing for so long stands still.
    silence: Duration,
    /// A job that is not done after so long has failed.
    job_limit: Duration,
    scope: TaskScope,
}

/// The pool as one tenant's redo engine.
#[derive(Debug, Clone)]
pub struct TenantRedo {
    pool: RedoPool,
    tenant: RedoTenant,
}

/// A batch of jobs as a worker receives it.
#[derive(Debug)]
pub struct Batch {
    /// Whose jobs.
    pub tenant: RedoTenant,
    /// How soon they are to be done.
    pub urgency: Urgency,
    /// The jobs.
    pub jobs: Vec<BatchJob>,
}

/// A job of a batch.
#[derive(Debug)]
pub struct BatchJob {
    /// To be repeated in the answer.
    pub id: u64,
    /// What to do.
    pub request: ApplyRequest,
    /// The trace it is part of, if any; empty otherwise.
    pub traceparent: String,
}

/// Batches as a worker's handler reads them.
pub type BatchStream = Streaming<wire::ApplyRequest>;

#[derive(Debug)]
struct Job {
    tenant: RedoTenant,
    request: ApplyRequest,
    traceparent: Option<String>,
    answer: oneshot::Sender<Result<Bytes, RemoteError>>,
}

/// Jobs that wait for a connection's task, at most.
const QUEUE: usize = 256;
/// Workers that are tried for one job before it fails.
const ATTEMPTS: usize = 4;
/// How long a job waits for some worker to be there.
const PATIENCE: Duration = Duration::from_secs(5);

impl RedoPool {
    /// The pool of workers that `cluster` shows. Its connections live in `scope`.
    pub fn new(cluster: watch::Receiver<ClusterView>, scope: TaskScope) -> Self {
        Self {
            cluster,
            workers: Arc::default(),
            quarantine: Arc::default(),
            metrics: PoolMetrics::default(),
            urgency: Urgency::default(),
            silence: SILENCE,
            job_limit: JOB_LIMIT,
            scope,
        }
    }

    /// The same workers, for pages that nobody waits for.
    #[must_use]
    pub fn in_background(self) -> Self {
        Self {
            workers: Arc::default(),
            urgency: Urgency::Background,
            job_limit: BACKGROUND_LIMIT,
            ..self
        }
    }

    /// The pool as the engine of one tenant.
    pub fn for_tenant(&self, tenant: RedoTenant) -> TenantRedo {
        TenantRedo {
            pool: self.clone(),
            tenant,
        }
    }

    /// The worker with the least to do; one of `tried` only if there is no other.
    async fn choose(&self, tried: &[String]) -> Result<Worker, RemoteError> {
        let mut cluster = self.cluster.clone();
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let addresses = cluster.borrow_and_update().addresses(Role::RedoWorker);
                if let Some(worker) = self.least_loaded(&addresses, tried)? {
                    return Ok(worker);
                }
                // Both are cancel-safe. Without either event there is nothing new to look at.
                tokio::select! {
                    changed = cluster.changed() => changed.map_err(|_| no_worker())?,
                    () = tokio::time::sleep(REST) => {}
                }
            }
        });
        found.await.unwrap_or_else(|_| Err(no_worker()))
    }

    fn least_loaded(
        &self,
        addresses: &[String],
        tried: &[String],
    ) -> Result<Option<Worker>, RemoteError> {
        let now = Instant::now();
        let mut workers = lock(&self.workers);
        workers.retain(addresses, now);
        for address in addresses {
            if workers.lacks(address, now) {
                let worker = self.connect(address)?;
                workers.connected.insert(address.clone(), worker);
            }
        }
        Ok(workers.least_loaded(tried))
    }

    fn connect(&self, address: &str) -> Result<Worker, RemoteError> {
        let client = RedoServiceClient::new(connect_lazily(address)?)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let (jobs, mut queue) = mpsc::channel(QUEUE);
        let token = self.scope.token().clone();
        let (workers, worker) = (Arc::clone(&self.workers), address.to_owned());
        let (breaks, silence, urgency) = (self.metrics.breaks.clone(), self.silence, self.urgency);
        self.scope.spawn("redo connection", async move {
            let mut pending = Pending::new(urgency);
            let served = connection::serve(client, &mut queue, &mut pending, silence);
            // Dropping the connection at any point is safe: jobs without an answer are tried again.
            let error = token
                .run_until_cancelled(served)
                .await
                .and_then(Result::err);
            if let Some(error) = &error {
                breaks.inc();
                tracing::warn!(worker, %error, "the connection to a redo worker ended");
            }
            // Before the jobs are given back, so that none of them comes here again.
            lock(&workers).rest(worker, error.as_ref(), Instant::now());
            drop((queue, pending));
        });
        Ok(Worker::new(address.to_owned(), jobs))
    }

    /// Has a job done within the limit for jobs, which holds for all that is waited for: a worker, room
    /// in its queue, its answer.
    async fn apply(&self, tenant: RedoTenant, request: ApplyRequest) -> Result<Bytes, RemoteError> {
        // Cancel-safe: a job whose answer nobody waits for is done or not, and nothing comes of it.
        let done = tokio::time::timeout(self.job_limit, self.attempt(tenant, request)).await;
        done.unwrap_or_else(|_| Err(late(self.job_limit)))
    }

    /// Has a job done by one worker after the other, until one can do it. A job that kills the process
    /// that does it gets one more; then its records are left alone for a while.
    async fn attempt(
        &self,
        tenant: RedoTenant,
        request: ApplyRequest,
    ) -> Result<Bytes, RemoteError> {
        let suspect = Suspect::of(tenant.tenant, &request);
        if let Some(suspect) = &suspect {
            self.refuse_quarantined(suspect, &request)?;
        }
        let traceparent = trace::current();
        let (mut tried, mut died) = (Vec::new(), false);
        for _ in 0..ATTEMPTS {
            let worker = self.choose(&tried).await?;
            if !tried.is_empty() {
                self.metrics.repeated.inc();
            }
            let (answer, answered) = oneshot::channel();
            let job = Job {
                tenant,
                request: request.clone(),
                traceparent: traceparent.clone(),
                answer,
            };
            let load = worker.enter();
            tried.push(worker.address.clone());
            if worker.jobs.send(job).await.is_err() {
                continue;
            }
            // A worker that says nothing has its connection ended, which ends this before the limit.
            let outcome = answered.await;
            drop(load);
            match outcome {
                Ok(Err(error)) if error.kind == ErrorKind::NotReady => {}
                Ok(Err(error)) if error.reason == Some(Reason::RedoDied) => {
                    if died {
                        self.quarantine(suspect);
                        return Err(error);
                    }
                    died = true;
                }
                Ok(answer) => return answer,
                // The connection broke: the job may have been done or not, and may be done again.
                Err(_) => {}
            }
        }
        let message = format!("no redo worker answered in {ATTEMPTS} attempts");
        Err(RemoteError::new(ErrorKind::NotReady, message).because(Reason::NoWorker))
    }

    fn refuse_quarantined(
        &self,
        suspect: &Suspect,
        request: &ApplyRequest,
    ) -> Result<(), RemoteError> {
        let Some(left) = lock(&self.quarantine).holds(suspect, Instant::now()) else {
            return Ok(());
        };
        self.metrics.quarantined.inc();
        let (rel, block, left) = (request.rel, request.block, left.as_secs() + 1);
        let message = format!(
            "the records of {rel} block {block} killed two redo processes; not tried again for {left} s"
        );
        Err(RemoteError::new(ErrorKind::Internal, message).because(Reason::Quarantined))
    }

    fn quarantine(&self, suspect: Option<Suspect>) {
        if let Some(suspect) = suspect {
            tracing::error!(
                ?suspect,
                "records killed two redo processes and are left alone for a while"
            );
            lock(&self.quarantine).add(suspect, Instant::now());
        }
    }
}

impl Engine for TenantRedo {
    async fn apply(&self, request: ApplyRequest) -> Result<Bytes, EngineError> {
        let (rel, block) = (request.rel, request.block);
        let applied = self.pool.apply(self.tenant, request).await;
        applied.map_err(|error| EngineError {
            rel,
            block,
            kind: error.kind,
            reason: reason_of(&error),
            message: error.message,
        })
    }
}

/// Why a job failed, also if the worker does not say.
fn reason_of(error: &RemoteError) -> Reason {
    error.reason.unwrap_or(match error.kind {
        ErrorKind::NotReady | ErrorKind::Throttled => Reason::NoWorker,
        ErrorKind::Corrupt => Reason::Damaged,
        _ => Reason::Defect,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn late(limit: Duration) -> RemoteError {
    let message = format!("no redo worker did the job within {limit:?}; try again later");
    RemoteError::new(ErrorKind::NotReady, message).because(Reason::NoWorker)
}

fn no_worker() -> RemoteError {
    let message = "no redo worker is alive; start one and try again";
    RemoteError::new(ErrorKind::NotReady, message).because(Reason::NoWorker)
}
