//! Applies WAL records to single pages by the redo routines of an unpatched PostgreSQL.
//!
//! An [`Engine`] owns one sandboxed `postgres` process that has been taken over by the library
//! built in `compute/redo`, and talks to it over pipes. Handles are cheap to clone; requests are
//! pipelined and answered in order.
//!
//! ```text
//! callers -> Engine (encode, byte budget) -> Owner task -> stdin  -> postgres + palimpsest_redo
//!                                              ^  in order <- stdout <-'
//! ```
//!
//! Invariants:
//! - A process serves one tenant only: hostile WAL can take it over, and see what it has seen.
//! - A process that is taken over finds itself behind [`Walls`], of which those that it can't do
//!   without stand before it reads a first byte.
//! - The process keeps nothing between requests, so any of them can be sent to another process.
//! - When a process dies the oldest unanswered request is the suspect and fails; the others are
//!   sent to a fresh process, each at most twice.
//! - Requests in flight are bounded in number and in bytes, and reading never waits for writing,
//!   so full pipes cannot lock both sides.
//!
//! Not here: which records a page needs, full-page images that need no redo, page checksums.

mod conversation;
mod data_dir;
mod engine;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod launcher;
mod nursery;
mod owner;
mod probe;
mod process;
mod redo_engine;
mod request;
mod run_as;
mod scratch;
mod settings;
mod walls;
mod wire;

pub use engine::Engine;
pub use error::{RedoError, StartError};
pub use probe::{ProbeError, probe};
pub use process::Obituary;
pub use request::{ApplyRequest, RedoRecord, Verified};
pub use run_as::RunAs;
pub use settings::{DiscoverError, EngineSettings};
pub use walls::{Wall, Walls};
pub use wire::REQUEST_MAX;
