//! compactor: keeps the number of layers that a read visits small, however long the history.
//!
//! ```text
//! manifest ─▶ choose ─▶ Plan ─▶ cut ─▶ cells ─▶ merge ─▶ new layers ─▶ object store ─▶ manifest
//!  (what is there)      (which layers)  (which of them          (the same versions,
//!                                        belong together)        keys apart)
//! ```
//!
//! A layer as it is written from WAL has changes of all keys over a short time: a read visits each.
//! Several of them become layers of few keys over a longer time, of which a read visits one.
//!
//! Invariants:
//! - What is published holds the same versions as what it replaces; nothing that any LSN can see goes.
//! - One compactor at a time publishes for a timeline, by the manifest's epoch (P4). It keeps no state:
//!   one that dies leaves at most files that nobody refers to.
//! - Memory is bounded by settings, not by what is compacted.
//!
//! Not here: deleting files that no manifest refers to any more.

pub mod core;
mod grpc;
mod run;
mod settings;

pub use run::{Running, StartError, run, run_on};
pub use settings::Settings;

/// What it does, in one line, as its help says it.
pub const ABOUT: &str = "Makes layers anew so that reads stay fast however long the history";
