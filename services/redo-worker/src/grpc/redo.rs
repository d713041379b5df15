#[cfg(test)]
mod tests;

use std::sync::Arc;

use palimpsest_api::channel::MAX_MESSAGE;
use palimpsest_proto::redo::v1::{
    ApplyRequest, ApplyResponse,
    redo_service_server::{RedoService, RedoServiceServer},
};
use palimpsest_runtime::{BackgroundThreads, TaskScope};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::conversation::{Conversation, first};
use crate::core::{ProcessSource, TenantEngines};

/// Messages on their way to the caller of a stream, at most.
const MESSAGES: usize = 4;

/// `RedoService`.
#[derive(Debug)]
pub struct RedoApi<S: ProcessSource> {
    engines: Arc<TenantEngines<S>>,
    background: Arc<BackgroundThreads>,
    scope: TaskScope,
}

impl<S: ProcessSource> RedoApi<S> {
    /// Serves these engines; streams live in `scope`, those that nobody waits for on these threads.
    pub fn new(
        engines: Arc<TenantEngines<S>>,
        background: Arc<BackgroundThreads>,
        scope: TaskScope,
    ) -> Self {
        Self {
            engines,
            background,
            scope,
        }
    }

    /// The service with its limits.
    pub fn into_server(self) -> RedoServiceServer<Self> {
        RedoServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }
}

#[tonic::async_trait]
impl<S: ProcessSource> RedoService for RedoApi<S> {
    type ApplyStream = ReceiverStream<Result<ApplyResponse, Status>>;

    async fn apply(
        &self,
        request: Request<Streaming<ApplyRequest>>,
    ) -> Result<Response<Self::ApplyStream>, Status> {
        let (answers, stream) = mpsc::channel(MESSAGES);
        let conversation = Conversation::new(Arc::clone(&self.engines));
        let token = self.scope.token().clone();
        let background = Arc::clone(&self.background);
        let mut batches = request.into_inner();
        self.scope.spawn("redo stream", async move {
            // Clients don't mix what they wait for with what they don't, so the first message tells it of all.
            let Some(first) = first(&mut batches, &answers, &token).await else {
                return;
            };
            let nobody_waits = first.background;
            let work = conversation.run(first, batches, answers, token);
            if nobody_waits {
                background.run(work).await;
            } else {
                work.await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
