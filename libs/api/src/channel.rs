//! Connections to other services, with the settings that carry pages well.

use std::time::Duration;

use palimpsest_telemetry::trace;
use palimpsest_types::ErrorKind;
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{self, Endpoint},
};

use crate::status::RemoteError;

/// A connection, over which each call tells what trace it is part of.
pub type Channel = InterceptedService<transport::Channel, TraceContext>;

/// Adds the context of the current trace to a call, if there is one.
#[derive(Debug, Clone, Copy)]
pub struct TraceContext;

/// One write per page batch instead of one per 16 KiB: this alone doubles the pages per second.
const MAX_FRAME: u32 = 1 << 20;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Largest message we accept; a redo batch may carry 4 MiB of records for each of its pages.
pub const MAX_MESSAGE: usize = 64 << 20;

/// A connection to `address` (`host:port`), made when first used and made again when lost.
///
/// # Errors
/// If it is not an address.
pub fn connect_lazily(address: &str) -> Result<Channel, RemoteError> {
    let endpoint = endpoint(address)?.http2_keep_alive_interval(KEEP_ALIVE);
    Ok(InterceptedService::new(
        endpoint.connect_lazy(),
        TraceContext,
    ))
}

/// The same for who can ask somebody else: that the other side stands still is noticed within twice
/// `ping`, and all calls to it fail then.
///
/// # Errors
/// If it is not an address.
pub fn connect_watched(address: &str, ping: Duration) -> Result<Channel, RemoteError> {
    let endpoint = endpoint(address)?
        .http2_keep_alive_interval(ping)
        .keep_alive_timeout(ping);
    Ok(InterceptedService::new(
        endpoint.connect_lazy(),
        TraceContext,
    ))
}

fn endpoint(address: &str) -> Result<Endpoint, RemoteError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| RemoteError::new(ErrorKind::Invalid, format!("{address:?}: {error}")))?;
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME))
}

impl Interceptor for TraceContext {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        // Hex digits and hyphens are always a value.
        if let Some(Ok(value)) = trace::current().map(|context| context.parse()) {
            request.metadata_mut().insert(trace::TRACEPARENT, value);
        }
        Ok(request)
    }
}
