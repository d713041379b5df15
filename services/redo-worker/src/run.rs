use std::{io, net::SocketAddr, num::NonZeroUsize, sync::Arc};

use palimpsest_api::{
    RemoteError,
    broker::{BrokerClient, Role},
};
use palimpsest_redo_postgres::{DiscoverError, EngineSettings, ProbeError, RunAs, Wall, probe};
use palimpsest_runtime::{BackgroundLimits, BackgroundThreads, TaskScope};
use palimpsest_service_kit::{
    BindError, Failure, GrpcServer, Heartbeat, Readiness, Services, new_member,
};
use palimpsest_settings::Service;
use palimpsest_telemetry::{Registry, Sample, Sampled, registry};
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
    side: SocketAddr,
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
    /// There can be no threads.
    #[error("can't start threads for what nobody waits for")]
    Threads(#[source] io::Error),
    /// Redo does not work here.
    #[error("redo was tried and does not work; `pal doctor` looks for the reason")]
    Probe(#[source] ProbeError),
    /// It can't listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The storage-broker's address is none.
    #[error("the storage-broker's address is wrong")]
    Broker(#[source] RemoteError),
}

/// For all that belongs to redo in the background and is not done by its processes.
const BACKGROUND: BackgroundLimits = BackgroundLimits {
    tasks: NonZeroUsize::MIN,
    blocking: NonZeroUsize::MIN,
};

/// Starts a redo-worker in `scope`; it ends with the scope's token. Redo is tried once; the first
/// process that stays is started by the first job.
///
/// # Errors
/// If its programs are missing or do not work, or it can't listen.
pub async fn run(settings: Settings, scope: &TaskScope) -> Result<Running, StartError> {
    // Wrong settings are found before a port is taken.
    BrokerClient::new(&settings.broker).map_err(StartError::Broker)?;
    let mut engine = EngineSettings::discover(&settings.pg_bin, &settings.redo_build)?;
    engine.run_as = RunAs::unprivileged().map_err(StartError::RunAs)?;
    try_redo(&engine).await?;
    let server = GrpcServer::bind(&settings.listen).await?;
    let (address, side) = (server.address(), server.side_address());

    let limits = Limits {
        processes_per_tenant: settings.processes_per_tenant,
        tenants: settings.max_tenants,
    };
    let background = BackgroundThreads::start("background", BACKGROUND);
    let background = Arc::new(background.map_err(StartError::Threads)?);
    let source = PostgresSource::new(engine, Arc::clone(&background));
    let engines = Arc::new(TenantEngines::new(source, limits));
    stop_with(scope, Arc::clone(&engines));
    let server = server.with_metrics(metrics(&engines));

    let member = new_member(Role::RedoWorker, address);
    Heartbeat::new(&settings.broker, member)
        .start(scope, Vec::new, drop)
        .map_err(StartError::Broker)?;
    let api = RedoApi::new(Arc::clone(&engines), background, scope.clone()).into_server();
    // Redo has been tried, so there is nothing to wait for.
    server.start(Services::default().with(api), &Readiness::new(true), scope);
    tracing::info!(%address, %side, "redo-worker is up");
    Ok(Running {
        address,
        side,
        engines,
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn metrics(engines: &Arc<TenantEngines<PostgresSource>>) -> Registry {
    let mut metrics = registry(Service::RedoWorker.name());
    engines.metrics().register(&mut metrics);
    let sampled = Arc::clone(engines);
    metrics.register_collector(Sampled::new(move || {
        let help = "Processes that died or were killed over jobs, and were replaced";
        let deaths = Sample::counter("redo_process_deaths", None, help);
        let help = "Tenants that have processes";
        let tenants = Sample::gauge("redo_tenants", None, help);
        vec![
            deaths.of(sampled.deaths() as f64),
            tenants.of(sampled.tenants() as f64),
        ]
    }));
    metrics
}

/// Finds out before the first job what works, and says which walls there are around processes.
async fn try_redo(engine: &EngineSettings) -> Result<(), StartError> {
    let walls = probe(engine.clone()).await.map_err(StartError::Probe)?;
    let missing: Vec<_> = walls.missing().into_iter().map(Wall::name).collect();
    if missing.is_empty() {
        tracing::info!(%walls, "redo processes are confined");
    } else {
        let missing = missing.join(", ");
        tracing::warn!(%walls, missing, "redo processes are confined, but not in every way; see `pal doctor`");
    }
    Ok(())
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

    /// Where metrics and probes are, with the real port.
    pub fn side_address(&self) -> SocketAddr {
        self.side
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
            Self::Probe(_) => ErrorKind::NotReady,
            Self::Threads(_) => ErrorKind::Internal,
            Self::Bind(error) => error.kind(),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(error.kind(), &error)
    }
}
