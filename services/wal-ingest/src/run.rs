use std::{net::SocketAddr, sync::Arc};

use palimpsest_api::{
    RemoteError,
    broker::{Member, Role},
};
use palimpsest_disk::{Disk, OsDisk};
use palimpsest_proto::ingest::v1::feed_service_server::FeedServiceServer;
use palimpsest_runtime::TaskScope;
use palimpsest_service_kit::{
    BindError, Failure, GrpcServer, Heartbeat, Readiness, Services, new_member,
};
use palimpsest_settings::Service;
use palimpsest_store::{ObjectStore, StoreError};
use palimpsest_telemetry::{Sampled, registry};
use palimpsest_types::ErrorKind;

use crate::{
    core::{Broker, Limits, Local, Node},
    grpc::FeedHandler,
    settings::Settings,
};

/// A wal-ingest that is up. It lives in the scope it was started in, not in this handle.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    side: SocketAddr,
}

/// What a wal-ingest keeps its files on.
#[derive(Debug, Clone)]
pub struct Backing {
    /// Local files.
    pub disk: Arc<dyn Disk>,
    /// The object store.
    pub store: ObjectStore,
}

/// A wal-ingest could not start.
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

/// Why it is not ready at first: only the storage-broker knows what it is to write.
const UNTOLD: &str = "waiting until the storage-broker has answered a heartbeat";

/// Starts a wal-ingest in `scope`; it ends with the scope's token.
///
/// # Errors
/// If the object store can't be used or it can't listen.
pub async fn run(settings: Settings, scope: &TaskScope) -> Result<Running, StartError> {
    let backing = Backing {
        disk: Arc::new(OsDisk),
        store: ObjectStore::open(&settings.store).await?,
    };
    run_on(backing, settings, scope).await
}

/// Starts a wal-ingest that keeps its files elsewhere than its settings say.
///
/// # Errors
/// If it can't listen.
pub async fn run_on(
    backing: Backing,
    settings: Settings,
    scope: &TaskScope,
) -> Result<Running, StartError> {
    let Backing { disk, store } = backing;
    let server = GrpcServer::bind(&settings.listen).await?;
    let address = server.address();
    let broker = Broker::new(&settings.broker, scope).map_err(StartError::Broker)?;
    let (orders, news) = (broker.clone(), broker.news());
    let limits = Limits {
        memory: settings.memory,
        local_disk: settings.local_disk,
        layer_size: settings.layer_size,
        layer_age: settings.layer_age,
        slot_retention: settings.slot_retention_limit,
        ..Limits::default()
    };
    let (tenant_defaults, restore_command) = (settings.tenant_defaults(), settings.restore());
    let mut metrics = registry(Service::WalIngest.name());
    store.metrics().register(&mut metrics);
    let node = Arc::new(Node::new(
        store,
        Local {
            disk,
            directory: settings.data,
            restore_command,
        },
        limits,
        broker,
        // Of their own: they end after the rest, when what they have is handed on.
        TaskScope::default(),
    ));
    let (leaving, token) = (Arc::clone(&node), scope.token().clone());
    scope.spawn("leave", async move {
        token.cancelled().await;
        leaving.leave(settings.flush_at_shutdown).await;
    });

    let (freezing, token) = (Arc::clone(&node), scope.token().clone());
    scope.spawn("freeze", async move {
        // Cancel-safe: freezing is not interrupted, only waiting for it.
        token.run_until_cancelled(freezing.freeze_in_time()).await;
    });
    let readiness = Readiness::waiting(UNTOLD);
    let (reporting, assigned, told) = (Arc::clone(&node), Arc::clone(&node), readiness.clone());
    let member = Member {
        tenant_defaults,
        ..new_member(Role::WalIngest, address)
    };
    orders.ask_for_orders(member.address.clone(), scope);
    let heartbeat = Heartbeat {
        news,
        ..Heartbeat::new(&settings.broker, member)
    };
    heartbeat
        .start(
            scope,
            move || reporting.statuses(),
            move |list| {
                assigned.assign(list);
                // For good: what it writes then goes on without the broker.
                told.set(true);
            },
        )
        .map_err(StartError::Broker)?;
    node.metrics().register(&mut metrics);
    let sampled = Arc::clone(&node);
    metrics.register_collector(Sampled::new(move || sampled.samples()));
    let side = server.side_address();
    let server = server.with_metrics(metrics);
    let feed = FeedServiceServer::new(FeedHandler::new(node, scope.clone()));
    server.start(Services::default().with(feed), &readiness, scope);
    tracing::info!(%address, %side, "wal-ingest is up");
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
