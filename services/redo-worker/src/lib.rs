//! redo-worker: WAL records replayed on single pages by sandboxed, unpatched `postgres` processes.
//!
//! ```text
//! page-serve -> grpc::RedoApi (a stream of batches) -> core::TenantEngines -> postgres processes
//! ```
//!
//! Invariants:
//! - A process serves one tenant only, and keeps nothing between jobs.
//! - The worker is stateless: a job can be done by any worker, and be done twice.
//! - Jobs do not wait for each other but for room: jobs per stream, processes per tenant and
//!   tenants are all bounded.
//!
//! Not here: which records a page needs, and who asks which worker; see `palimpsest-redo` and
//! `palimpsest-api`.

pub mod core;
pub mod grpc;
mod run;
mod settings;

pub use run::{Running, StartError, run};
pub use settings::Settings;

/// What it does, in one line, as its help says it.
pub const ABOUT: &str = "Replays WAL records on single pages by PostgreSQL's own code";
