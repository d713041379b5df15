use std::{net::SocketAddr, sync::Arc};

use palimpsest_api::{
    RemoteError,
    broker::{Member, Role, watch_cluster},
    channel::MAX_MESSAGE,
    redo::RedoPool,
};
use palimpsest_proto::page::v1::page_service_server::PageServiceServer;
use palimpsest_runtime::TaskScope;
use palimpsest_service_kit::{
    BindError, Failure, GrpcServer, Heartbeat, Readiness, Services, node_id,
};
use palimpsest_settings::Service;
use palimpsest_store::{ObjectStore, StoreError};
use palimpsest_telemetry::{Sampled, registry};
use palimpsest_types::ErrorKind;

use crate::{
    core::{Limits, Timelines},
    grpc::PageHandler,
    settings::Settings,
};

/// A page-serve that is up. It lives in the scope it was started in, not in this handle.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    side: SocketAddr,
}

/// A page-serve could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The object store can't be used.
    #[error("the object store can't be used")]
    Store(#[from] StoreError),
    /// It can't listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The storage-broker's address is none.
    #[error("the storage-broker's address is wrong")]
    Broker(#[source] RemoteError),
}

/// Starts a page-serve in `scope`; it ends with the scope's token.
///
/// # Errors
/// If the object store can't be used or it can't listen.
pub async fn run(settings: Settings, scope: &TaskScope) -> Result<Running, StartError> {
    let store = ObjectStore::open(&settings.store).await?;
    let server = GrpcServer::bind(&settings.listen).await?;
    let (address, side) = (server.address(), server.side_address());
    let mut metrics = registry(Service::PageServe.name());
    store.metrics().register(&mut metrics);
    let cluster = watch_cluster(&settings.broker, scope).map_err(StartError::Broker)?;
    let limits = Limits {
        page_cache: settings.page_cache,
        block_cache: settings.block_cache,
        tail: settings.tail_memory,
        patience: settings.lsn_patience,
    };
    let redo = RedoPool::new(cluster.clone(), scope.clone());
    let timelines = Timelines::start(store, redo, cluster, limits, scope.clone());

    let member = Member {
        node: node_id(),
        role: Role::PageServe,
        address: address.to_string(),
    };
    Heartbeat::new(&settings.broker, member)
        .start(scope, Vec::new, drop)
        .map_err(StartError::Broker)?;
    timelines.metrics().register(&mut metrics);
    let sampled = Arc::clone(&timelines);
    metrics.register_collector(Sampled::new(move || sampled.samples()));
    let server = server.with_metrics(metrics);
    let pages = PageServiceServer::new(PageHandler::new(timelines, scope.token().clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    server.start(
        Services::default().with(pages),
        &Readiness::new(true),
        scope,
    );
    tracing::info!(%address, %side, "page-serve is up");
    Ok(Running { address, side })
}

impl Running {
    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics and probes are, with the real port.
    pub fn side_address(&self) -> SocketAddr {
        self.side
    }
}

impl StartError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Bind(error) => error.kind(),
            Self::Broker(_) => ErrorKind::Invalid,
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(error.kind(), &error)
    }
}
