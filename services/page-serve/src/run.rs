use std::{net::SocketAddr, sync::Arc};

use palimpsest_api::{
    RemoteError,
    broker::{Member, Role, watch_cluster},
    channel::MAX_MESSAGE,
    lease::LeaseClient,
    redo::RedoPool,
    tenant_settings::TenantSettings,
};
use palimpsest_proto::page::v1::page_service_server::PageServiceServer;
use palimpsest_runtime::TaskScope;
use palimpsest_service_kit::{
    BindError, Failure, GrpcServer, Heartbeat, Readiness, Services, new_member,
    threads::address_space,
};
use palimpsest_settings::Service;
use palimpsest_store::{ObjectStore, StoreError};
use palimpsest_telemetry::{Sampled, registry};
use palimpsest_types::{ByteCount, ErrorKind, Percent};

use crate::{
    core::{Limits, Timelines},
    grpc::{Holding, PageHandler},
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

/// Why it is not ready, at first and then.
const UNTOLD: &str = "waiting for what the storage-broker knows";
const OPENING: &str = "opening timelines";

/// What holds for a tenant that has set nothing: all memory that others leave, and pages as fast as they are made.
const TENANT_DEFAULTS: TenantSettings = TenantSettings {
    memory_share: Some(Percent::WHOLE),
    ..TenantSettings::NONE
};

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
        tail: fitting(settings.tail_memory),
        answers: settings.answer_memory,
        patience: settings.lsn_patience,
    };
    let redo = RedoPool::new(cluster.clone(), scope.clone());
    redo.register(&mut metrics);
    let timelines = Timelines::start(store, redo, cluster, limits, scope.clone());

    let member = Member {
        tenant_defaults: TENANT_DEFAULTS,
        ..new_member(Role::PageServe, address)
    };
    Heartbeat::new(&settings.broker, member)
        .start(scope, Vec::new, drop)
        .map_err(StartError::Broker)?;
    timelines.metrics().register(&mut metrics);
    let sampled = Arc::clone(&timelines);
    metrics.register_collector(Sampled::new(move || sampled.samples()));
    let server = server.with_metrics(metrics);
    let readiness = ready_with(&timelines, scope);
    let leases = LeaseClient::new(&settings.broker).map_err(StartError::Broker)?;
    let pages = PageServiceServer::new(PageHandler::new(timelines, leases, scope.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let pages = Holding::new(pages, scope.clone());
    server.start(Services::default().with(pages), &readiness, scope);
    tracing::info!(%address, %side, "page-serve is up");
    Ok(Running { address, side })
}

/// Says that the service is ready once the timelines that there are can be read. It stays so: what is
/// known then is served without the storage-broker.
fn ready_with(timelines: &Arc<Timelines>, scope: &TaskScope) -> Readiness {
    let readiness = Readiness::waiting(UNTOLD);
    let (timelines, told) = (Arc::clone(timelines), readiness.clone());
    let token = scope.token().clone();
    scope.spawn("readiness", async move {
        let ready = async {
            timelines.heard().await;
            told.wait_for(OPENING);
            timelines.opened().await;
            told.set(true);
        };
        // Cancel-safe: what is lost is a word about a service that ends.
        token.run_until_cancelled(ready).await;
    });
    readiness
}

/// So much of a budget for tails as the process's address space (`ulimit -v`) has room for, beside
/// caches, threads and, in one process, the other services.
fn fitting(tail: ByteCount) -> ByteCount {
    let Some(limit) = address_space() else {
        return tail;
    };
    let fits = ByteCount::new(limit.get() / 4);
    if tail > fits {
        tracing::warn!(asked = %tail, given = %fits, %limit, "tail-memory is cut to a quarter of the address space; raise ulimit -v for more");
    }
    tail.min(fits)
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
