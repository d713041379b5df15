//! The gRPC server of a service.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use palimpsest_runtime::{CancellationToken, TaskScope};
use palimpsest_types::ErrorKind;
use tokio::{
    net::{TcpListener, lookup_host},
    sync::watch,
};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    service::{Routes, RoutesBuilder},
    transport::Server,
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::severable::Severable;

/// One write per page batch instead of one per 16 KiB, as the clients in `palimpsest-api` ask for.
const MAX_FRAME: u32 = 1 << 20;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long streams may go on after shutdown has begun, unless [`GrpcServer::drain_within`] says
/// otherwise.
const DRAIN: Duration = Duration::from_secs(5);

/// A server that has its address and does not answer yet.
#[derive(Debug)]
pub struct GrpcServer {
    listener: TcpListener,
    address: SocketAddr,
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
    ready: watch::Sender<bool>,
}

/// The server can't listen there.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The text names no address.
    #[error("{listen:?} is not an address to listen on; write host:port, for example 127.0.0.1:0")]
    Address {
        /// The text.
        listen: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others could reach it.
    #[error(
        "{listen:?} can be reached from other machines; without TLS and tokens only loopback addresses are allowed"
    )]
    NotLoopback {
        /// The text.
        listen: String,
    },
    /// The system refuses.
    #[error("can't listen on {address}; is another instance running there?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl BindError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Address { .. } | Self::NotLoopback { .. } => ErrorKind::Invalid,
            Self::Listen { .. } => ErrorKind::Conflict,
        }
    }
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
        Self {
            ready: watch::Sender::new(ready),
        }
    }

    /// Changes what the health service says.
    pub fn set(&self, ready: bool) {
        self.ready.send_replace(ready);
    }
}

impl GrpcServer {
    /// Takes `host:port`; port 0 is any free one.
    ///
    /// # Errors
    /// If it is no loopback address, or is taken.
    pub async fn bind(listen: &str) -> Result<Self, BindError> {
        let address = loopback_address(listen).await?;
        let failed = |source| BindError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            drain: DRAIN,
        })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long streams may go on after shutdown has begun; 5 seconds unless told.
    #[must_use]
    pub fn drain_within(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Serves in `scope` until its token is cancelled.
    pub fn start(self, services: Services, readiness: &Readiness, scope: &TaskScope) {
        let ready = readiness.ready.subscribe();
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
        ready: watch::Receiver<bool>,
        token: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
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
        }
    }
}

/// Keeps the health service up to date until the token is cancelled.
async fn follow(
    reporter: &HealthReporter,
    names: &[&'static str],
    mut ready: watch::Receiver<bool>,
    token: &CancellationToken,
) {
    let changes = async {
        loop {
            let now = *ready.borrow_and_update();
            report(reporter, names, now).await;
            if ready.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    token.run_until_cancelled(changes).await;
    report(reporter, names, false).await;
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

async fn loopback_address(listen: &str) -> Result<SocketAddr, BindError> {
    let listen = || listen.to_owned();
    let unusable = |source| BindError::Address {
        listen: listen(),
        source,
    };
    let addresses: Vec<_> = lookup_host(listen()).await.map_err(unusable)?.collect();
    if addresses.iter().any(|address| !address.ip().is_loopback()) {
        return Err(BindError::NotLoopback { listen: listen() });
    }
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    addresses.first().copied().ok_or_else(|| unusable(none()))
}

#[cfg(test)]
mod tests;
