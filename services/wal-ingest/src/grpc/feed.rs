use std::{sync::Arc, time::Duration};

use palimpsest_api::{TimelineRef, error_status, feed::FeedBatch};
use palimpsest_layer::LogRecord;
use palimpsest_proto::ingest::v1::{
    SubscribeRequest, SubscribeResponse, feed_service_server::FeedService,
};
use palimpsest_runtime::TaskScope;
use palimpsest_types::{ByteCount, ErrorKind, Lsn};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::core::{Feed, Node};

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

/// The changes that are asked for are in layers.
#[derive(Debug, thiserror::Error)]
#[error("changes after {asked} are in layers up to {start} already; read the manifest")]
struct Gone {
    asked: Lsn,
    start: Lsn,
}

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
        let feed = self.node.feed(timeline);
        let feed = feed.ok_or_else(|| error_status(ErrorKind::NotReady, &NotHere(timeline)))?;
        let (sender, messages) = mpsc::channel(AHEAD);
        let after = Lsn::new(message.after_lsn);
        let token = self.scope.token().clone();
        self.scope.spawn("feed", async move {
            // Cancel-safe: a subscriber resumes from what it has.
            token
                .run_until_cancelled(send_changes(&feed, after, &sender))
                .await;
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Sends everything after `after`, then what comes, until the subscriber goes or is too slow.
async fn send_changes(feed: &Feed, mut after: Lsn, subscriber: &mpsc::Sender<Message>) {
    let position = feed.subscribers.join(after);
    let mut newest = feed.tail.watch();
    let first = batch(feed, Vec::new(), Lsn::ZERO);
    if !send(subscriber, Ok(first.into())).await {
        return;
    }
    // A new epoch may begin before what the subscriber has; it then asks again from there.
    loop {
        let next = feed.tail.read().log_after(after, BATCH);
        let Some((records, up_to)) = next else {
            let gone = Gone {
                asked: after,
                start: feed.tail.read().start(),
            };
            send(subscriber, Err(error_status(ErrorKind::Conflict, &gone))).await;
            return;
        };
        if up_to > after {
            after = up_to;
            if !send(subscriber, Ok(batch(feed, records, up_to).into())).await {
                return;
            }
            position.has(after);
        } else {
            // Cancel-safe, and the newest value is seen however often it changed meanwhile.
            tokio::select! {
                () = subscriber.closed() => return,
                () = feed.over.cancelled() => return,
                changed = newest.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

fn batch(feed: &Feed, records: Vec<LogRecord>, up_to: Lsn) -> FeedBatch {
    FeedBatch {
        epoch: feed.epoch,
        epoch_start: feed.epoch_start,
        up_to,
        records,
    }
}

async fn send(subscriber: &mpsc::Sender<Message>, message: Message) -> bool {
    matches!(
        tokio::time::timeout(PATIENCE, subscriber.send(message)).await,
        Ok(Ok(()))
    )
}
