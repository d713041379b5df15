use std::{sync::Arc, time::Duration};

use palimpsest_api::{TimelineRef, error_status, feed::FeedBatch};
use palimpsest_proto::ingest::v1::{
    SubscribeRequest, SubscribeResponse, feed_service_server::FeedService,
};
use palimpsest_runtime::TaskScope;
use palimpsest_types::{ErrorKind, Lsn};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::core::{FollowError, Follower, Node};

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

/// Why nothing more is sent.
#[derive(Debug)]
enum Ended {
    /// The subscriber left, or has heard the last.
    Left,
    /// It takes too little.
    CutOff,
}

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
        let follower = self.node.follow(timeline, Lsn::new(message.after_lsn));
        let follower =
            follower.ok_or_else(|| error_status(ErrorKind::NotReady, &NotHere(timeline)))?;
        let (sender, messages) = mpsc::channel(AHEAD);
        let token = self.scope.token().clone();
        let cut_off = self.node.metrics().cut_off.clone();
        self.scope.spawn("feed", async move {
            // Cancel-safe: a subscriber resumes from what it has.
            let sending = send_changes(follower, timeline, &sender);
            if let Some(Ended::CutOff) = token.run_until_cancelled(sending).await {
                cut_off.inc();
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Sends everything that the follower comes to, until the subscriber goes or is too slow.
async fn send_changes(
    mut follower: Follower,
    timeline: TimelineRef,
    subscriber: &mpsc::Sender<Message>,
) -> Ended {
    let mut message = Ok(follower.head());
    loop {
        if let Err(ended) = send(subscriber, timeline, message).await {
            return ended;
        }
        // The follower is given up if its call is cancelled.
        message = tokio::select! {
            () = subscriber.closed() => return Ended::Left,
            next = follower.next() => next,
        };
    }
}

/// Sends a message; after an error, nobody is there for another.
async fn send(
    subscriber: &mpsc::Sender<Message>,
    timeline: TimelineRef,
    message: Result<FeedBatch, FollowError>,
) -> Result<(), Ended> {
    let last = message.is_err();
    let message = match message {
        Ok(batch) => Ok(batch.into()),
        // A writer that ends says nothing more.
        Err(FollowError::Over) => return Err(Ended::Left),
        Err(error) => Err(error_status(error.kind(), &error)),
    };
    match tokio::time::timeout(PATIENCE, subscriber.send(message)).await {
        Ok(Ok(())) if !last => Ok(()),
        Ok(_) => Err(Ended::Left),
        Err(_) => {
            tracing::info!(%timeline, "a subscriber took nothing for {PATIENCE:?} and is cut off");
            Err(Ended::CutOff)
        }
    }
}
