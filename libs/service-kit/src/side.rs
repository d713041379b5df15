//! The HTTP side port: metrics, and probes for those who start and stop services.
//!
//! ```text
//! GET /metrics   all metrics of the service, in Prometheus' text format
//! GET /livez     200 while the process answers
//! GET /readyz    200 when requests are welcome; 503 with the reason before, and while draining
//! ```

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use palimpsest_runtime::CancellationToken;
use palimpsest_telemetry::{Registry, render};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

/// A listener for the side port.
#[derive(Debug)]
pub(crate) struct SideServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// What the side port tells.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) metrics: Registry,
    /// Why the service is not ready, unless it is.
    pub(crate) ready: watch::Receiver<Result<(), &'static str>>,
    /// Cancelled when the service begins to drain.
    pub(crate) draining: CancellationToken,
}

/// Connections at once; more wait.
const CONNECTIONS: usize = 16;
/// Bytes of a request's head; hyper takes no smaller limit.
const REQUEST: usize = 8 << 10;
/// For a request and its answer together.
const TIME: Duration = Duration::from_secs(10);
/// After an error of the listener, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

impl SideServer {
    pub(crate) fn new(listener: TcpListener, address: SocketAddr) -> Self {
        Self { listener, address }
    }

    /// Where it listens, with the real port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers for ever. Dropped, it cuts what is under way.
    pub(crate) async fn serve(self, told: Told) -> Infallible {
        let told = Arc::new(told);
        let mut connections = JoinSet::new();
        loop {
            // Cancel-safe: `accept` and `join_next` lose nothing when dropped.
            tokio::select! {
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => {
                    match accepted {
                        Ok((stream, _)) => {
                            let answered = answer_one(stream, Arc::clone(&told));
                            connections.spawn(timeout(TIME, answered));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "the side port takes no connection; trying again");
                            sleep(PAUSE).await;
                        }
                    }
                }
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        }
    }
}

/// Answers one request and closes the connection.
async fn answer_one(stream: TcpStream, told: Arc<Told>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let answer = told.answer(request.method(), request.uri().path());
        async { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(REQUEST)
        .timer(TokioTimer::new())
        .header_read_timeout(TIME)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a request to the side port broke");
    }
}

impl Told {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let (status, kind, text) = match (method, path) {
            (&Method::GET | &Method::HEAD, "/metrics") => {
                (StatusCode::OK, METRICS, render(&self.metrics))
            }
            (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, TEXT, "live\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/readyz") => match self.ready() {
                Ok(()) => (StatusCode::OK, TEXT, "ready\n".to_owned()),
                Err(why) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
            },
            (_, "/metrics" | "/livez" | "/readyz") => {
                let text = "only GET is answered here\n".to_owned();
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, text)
            }
            _ => {
                let text = "here are /metrics, /livez and /readyz\n".to_owned();
                (StatusCode::NOT_FOUND, TEXT, text)
            }
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        let kind = hyper::header::HeaderValue::from_static(kind);
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    fn ready(&self) -> Result<(), &'static str> {
        match self.draining.is_cancelled() {
            true => Err("draining: shutting down"),
            false => *self.ready.borrow(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_why_it_is_not_ready_before_and_after_it_is() {
        let ready = watch::Sender::new(Err("starting"));
        let told = Told {
            metrics: Registry::default(),
            ready: ready.subscribe(),
            draining: CancellationToken::new(),
        };
        let status = |path| told.answer(&Method::GET, path).status().as_u16();
        assert_eq!((status("/readyz"), status("/livez")), (503, 200));
        ready.send_modify(|ready| *ready = Ok(()));
        assert_eq!(status("/readyz"), 200);
        told.draining.cancel();
        assert_eq!((status("/readyz"), status("/livez")), (503, 200));
        assert_eq!(told.ready(), Err("draining: shutting down"));
        assert_eq!(status("/other"), 404);
        assert_eq!(told.answer(&Method::POST, "/livez").status(), 405);
    }
}
