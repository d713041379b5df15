//! What the process of every service needs: a command line, telemetry, a gRPC server with health
//! and reflection, metrics and probes beside it, orderly shutdown, and the heartbeat to the storage-broker.
//!
//! ```text
//! main: configure (settings, telemetry) -> process::run(service::run) -> Telemetry::finish
//! run:  GrpcServer::bind -> build the core -> GrpcServer::start -> Heartbeat::start
//! ```
//!
//! Not here: what any of the services does. Nothing in a service's `core` uses this crate.

pub mod address;
mod allocator;
mod configure;
pub mod heartbeat;
pub mod process;
pub mod server;
mod severable;
pub mod shutdown;
mod side;
pub mod telemetry;
pub mod threads;

use std::net::SocketAddr;

use palimpsest_api::{
    broker::{Member, Role},
    tenant_settings::TenantSettings,
};
use palimpsest_types::NodeId;

pub use address::{BindError, check_broker};
pub use configure::{ProcessSettings, answer, configure};
pub use heartbeat::Heartbeat;
pub use process::Failure;
pub use server::{GrpcServer, Readiness, Services};

/// A service instance as it registers: with an identity of its own, and the version of this code.
pub fn new_member(role: Role, address: SocketAddr) -> Member {
    Member {
        node: NodeId::from_bytes(rand::random()),
        role,
        address: address.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tenant_defaults: TenantSettings::default(),
    }
}
