//! page-serve: pages and sizes of any timeline at any LSN, over gRPC.
//!
//! ```text
//! wal-ingest ─ change feed ─▶ tail ┐
//! object store ─ image layers ─────┴▶ TimelineReader ─▶ redo workers ─▶ page ─▶ caller
//! ```
//!
//! Invariants:
//! - An answer is the page at exactly the LSN asked for, or an error with a name.
//! - A read never crosses to wal-ingest: with wal-ingest down, what has arrived is served.
//! - Errors of a request are inside its response; the stream lives on.
//!
//! Not here: writing layers or manifests, replaying records.

pub mod core;
mod grpc;
mod run;
mod settings;

pub use run::{Running, StartError, run};
pub use settings::Settings;

/// What it does, in one line, as its help says it.
pub const ABOUT: &str = "Serves pages and sizes of any timeline at any LSN";
