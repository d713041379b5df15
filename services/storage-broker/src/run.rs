use std::net::SocketAddr;

use palimpsest_runtime::TaskScope;
use palimpsest_service_kit::{BindError, Failure, GrpcServer, Readiness, Services};
use palimpsest_settings::Service;
use palimpsest_store::{ObjectStore, StoreError};
use palimpsest_telemetry::registry;
use palimpsest_types::ErrorKind;

use crate::{
    core::{Broker, CatalogStoreError},
    grpc::{AdminApi, MembershipApi},
    settings::Settings,
};

/// A storage-broker that is up. It lives in the scope it was started in, not in this handle.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    address: SocketAddr,
    side: SocketAddr,
}

/// A storage-broker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It can't listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The object store can't be used.
    #[error("the object store can't be used")]
    Store(#[from] StoreError),
    /// The catalog can't be read.
    #[error(transparent)]
    Catalog(#[from] CatalogStoreError),
}

/// Starts a storage-broker in `scope`; it ends with the scope's token.
///
/// # Errors
/// If it can't listen, or the store or the catalog in it can't be used.
pub async fn run(settings: Settings, scope: &TaskScope) -> Result<Running, StartError> {
    let server = GrpcServer::bind(&settings.listen).await?;
    let (address, side) = (server.address(), server.side_address());
    let store = ObjectStore::open(&settings.store).await?;
    let mut metrics = registry(Service::StorageBroker.name());
    store.metrics().register(&mut metrics);
    let broker = Broker::start(store, settings.timing, scope).await?;
    broker.register(&mut metrics);
    let server = server.with_metrics(metrics);
    let services = Services::default()
        .with(MembershipApi::new(broker.clone(), scope.token().clone()).into_server())
        .with(AdminApi::new(broker, scope.clone()).into_server());
    // The catalog has been read, so there is nothing to wait for.
    server.start(services, &Readiness::new(true), scope);
    tracing::info!(%address, %side, store = %settings.store, "storage-broker is up");
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
            Self::Bind(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Catalog(error) => error.kind(),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(error.kind(), &error)
    }
}
