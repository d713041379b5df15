//! What the process of every service needs: a command line, telemetry, a gRPC server with health
//! and reflection, orderly shutdown, and the heartbeat to the storage-broker.
//!
//! ```text
//! main: process::parse -> telemetry::init -> process::run(service::run)
//! run:  GrpcServer::bind -> build the core -> GrpcServer::start -> Heartbeat::start
//! ```
//!
//! Not here: what any of the services does. Nothing in a service's `core` uses this crate.

pub mod heartbeat;
pub mod process;
pub mod server;
mod severable;
pub mod shutdown;
pub mod telemetry;

use palimpsest_types::NodeId;

pub use heartbeat::Heartbeat;
pub use process::Failure;
pub use server::{BindError, GrpcServer, Readiness, Services};

/// A new identity for a service instance.
pub fn node_id() -> NodeId {
    NodeId::from_bytes(rand::random())
}
