//! Redo by a pool of workers: who is chosen, what is retried, how jobs are batched.

mod connection;
mod convert;
mod metrics;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use palimpsest_proto::redo::v1 as wire;
use palimpsest_redo::{ApplyRequest, Engine, EngineError};
use palimpsest_runtime::TaskScope;
use palimpsest_telemetry::trace;
use palimpsest_types::{ErrorKind, TenantId};
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
use metrics::PoolMetrics;

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

/// All redo workers that are alive. Clones share the connections.
#[derive(Debug, Clone)]
pub struct RedoPool {
    cluster: watch::Receiver<ClusterView>,
    workers: Arc<Mutex<Workers>>,
    metrics: PoolMetrics,
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

/// What is known about the workers, by address.
#[derive(Debug, Default)]
struct Workers {
    connected: HashMap<String, Worker>,
    /// Workers whose connection broke, and when to try them again. The broker takes a while to
    /// notice a death, and a dead worker would look like the one with the least to do.
    resting: HashMap<String, Instant>,
}

#[derive(Debug, Clone)]
struct Worker {
    address: String,
    jobs: mpsc::Sender<Job>,
    outstanding: Arc<AtomicUsize>,
}

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
/// How long a worker is left alone after its connection broke.
const REST: Duration = Duration::from_secs(1);

impl RedoPool {
    /// The pool of workers that `cluster` shows. Its connections live in `scope`.
    pub fn new(cluster: watch::Receiver<ClusterView>, scope: TaskScope) -> Self {
        Self {
            cluster,
            workers: Arc::default(),
            metrics: PoolMetrics::default(),
            scope,
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
                if let Some(worker) = self.least_loaded(addresses, tried)? {
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
        addresses: Vec<String>,
        tried: &[String],
    ) -> Result<Option<Worker>, RemoteError> {
        let now = Instant::now();
        let mut workers = lock(&self.workers);
        workers.resting.retain(|_, until| *until > now);
        workers
            .connected
            .retain(|address, worker| addresses.contains(address) && !worker.jobs.is_closed());
        for address in addresses {
            if !workers.resting.contains_key(&address) && !workers.connected.contains_key(&address)
            {
                let worker = self.connect(&address)?;
                workers.connected.insert(address, worker);
            }
        }
        let rank = |worker: &&Worker| {
            let load = worker.outstanding.load(Ordering::Relaxed);
            (tried.contains(&worker.address), load)
        };
        Ok(workers.connected.values().min_by_key(rank).cloned())
    }

    fn connect(&self, address: &str) -> Result<Worker, RemoteError> {
        let client = RedoServiceClient::new(connect_lazily(address)?)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let (jobs, mut queue) = mpsc::channel(QUEUE);
        let token = self.scope.token().clone();
        let (workers, worker) = (Arc::clone(&self.workers), address.to_owned());
        let breaks = self.metrics.breaks.clone();
        self.scope.spawn("redo connection", async move {
            let mut pending = Pending::default();
            let served = connection::serve(client, &mut queue, &mut pending);
            // Dropping the connection at any point is safe: jobs without an answer are tried again.
            if let Some(Err(error)) = token.run_until_cancelled(served).await {
                breaks.inc();
                tracing::warn!(worker, %error, "the connection to a redo worker broke");
            }
            // Before the jobs are given back, so that none of them comes here again.
            lock(&workers).resting.insert(worker, Instant::now() + REST);
            drop((queue, pending));
        });
        Ok(Worker {
            address: address.to_owned(),
            jobs,
            outstanding: Arc::default(),
        })
    }

    async fn apply(&self, tenant: RedoTenant, request: ApplyRequest) -> Result<Bytes, RemoteError> {
        let traceparent = trace::current();
        let mut tried = Vec::new();
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
            let outcome = answered.await;
            drop(load);
            match outcome {
                Ok(Err(error)) if error.kind == ErrorKind::NotReady => {}
                Ok(answer) => return answer,
                // The connection broke: the job may have been done or not, and may be done again.
                Err(_) => {}
            }
        }
        let message = format!("no redo worker answered in {ATTEMPTS} attempts");
        Err(RemoteError {
            kind: ErrorKind::NotReady,
            message,
        })
    }
}

impl Worker {
    /// Counts a job as outstanding until the guard is dropped.
    fn enter(&self) -> Outstanding {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Outstanding(Arc::clone(&self.outstanding))
    }
}

struct Outstanding(Arc<AtomicUsize>);

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
            message: error.message,
        })
    }
}

fn lock(workers: &Mutex<Workers>) -> MutexGuard<'_, Workers> {
    workers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_worker() -> RemoteError {
    let message = "no redo worker is alive; start one and try again".to_owned();
    RemoteError {
        kind: ErrorKind::NotReady,
        message,
    }
}
