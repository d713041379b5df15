//! One stream: batches in, results out as each is ready.

use std::{collections::VecDeque, mem, sync::Arc};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use palimpsest_api::{
    InvalidMessageError, error_status,
    redo::{BEAT, Batch, BatchJob, BatchStream, RedoTenant, Urgency, result_to_wire},
};
use palimpsest_proto::redo::v1::{self as wire, apply_response::Result as JobResult};
use palimpsest_runtime::CancellationToken;
use palimpsest_telemetry::trace;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tonic::Status;
use tracing::{Instrument as _, Span};

use crate::core::{ProcessSource, TenantEngines};

/// Jobs of one stream that are worked on or whose results wait to be sent, at most.
const MAX_JOBS: usize = 256;
/// Bytes of the jobs that are worked on; the one that exceeds them is the last to be started.
const MAX_BYTES: usize = 32 << 20;

pub(super) type Answers = mpsc::Sender<Result<wire::ApplyResponse, Status>>;

/// The state of a stream. Messages are read only when all jobs of those before are worked on, so
/// that a caller who sends more than we can do waits.
pub(super) struct Conversation<S: ProcessSource> {
    engines: Arc<TenantEngines<S>>,
    waiting: VecDeque<Job>,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    running_bytes: usize,
    ready: Vec<JobResult>,
}

struct Job {
    tenant: RedoTenant,
    urgency: Urgency,
    job: BatchJob,
}

struct Done {
    bytes: usize,
    result: JobResult,
}

/// The first message of a stream, unless it ends before there is one.
pub(super) async fn first(
    batches: &mut BatchStream,
    answers: &Answers,
    token: &CancellationToken,
) -> Option<wire::ApplyRequest> {
    tokio::select! {
        () = answers.closed() => None,
        () = token.cancelled() => None,
        message = batches.message() => message.ok().flatten(),
    }
}

impl<S: ProcessSource> Conversation<S> {
    pub(super) fn new(engines: Arc<TenantEngines<S>>) -> Self {
        Self {
            engines,
            waiting: VecDeque::new(),
            running: FuturesUnordered::new(),
            running_bytes: 0,
            ready: Vec::new(),
        }
    }

    /// Runs until the caller ends the stream and has all results. Once the token is cancelled only
    /// what is worked on is answered; the caller has the rest done elsewhere.
    pub(super) async fn run(
        mut self,
        first: wire::ApplyRequest,
        mut batches: BatchStream,
        answers: Answers,
        token: CancellationToken,
    ) {
        if let Err(error) = self.accept(first) {
            return refuse(&answers, &error).await;
        }
        let mut reading = true;
        let mut beats = interval_at(Instant::now() + BEAT, BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while reading || !self.is_idle() {
            self.start_jobs();
            // Cancel-safe: `message`, `next`, `reserve` and `tick` lose nothing when dropped.
            tokio::select! {
                () = answers.closed() => return,
                () = token.cancelled(), if reading => {
                    reading = false;
                    self.give_up_waiting();
                }
                message = batches.message(), if reading && self.waiting.is_empty() => {
                    match message {
                        Ok(Some(message)) => match self.accept(message) {
                            Ok(()) => {}
                            Err(error) => return refuse(&answers, &error).await,
                        },
                        // A broken stream ends like a finished one: nobody reads the results.
                        Ok(None) | Err(_) => reading = false,
                    }
                }
                Some(done) = self.running.next(), if !self.running.is_empty() => self.finish(done),
                permit = answers.reserve(), if !self.ready.is_empty() => {
                    let Ok(permit) = permit else { return };
                    let results = mem::take(&mut self.ready);
                    permit.send(Ok(wire::ApplyResponse { results }));
                }
                // Without room for it there are other messages on their way.
                _ = beats.tick(), if !self.is_idle() => {
                    let _ = answers.try_send(Ok(wire::ApplyResponse::default()));
                }
            }
            self.collect();
        }
    }

    fn give_up_waiting(&mut self) {
        let waiting = i64::try_from(self.waiting.len()).unwrap_or(i64::MAX);
        self.engines.metrics().waiting.dec_by(waiting);
        self.waiting.clear();
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.ready.is_empty()
    }

    fn accept(&mut self, message: wire::ApplyRequest) -> Result<(), InvalidMessageError> {
        let Batch {
            tenant,
            urgency,
            jobs,
        } = message.try_into()?;
        let metrics = self.engines.metrics();
        metrics
            .batch_jobs
            .observe(f64::from(u32::try_from(jobs.len()).unwrap_or(u32::MAX)));
        metrics
            .waiting
            .inc_by(i64::try_from(jobs.len()).unwrap_or(i64::MAX));
        let jobs = jobs.into_iter().map(|job| Job {
            tenant,
            urgency,
            job,
        });
        self.waiting.extend(jobs);
        Ok(())
    }

    fn start_jobs(&mut self) {
        while self.has_room() {
            let Some(Job {
                tenant,
                urgency,
                job,
            }) = self.waiting.pop_front()
            else {
                return;
            };
            self.engines.metrics().waiting.dec();
            let span = span_of(tenant, &job);
            let BatchJob { id, request, .. } = job;
            let bytes = request.size();
            self.running_bytes += bytes;
            let engines = Arc::clone(&self.engines);
            let work = async move {
                let outcome = engines.apply(tenant, urgency, request).await;
                let result = result_to_wire(id, outcome);
                Done { bytes, result }
            };
            self.running.push(Box::pin(work.instrument(span)));
        }
    }

    fn has_room(&self) -> bool {
        let jobs = self.running.len() + self.ready.len();
        jobs < MAX_JOBS && self.running_bytes < MAX_BYTES
    }

    /// Takes all results that are there, so that they go out in one message.
    fn collect(&mut self) {
        while let Some(Some(done)) = self.running.next().now_or_never() {
            self.finish(done);
        }
    }

    fn finish(&mut self, done: Done) {
        self.running_bytes -= done.bytes;
        self.ready.push(done.result);
    }
}

impl<S: ProcessSource> Drop for Conversation<S> {
    fn drop(&mut self) {
        self.give_up_waiting();
    }
}

/// A job's part of the trace that its caller told, if it did: a stream is of no trace, its jobs are.
fn span_of(tenant: RedoTenant, job: &BatchJob) -> Span {
    let span = tracing::debug_span!(
        target: trace::TARGET,
        parent: None,
        "redo",
        tenant = %tenant.tenant,
        rel = %job.request.rel,
        block = job.request.block.get(),
        records = job.request.records.len(),
    );
    trace::follow(&span, &job.traceparent);
    span
}

/// A malformed message ends the stream: which jobs it was about can't be told.
async fn refuse(answers: &Answers, error: &InvalidMessageError) {
    let status = error_status(error.fault(), error);
    // A caller that has gone away does not want to know.
    let _ = answers.send(Err(status)).await;
}
