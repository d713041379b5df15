#[cfg(test)]
mod tests;

use std::sync::Arc;

use palimpsest_api::channel::MAX_MESSAGE;
use palimpsest_proto::redo::v1::{
    ApplyRequest, ApplyResponse,
    redo_service_server::{RedoService, RedoServiceServer},
};
use palimpsest_runtime::TaskScope;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::conversation::Conversation;
use crate::core::{ProcessSource, TenantEngines};

/// Messages on their way to the caller of a stream, at most.
const MESSAGES: usize = 4;

/// `RedoService`.
#[derive(Debug)]
pub struct RedoApi<S: ProcessSource> {
    engines: Arc<TenantEngines<S>>,
    scope: TaskScope,
}

impl<S: ProcessSource> RedoApi<S> {
    /// Serves these engines; streams live in `scope`.
    pub fn new(engines: Arc<TenantEngines<S>>, scope: TaskScope) -> Self {
        Self { engines, scope }
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
        self.scope.spawn(
            "redo stream",
            conversation.run(request.into_inner(), answers, token),
        );
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
