//! One connection to a redo worker.

use std::collections::HashMap;

use bytes::Bytes;
use palimpsest_proto::redo::v1 as wire;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use wire::redo_service_client::RedoServiceClient;

use super::{Job, convert::job_to_wire};
use crate::{channel::Channel, convert::id_to_wire, status::RemoteError};

/// Jobs in one message, at most.
const MAX_BATCH: usize = 32;
/// Bytes of jobs in one message, about; far below what a message may have.
const BATCH_BYTES: usize = 8 << 20;
/// Messages on their way to a worker, at most.
const MESSAGES: usize = 4;

/// Sends jobs and hands out answers until either side ends. Jobs without an answer stay in `queue`
/// and `pending`, and fail when these are dropped.
pub(super) async fn serve(
    mut client: RedoServiceClient<Channel>,
    queue: &mut mpsc::Receiver<Job>,
    pending: &mut Pending,
) -> Result<(), RemoteError> {
    let (messages, outgoing) = mpsc::channel(MESSAGES);
    let mut answers = client
        .apply(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    loop {
        // Cancel-safe: `recv_many`, `message` and `reserve` lose nothing when dropped.
        tokio::select! {
            count = queue.recv_many(&mut pending.unsent, MAX_BATCH), if pending.unsent.is_empty() => {
                if count == 0 {
                    return Ok(());
                }
            }
            permit = messages.reserve(), if !pending.unsent.is_empty() => {
                let Ok(permit) = permit else { return Ok(()) };
                permit.send(pending.batch());
            }
            message = answers.message() => {
                let Some(message) = message? else { return Ok(()) };
                pending.answer(message);
            }
        }
    }
}

/// Jobs of one connection that were taken from the queue and not answered.
#[derive(Default)]
pub(super) struct Pending {
    next_id: u64,
    unsent: Vec<Job>,
    sent: HashMap<u64, oneshot::Sender<Result<Bytes, RemoteError>>>,
}

impl Pending {
    /// Takes jobs of the first one's tenant and makes a message of them.
    fn batch(&mut self) -> wire::ApplyRequest {
        let Some(tenant) = self.unsent.first().map(|job| job.tenant) else {
            return wire::ApplyRequest::default();
        };
        let mut bytes = 0;
        let fits = |job: &mut Job| {
            let fits = job.tenant == tenant && bytes < BATCH_BYTES;
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
        }
    }

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
    }
}
