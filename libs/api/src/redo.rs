//! Redo by a pool of workers: who is chosen, what is retried, how jobs are batched.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use palimpsest_proto::redo::v1 as wire;
use palimpsest_redo::{ApplyRequest, Engine, EngineError};
use palimpsest_runtime::TaskScope;
use palimpsest_types::{ErrorKind, TenantId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use wire::redo_service_client::RedoServiceClient;

use crate::{
    broker::{ClusterView, Role},
    channel::{MAX_MESSAGE, connect_lazily},
    convert::{
        InvalidMessageError, id_bytes, id_to_wire, record_from_wire, record_to_wire, rel_tag,
        rel_tag_to_wire,
    },
    status::RemoteError,
};

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
    workers: Arc<Mutex<HashMap<String, Worker>>>,
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
    /// The jobs, each with the id to answer to.
    pub jobs: Vec<(u64, ApplyRequest)>,
}

#[derive(Debug, Clone)]
struct Worker {
    jobs: mpsc::Sender<Job>,
    outstanding: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Job {
    tenant: RedoTenant,
    request: ApplyRequest,
    answer: oneshot::Sender<Result<Bytes, RemoteError>>,
}

/// Jobs that wait for a connection's task, at most.
const QUEUE: usize = 256;
/// Jobs in one message, at most.
const MAX_BATCH: usize = 32;
/// Messages on their way to a worker, at most.
const MESSAGES: usize = 4;
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

