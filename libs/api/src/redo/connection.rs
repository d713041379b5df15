//! One connection to a redo worker.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use palimpsest_proto::redo::v1 as wire;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use wire::redo_service_client::RedoServiceClient;

use super::{Job, Urgency, convert::job_to_wire};
use crate::{channel::Channel, convert::id_to_wire, status::RemoteError};

/// Jobs in one message, at most.
const MAX_BATCH: usize = 32;
/// Bytes of jobs in one message, about; far below what a message may have.
const BATCH_BYTES: usize = 8 << 20;
/// The same of jobs that nobody waits for. A thread that packs or unpacks a message does nothing else meanwhile,
/// and others' reads may be queued behind it: a long message takes longer than a read may.
const BACKGROUND_BYTES: usize = 64 << 10;
/// Messages on their way to a worker, at most.
const MESSAGES: usize = 4;
/// How often it is looked whether the worker is silent, while it may be without being given up.
const LOOKS: u32 = 12;

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// It was lost, or never made.
    #[error(transparent)]
    Broke(#[from] RemoteError),
    /// The worker stands still.
    #[error("the worker has jobs and has said nothing for {0:?}")]
    Silent(Duration),
}

/// Sends jobs and hands out answers until either side ends. Jobs without an answer stay in `queue`
/// and `pending`, and fail when these are dropped.
pub(super) async fn serve(
    mut client: RedoServiceClient<Channel>,
    queue: &mut mpsc::Receiver<Job>,
    pending: &mut Pending,
    silence: Duration,
) -> Result<(), ConnectionError> {
    let (messages, outgoing) = mpsc::channel(MESSAGES);
    let opened = timeout(silence, client.apply(ReceiverStream::new(outgoing))).await;
    let opened = opened.map_err(|_| ConnectionError::Silent(silence))?;
    let mut answers = opened.map_err(RemoteError::from)?.into_inner();
    let mut looks = interval(silence / LOOKS);
    loop {
        // Cancel-safe: `recv_many`, `message`, `reserve` and `tick` lose nothing when dropped.
        tokio::select! {
            count = queue.recv_many(&mut pending.unsent, MAX_BATCH), if pending.unsent.is_empty() => {
                if count == 0 {
                    return Ok(());
                }
                pending.forget_abandoned();
            }
            permit = messages.reserve(), if !pending.unsent.is_empty() => {
                let Ok(permit) = permit else { return Ok(()) };
                permit.send(pending.batch());
            }
            message = answers.message() => {
                let Some(message) = message.map_err(RemoteError::from)? else {
                    return Ok(());
                };
                pending.answer(message);
            }
            now = looks.tick() => {
                if pending.silent_for(now) >= silence {
                    return Err(ConnectionError::Silent(silence));
                }
            }
        }
    }
}

/// Jobs of one connection that were taken from the queue and not answered.
pub(super) struct Pending {
    urgency: Urgency,
    next_id: u64,
    unsent: Vec<Job>,
    sent: HashMap<u64, oneshot::Sender<Result<Bytes, RemoteError>>>,
    /// Since when a word has been due: since the last one, or since there is a job to answer.
    due_since: Option<Instant>,
}

impl Pending {
    /// None yet.
    pub(super) fn new(urgency: Urgency) -> Self {
        Self {
            urgency,
            next_id: 0,
            unsent: Vec::new(),
            sent: HashMap::new(),
            due_since: None,
        }
    }

    /// Leaves out what nobody waits for any more: who has much to do need not do that.
    fn forget_abandoned(&mut self) {
        self.unsent.retain(|job| !job.answer.is_closed());
    }

    /// Takes jobs of the first one's tenant and makes a message of them.
    fn batch(&mut self) -> wire::ApplyRequest {
        let Some(tenant) = self.unsent.first().map(|job| job.tenant) else {
            return wire::ApplyRequest::default();
        };
        self.due_since = self.due_since.or_else(|| Some(Instant::now()));
        let most = match self.urgency {
            Urgency::Awaited => BATCH_BYTES,
            Urgency::Background => BACKGROUND_BYTES,
        };
        let mut bytes = 0;
        let fits = |job: &mut Job| {
            let fits = job.tenant == tenant && bytes < most;
            bytes += if fits { job.request.size() } else { 0 };
            fits
        };
        let jobs = self.unsent.extract_if(.., fits).map(|job| {
            self.next_id += 1;
            self.sent.insert(self.next_id, job.answer);
            job_to_wire(self.next_id, job.request, job.traceparent)
        });
        wire::ApplyRequest {
            tenant_id: id_to_wire(tenant.tenant.as_bytes()),
            pg_version: tenant.pg_version,
            wal_log_hints: tenant.wal_log_hints,
            jobs: jobs.collect(),
            background: self.urgency == Urgency::Background,
        }
    }

    /// Hands out what is answered. A message without answers says that the worker is there.
    fn answer(&mut self, message: wire::ApplyResponse) {
        for result in message.results {
            let Some(answer) = self.sent.remove(&result.job_id) else {
                continue;
            };
            // A caller that has gone away does not want its answer.
            let _ = answer.send(match result.error {
                Some(error) => Err(error.into()),
                None => Ok(result.page),
            });
        }
        self.due_since = (!self.sent.is_empty()).then(Instant::now);
    }

    fn silent_for(&self, now: Instant) -> Duration {
        self.due_since
            .map(|since| now.saturating_duration_since(since))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::PAGE_SIZE;

    use super::{
        super::{
            Batch,
            tests::{TENANT, request},
        },
        *,
    };

    fn job(answer: oneshot::Sender<Result<Bytes, RemoteError>>) -> Job {
        Job {
            tenant: TENANT,
            request: request(0),
            traceparent: None,
            answer,
        }
    }

    #[test]
    fn a_worker_is_told_that_nobody_waits_for_a_page() {
        for urgency in [Urgency::Awaited, Urgency::Background] {
            let mut pending = Pending::new(urgency);
            let (answer, _answered) = oneshot::channel();
            pending.unsent.push(job(answer));
            let told: Batch = pending.batch().try_into().unwrap();
            assert_eq!(told.urgency, urgency);
            assert_eq!(told.jobs.len(), 1);
        }
    }

    #[test]
    fn messages_are_short_that_nobody_waits_for() {
        let page = Bytes::from_static(&[0; PAGE_SIZE]);
        let count = |urgency| {
            let mut pending = Pending::new(urgency);
            let (answers, _answered): (Vec<_>, Vec<_>) =
                (0..20).map(|_| oneshot::channel()).unzip();
            pending.unsent.extend(answers.into_iter().map(|answer| {
                let mut job = job(answer);
                job.request.base = Some(page.clone());
                job
            }));
            pending.batch().jobs.len()
        };
        assert_eq!(count(Urgency::Awaited), 20);
        assert!((8..10).contains(&count(Urgency::Background)));
    }

    #[test]
    fn jobs_that_nobody_waits_for_any_more_are_not_sent() {
        let (answer, answered) = oneshot::channel();
        let mut pending = Pending::new(Urgency::default());
        pending.unsent.push(job(answer));
        pending.forget_abandoned();
        assert_eq!(pending.unsent.len(), 1);
        drop(answered);
        pending.forget_abandoned();
        assert!(pending.unsent.is_empty());
    }
}
