//! storage-broker: who is there, which tenants exist, and who is proposed to write them.
//!
//! ```text
//! heartbeats -> grpc -> core::Broker (membership, ownership) -> the whole picture, to all watchers
//! attach, delete -> grpc -> core::Broker -> catalog writer -> object store
//! ```
//!
//! Invariants:
//! - Only the catalog is durable; it changes by compare-and-swap, so brokers may race. Everything
//!   else rebuilds itself within a heartbeat of each member.
//! - The broker proposes, a timeline's manifest decides: a wrong proposal costs time, not data.
//! - A connection string leaves the broker whole only in an assignment; pictures, events and
//!   errors show it without its password.
//!
//! Not here: anything on the way of WAL or pages. They flow on while the broker is down.

pub mod core;
pub mod grpc;
mod run;
mod settings;

pub use run::{Running, StartError, run};
pub use settings::Settings;

/// What it does, in one line, as its help says it.
pub const ABOUT: &str =
    "Knows who is there, keeps the catalog of tenants, and proposes who writes what";
