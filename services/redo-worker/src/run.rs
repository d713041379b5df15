use std::{io, net::SocketAddr, sync::Arc};

use palimpsest_api::{
    RemoteError,
    broker::{BrokerClient, Member, Role},
};
use palimpsest_redo_postgres::{DiscoverError, EngineSettings, RunAs};
use palimpsest_runtime::TaskScope;
use palimpsest_service_kit::{
    BindError, Failure, GrpcServer, Heartbeat, Readiness, Services, node_id,
};
use palimpsest_types::ErrorKind;

use crate::{
    core::{Limits, PostgresSource, TenantEngines},
    grpc::RedoApi,
    settings::Settings,
};

/// A redo-worker that is up. It lives in the scope it was started in, not in this handle.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    engines: Arc<TenantEngines<PostgresSource>>,
}

/// A redo-worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A program is missing.
    #[error("the redo engine is incomplete")]
    Engine(#[from] DiscoverError),
    /// There is nobody to run `postgres` as.
    #[error("can't find the user to run redo processes as")]
    RunAs(#[source] io::Error),
    /// It can't listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The storage-broker's address is none.
    #[error("the storage-broker's address is wrong")]
    Broker(#[source] RemoteError),
}

/// Starts a redo-worker in `scope`; it ends with the scope's token. The first process is started
/// by the first job.
///
/// # Errors
/// If its programs are missing or it can't listen.
pub async fn run(settings: Settings, scope: &TaskScope) -> Result<Running, StartError> {
    // Wrong settings are found before a port is taken.
    BrokerClient::new(&settings.broker).map_err(StartError::Broker)?;
    let mut engine = EngineSettings::discover(&settings.pg_bin, &settings.redo_build)?;
    engine.run_as = RunAs::unprivileged().map_err(StartError::RunAs)?;
    let server = GrpcServer::bind(&settings.listen).await?;
    let address = server.address();

    let limits = Limits {
        processes_per_tenant: settings.processes_per_tenant,
        tenants: settings.max_tenants,
    };
    let engines = Arc::new(TenantEngines::new(PostgresSource::new(engine), limits));
    stop_with(scope, Arc::clone(&engines));

    let member = Member {
        node: node_id(),
        role: Role::RedoWorker,
        address: address.to_string(),
    };
    Heartbeat::new(&settings.broker, member)
        .start(scope, Vec::new, drop)
        .map_err(StartError::Broker)?;
    let api = RedoApi::new(Arc::clone(&engines), scope.clone()).into_server();
    server.start(Services::default().with(api), &Readiness::new(true), scope);
    tracing::info!(%address, "redo-worker is up");
    Ok(Running { address, engines })
}

/// Ends the processes when the scope is told to stop, after they have answered what they have.
fn stop_with(scope: &TaskScope, engines: Arc<TenantEngines<PostgresSource>>) {
    let token = scope.token().clone();
    scope.spawn("redo processes", async move {
        token.cancelled().await;
        engines.stop().await;
        tracing::info!(deaths = engines.deaths(), "redo-worker is down");
    });
}

impl Running {
    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many of its processes died or were killed over jobs.
    pub fn deaths(&self) -> u64 {
        self.engines.deaths()
    }
}

impl StartError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Engine(_) | Self::RunAs(_) | Self::Broker(_) => ErrorKind::Invalid,
            Self::Bind(error) => error.kind(),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(error.kind(), &error)
    }
}
