use std::{io, net::SocketAddr, num::NonZeroUsize, sync::Arc};

use palimpsest_api::{
    RemoteError,
    broker::{Member, Role, watch_cluster},
};
use palimpsest_runtime::{BackgroundLimits, BackgroundThreads, TaskScope};
use palimpsest_service_kit::{
    BindError, Failure, GrpcServer, Heartbeat, Readiness, Services, new_member,
};
use palimpsest_settings::Service;
use palimpsest_store::{ObjectStore, StoreError};
use palimpsest_telemetry::registry;
use palimpsest_types::ErrorKind;

use crate::{
    core::{Compactor, Policy},
    grpc::CompactionApi,
    settings::Settings,
};

/// A compactor that is up. It lives in the scope it was started in, not in this handle.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    side: SocketAddr,
}

/// A compactor could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The object store can't be used.
    #[error("the object store can't be used")]
    Store(#[from] StoreError),
    /// It can't listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// There can be no threads.
    #[error("can't start threads for the work")]
    Threads(#[source] io::Error),
    /// The storage-broker's address is none.
    #[error("the storage-broker's address is wrong")]
    Broker(#[source] RemoteError),
}

/// For all that belongs to compaction and is not the work itself: reading and decompressing files, and talking to the
/// object store and to redo-workers.
const THREADS: BackgroundLimits = BackgroundLimits {
    tasks: NonZeroUsize::new(2).unwrap(),
    blocking: NonZeroUsize::new(4).unwrap(),
};

/// Starts a compactor in `scope`; it ends with the scope's token.
///
/// # Errors
/// If the object store can't be used or it can't listen.
pub async fn run(settings: Settings, scope: &TaskScope) -> Result<Running, StartError> {
    let store = ObjectStore::open(&settings.store).await?;
    run_on(store, settings, scope).await
}

/// Starts a compactor on another object store than its settings say.
///
/// # Errors
/// If it can't listen.
pub async fn run_on(
    store: ObjectStore,
    settings: Settings,
    scope: &TaskScope,
) -> Result<Running, StartError> {
    let server = GrpcServer::bind(&settings.listen).await?;
    let (address, side) = (server.address(), server.side_address());
    let mut metrics = registry(Service::Compactor.name());
    store.metrics().register(&mut metrics);
    let cluster = watch_cluster(&settings.broker, scope).map_err(StartError::Broker)?;
    let policy = Policy {
        threshold: settings.compaction_threshold.get(),
        at_once: settings.compaction_inputs.get(),
        images: settings.image_threshold.get(),
        target: settings.target_size,
        claim: settings.claim,
    };
    let compactor = Arc::new(Compactor::new(store, cluster, policy, scope.clone()));
    compactor.metrics().register(&mut metrics);
    compactor.redo().register(&mut metrics);
    let member = Member {
        tenant_defaults: settings.tenant_defaults(),
        ..new_member(Role::Compactor, address)
    };
    Heartbeat::new(&settings.broker, member)
        .start(scope, Vec::new, drop)
        .map_err(StartError::Broker)?;
    let server = server.with_metrics(metrics);
    // Without timelines it waits for some; there is nothing to be made ready.
    let threads = BackgroundThreads::start("compaction", THREADS).map_err(StartError::Threads)?;
    let threads = Arc::new(threads);
    let api = CompactionApi::new(Arc::clone(&compactor), Arc::clone(&threads)).into_server();
    server.start(Services::default().with(api), &Readiness::new(true), scope);
    scope.spawn("compaction", async move {
        threads.run(async move { compactor.run().await }).await;
    });
    tracing::info!(%address, %side, "compactor is up");
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
            Self::Threads(_) => ErrorKind::Internal,
            Self::Broker(_) => ErrorKind::Invalid,
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(error.kind(), &error)
    }
}
