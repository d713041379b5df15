//! The gRPC server of a service.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use palimpsest_runtime::{CancellationToken, TaskScope};
use palimpsest_telemetry::{Registry, trace};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    service::{Routes, RoutesBuilder},
    transport::Server,
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    address::{self, BindError},
    severable::Severable,
    side::{SideServer, Told},
};

/// One write per page batch instead of one per 16 KiB, as the clients in `palimpsest-api` ask for.
const MAX_FRAME: u32 = 1 << 20;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const STARTING: &str = "starting";
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long streams may go on after shutdown has begun, unless [`GrpcServer::drain_within`] says
/// otherwise.
const DRAIN: Duration = Duration::from_secs(5);

/// A server that has its address and does not answer yet.
#[derive(Debug)]
pub struct GrpcServer {
    listener: TcpListener,
    address: SocketAddr,
    side: SideServer,
    metrics: Registry,
    drain: Duration,
}

/// What a server serves, beside health and reflection.
#[derive(Debug, Default)]
pub struct Services {
    routes: RoutesBuilder,
    names: Vec<&'static str>,
}

/// Says when a service is ready. It is not before [`Readiness::set`] is called with `true`.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// Why not, unless it is.
    state: watch::Sender<Result<(), &'static str>>,
}

impl Services {
    /// Adds a generated server.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
        self.names.push(S::NAME);
        self
    }

    fn into_routes(mut self, reporter: &HealthReporter) -> Routes {
        let health = tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(reporter.clone()),
        );
        self.routes.add_service(health);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(palimpsest_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1();
        match reflection {
            Ok(reflection) => {
                self.routes.add_service(reflection);
            }
            Err(error) => tracing::warn!(%error, "reflection is not served"),
        }
        self.routes.routes().prepare()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Readiness {
    /// Ready from the start, or not.
    pub fn new(ready: bool) -> Self {
        let readiness = Self {
            state: watch::Sender::new(Err(STARTING)),
        };
        readiness.set(ready);
        readiness
    }

    /// Not ready yet for this reason.
    pub fn waiting(reason: &'static str) -> Self {
        Self {
            state: watch::Sender::new(Err(reason)),
        }
    }

    /// Changes what the health service and the side port say.
    pub fn set(&self, ready: bool) {
        self.change(match ready {
            true => Ok(()),
            false => Err(STARTING),
        });
    }

    /// Not ready, for this reason now.
    pub fn wait_for(&self, reason: &'static str) {
        self.change(Err(reason));
    }

    /// Only news wake those who listen.
    fn change(&self, state: Result<(), &'static str>) {
        self.state.send_if_modified(|now| {
            let changes = *now != state;
            *now = state;
            changes
        });
    }
}

impl GrpcServer {
    /// Takes `host:port`, and beside it the side port; port 0 is any free one.
    ///
    /// # Errors
    /// If it is no loopback address, or one of them is taken.
    pub async fn bind(listen: &str) -> Result<Self, BindError> {
        let (listener, address) = address::bind(listen).await?;
        let side = address::side_of(listen, address)?;
        let (side, side_address) = address::bind(&side).await?;
        Ok(Self {
            listener,
            address,
            side: SideServer::new(side, side_address),
            metrics: Registry::default(),
            drain: DRAIN,
        })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics and probes are, with the real port.
    pub fn side_address(&self) -> SocketAddr {
        self.side.address()
    }

    /// What `/metrics` tells.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Registry) -> Self {
        self.metrics = metrics;
        self
    }

    /// How long streams may go on after shutdown has begun; 5 seconds unless told.
    #[must_use]
    pub fn drain_within(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Serves in `scope` until its token is cancelled.
    pub fn start(self, services: Services, readiness: &Readiness, scope: &TaskScope) {
        let ready = readiness.state.subscribe();
        let token = scope.token().clone();
        let serve = self.serve(services, ready, token.clone());
        scope.spawn("grpc server", async move {
            if let Err(error) = serve.await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the server failed"
                );
                token.cancel();
            }
        });
    }

    /// Serves until the token is cancelled; then says that it is not ready, takes no more
    /// connections, lets calls finish for the drain time, and cuts what is left.
    async fn serve(
        self,
        services: Services,
        ready: watch::Receiver<Result<(), &'static str>>,
        token: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        let side = self.side.serve(Told {
            metrics: self.metrics,
            ready: ready.clone(),
            draining: token.clone(),
        });
        let reporter = HealthReporter::new();
        let mut names = services.names.clone();
        names.push("");
        report(&reporter, &names, false).await;
        let routes = services.into_routes(&reporter);

        let cut = CancellationToken::new();
        // Whatever ends this function, it leaves no connection behind.
        let _cut_at_end = cut.clone().drop_guard();
        let incoming = TcpListenerStream::new(self.listener).map(move |accepted| {
            let stream = accepted?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(Severable::new(stream, cut.clone()))
        });
        let served = Server::builder()
            .max_frame_size(MAX_FRAME)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .trace_fn(span_of)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, token.clone().cancelled_owned());
        let overdue = async {
            follow(&reporter, &names, ready, &token).await;
            tokio::time::sleep(self.drain).await;
        };
        // Not cancel-safe, and need not be: what is dropped has had its time.
        tokio::select! {
            served = served => served,
            () = overdue => {
                tracing::warn!(drain = ?self.drain, "cutting calls that did not end in time");
                Ok(())
            }
            never = side => match never {},
        }
    }
}

/// Keeps the health service up to date until the token is cancelled.
async fn follow(
    reporter: &HealthReporter,
    names: &[&'static str],
    mut ready: watch::Receiver<Result<(), &'static str>>,
    token: &CancellationToken,
) {
    let changes = async {
        loop {
            let now = ready.borrow_and_update().is_ok();
            report(reporter, names, now).await;
            if ready.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    token.run_until_cancelled(changes).await;
    report(reporter, names, false).await;
}

/// A call's part of the trace that its caller told, if it did.
fn span_of<B>(request: &http::Request<B>) -> tracing::Span {
    let path = request.uri().path();
    let span = tracing::debug_span!(target: trace::TARGET, parent: None, "call", path);
    let context = request.headers().get(trace::TRACEPARENT);
    if let Some(context) = context.and_then(|context| context.to_str().ok()) {
        trace::follow(&span, context);
    }
    span
}

async fn report(reporter: &HealthReporter, names: &[&'static str], ready: bool) {
    let status = match ready {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    for name in names {
        reporter.set_service_status(*name, status).await;
    }
}

#[cfg(test)]
mod tests;
