//! wal-ingest: reads the WAL of attached PostgreSQL clusters and turns it into changes.
//!
//! ```text
//! PostgreSQL ─▶ WAL files, fsynced ─▶ decoder ─▶ tail ─▶ change feed ─▶ page-serve
//!      └ base backup ─▶ image layers in the object store ─▶ manifest
//! ```
//!
//! Invariants:
//! - WAL is fsynced here before the source is told that it is flushed, and before it is readable.
//! - WAL that can't be represented stops its timeline; nothing goes on silently wrong.
//! - A timeline is taken over by publishing its manifest under a new epoch; who loses stops.
//! - A failed or interrupted attach leaves nothing behind, here or at the source.
//!
//! Not here: serving pages, replaying records, moving changes from memory to layer files.

pub mod core;
mod grpc;
mod run;
mod settings;

pub use core::{CheckError, IngestError, SourceReport, check_source};
pub use run::{Backing, Running, StartError, run, run_on};
pub use settings::Settings;

/// What it does, in one line, as its help says it.
pub const ABOUT: &str = "Reads the WAL of attached PostgreSQL clusters and turns it into changes";