    /// The worker with the least to do.
    async fn choose(&self) -> Result<Worker, RemoteError> {
        let mut cluster = self.cluster.clone();
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let addresses = cluster.borrow_and_update().addresses(Role::RedoWorker);
                if let Some(worker) = self.least_loaded(addresses)? {
                    return Ok(worker);
                }
                if cluster.changed().await.is_err() {
                    return Err(no_worker());
                }
            }
        });
        found.await.unwrap_or_else(|_| Err(no_worker()))
    }

    fn least_loaded(&self, addresses: Vec<String>) -> Result<Option<Worker>, RemoteError> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|address, worker| addresses.contains(address) && !worker.jobs.is_closed());
        for address in addresses {
            if let Entry::Vacant(place) = workers.entry(address) {
                let worker = self.connect(place.key())?;
                place.insert(worker);
            }
        }
        let load = |worker: &&Worker| worker.outstanding.load(Ordering::Relaxed);
        Ok(workers.values().min_by_key(load).cloned())
    }

    fn connect(&self, address: &str) -> Result<Worker, RemoteError> {
        let client = RedoServiceClient::new(connect_lazily(address)?)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let token = self.scope.token().clone();
        self.scope.spawn("redo connection", async move {
            // Dropping the connection at any point is safe: jobs without an answer are tried again.
            tokio::select! {
                () = token.cancelled() => {}
                ended = serve_connection(client, queue) => {
                    if let Err(error) = ended {
                        tracing::warn!(%error, "the connection to a redo worker broke");
                    }
                }
            }
        });
        Ok(Worker {
            jobs,
            outstanding: Arc::default(),
        })
    }

    async fn apply(&self, tenant: RedoTenant, request: ApplyRequest) -> Result<Bytes, RemoteError> {
        for _ in 0..ATTEMPTS {
            let worker = self.choose().await?;
            let (answer, answered) = oneshot::channel();
            let job = Job {
                tenant,
                request: request.clone(),
                answer,
            };
            let load = worker.enter();
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

fn no_worker() -> RemoteError {
    let message = "no redo worker is alive; start one and try again".to_owned();
    RemoteError {
        kind: ErrorKind::NotReady,
        message,
    }
}

/// Sends jobs and hands out answers until either side ends. Pending jobs fail by being dropped.
async fn serve_connection(
    mut client: RedoServiceClient<tonic::transport::Channel>,
    mut queue: mpsc::Receiver<Job>,
) -> Result<(), RemoteError> {
    let (messages, outgoing) = mpsc::channel(MESSAGES);
    let mut answers = client
        .apply(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    let mut pending = Pending::default();
    let mut waiting = Vec::new();
    loop {
        // Cancel-safe: `recv_many`, `message` and `reserve` lose nothing when dropped.
        tokio::select! {
            count = queue.recv_many(&mut waiting, MAX_BATCH), if waiting.is_empty() => {
                if count == 0 {
                    return Ok(());
                }
            }
            permit = messages.reserve(), if !waiting.is_empty() => {
                let Ok(permit) = permit else { return Ok(()) };
                permit.send(pending.batch(&mut waiting));
            }
            message = answers.message() => {
                let Some(message) = message? else { return Ok(()) };
                pending.answer(message);
            }
        }
    }
}

/// Jobs that were sent and not answered.
#[derive(Default)]
struct Pending {
    next_id: u64,
    jobs: HashMap<u64, oneshot::Sender<Result<Bytes, RemoteError>>>,
}

impl Pending {
    /// Takes the jobs of the first one's tenant and makes a message of them.
    fn batch(&mut self, waiting: &mut Vec<Job>) -> wire::ApplyRequest {
        let Some(tenant) = waiting.first().map(|job| job.tenant) else {
            return wire::ApplyRequest::default();
        };
        let jobs = waiting
            .extract_if(.., |job| job.tenant == tenant)
            .map(|job| {
                self.next_id += 1;
                self.jobs.insert(self.next_id, job.answer);
                job_to_wire(self.next_id, job.request)
            });
        wire::ApplyRequest {
            tenant_id: id_to_wire(tenant.tenant.as_bytes()),
            pg_version: tenant.pg_version,
            wal_log_hints: tenant.wal_log_hints,
            jobs: jobs.collect(),
        }
    }

    fn answer(&mut self, message: wire::ApplyResponse) {
        for result in message.results {
            let Some(answer) = self.jobs.remove(&result.job_id) else {
                continue;
            };
            // A caller that has gone away does not want its answer.
            let _ = answer.send(match result.error {
                Some(error) => Err(error.into()),
                None => Ok(result.page),
            });
        }
    }
}

fn job_to_wire(job_id: u64, request: ApplyRequest) -> wire::apply_request::Job {
    wire::apply_request::Job {
        job_id,
        rel: Some(rel_tag_to_wire(request.rel)),
        block_number: request.block.get(),
        base: request.base.unwrap_or_default(),
        records: request.records.into_iter().map(record_to_wire).collect(),
    }
}

impl TryFrom<wire::ApplyRequest> for Batch {
    type Error = InvalidMessageError;

    fn try_from(message: wire::ApplyRequest) -> Result<Self, Self::Error> {
        let tenant = RedoTenant {
            tenant: TenantId::from_bytes(id_bytes("tenant_id", &message.tenant_id)?),
            pg_version: message.pg_version,
            wal_log_hints: message.wal_log_hints,
        };
        let job = |job: wire::apply_request::Job| {
            let request = ApplyRequest {
                rel: rel_tag(job.rel)?,
                block: palimpsest_types::BlockNumber::new(job.block_number),
                base: (!job.base.is_empty()).then_some(job.base),
                records: job.records.into_iter().map(record_from_wire).collect(),
            };
            Ok((job.job_id, request))
        };
        Ok(Self {
            tenant,
            jobs: message
                .jobs
                .into_iter()
                .map(job)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The answer to one job as a message.
pub fn result_to_wire(
    job_id: u64,
    outcome: Result<Bytes, EngineError>,
) -> wire::apply_response::Result {
    match outcome {
        Ok(page) => wire::apply_response::Result {
            job_id,
            error: None,
            page,
        },
        Err(error) => {
            let detail = crate::status::error_detail(error.kind, &error);
            wire::apply_response::Result {
                job_id,
                error: Some(detail),
                page: Bytes::new(),
            }
        }
    }
}

/// Batches as a worker's handler reads them.
pub type BatchStream = Streaming<wire::ApplyRequest>;
