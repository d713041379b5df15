use std::{sync::Arc, time::Duration};

use palimpsest_api::{TimelineRef, error_status, feed::FeedBatch};
use palimpsest_layer::DeltaLayer as _;
use palimpsest_proto::ingest::v1::{
    SubscribeRequest, SubscribeResponse, feed_service_server::FeedService,
};
use palimpsest_read::Tail;
use palimpsest_runtime::TaskScope;
use palimpsest_types::{ByteCount, ErrorKind, Lsn};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::core::Node;

/// Answers `FeedService`.
#[derive(Debug)]
pub(crate) struct FeedHandler {
    node: Arc<Node>,
    scope: TaskScope,
}

/// The timeline is not written here.
#[derive(Debug, thiserror::Error)]
#[error("timeline {0} is not written here, or not yet")]
struct NotHere(TimelineRef);

/// Changes in one message, about.
const BATCH: ByteCount = ByteCount::mib(1);
/// Messages on their way to a subscriber.
const AHEAD: usize = 4;
/// A subscriber that takes nothing for so long is cut off; it resumes from its own last LSN.
const PATIENCE: Duration = Duration::from_secs(30);

type Message = Result<SubscribeResponse, Status>;

impl FeedHandler {
    pub(crate) fn new(node: Arc<Node>, scope: TaskScope) -> Self {
        Self { node, scope }
    }
}

#[tonic::async_trait]
impl FeedService for FeedHandler {
    type SubscribeStream = ReceiverStream<Message>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let message = request.into_inner();
        let timeline = TimelineRef::try_from(message.timeline)
            .map_err(|error| error_status(error.kind(), &error))?;
        let tail = self.node.tail(timeline);
        let tail = tail.ok_or_else(|| error_status(ErrorKind::NotReady, &NotHere(timeline)))?;
        let (sender, messages) = mpsc::channel(AHEAD);
        let after = Lsn::new(message.after_lsn);
        let token = self.scope.token().clone();
        self.scope.spawn("feed", async move {
            // Cancel-safe: a subscriber resumes from what it has.
            token
                .run_until_cancelled(send_changes(&tail, after, &sender))
                .await;
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Sends everything after `after`, then what comes, until the subscriber goes or is too slow.
async fn send_changes(tail: &Tail, mut after: Lsn, subscriber: &mpsc::Sender<Message>) {
    let mut newest = tail.watch();
    let first = FeedBatch {
        epoch: tail.read().epoch(),
        up_to: Lsn::ZERO,
        records: Vec::new(),
    };
    if !send(subscriber, first).await {
        return;
    }
    loop {
        let batch = next_batch(tail, after);
        if batch.up_to > after {
            after = batch.up_to;
            if !send(subscriber, batch).await {
                return;
            }
        } else {
            // Cancel-safe, and the newest value is seen however often it changed meanwhile.
            tokio::select! {
                () = subscriber.closed() => return,
                changed = newest.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

fn next_batch(tail: &Tail, after: Lsn) -> FeedBatch {
    let layer = tail.read();
    let records = layer.log_after(after, BATCH);
    let up_to = records.last().map_or(layer.last(), |record| record.lsn);
    FeedBatch {
        epoch: layer.epoch(),
        up_to,
        records,
    }
}

async fn send(subscriber: &mpsc::Sender<Message>, batch: FeedBatch) -> bool {
    matches!(
        tokio::time::timeout(PATIENCE, subscriber.send(Ok(batch.into()))).await,
        Ok(Ok(()))
    )
}
