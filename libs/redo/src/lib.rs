//! From a base page and the changes since to the page at an LSN.
//!
//! [`plan`] cuts a [`Chain`] into steps: what needs no PostgreSQL code is done here, the rest goes
//! to an [`Engine`] in bounded pieces. [`reconstruct`] walks the steps, carrying the page forward.
//! The plan is pure; the engine is whoever runs PostgreSQL's redo. [`slru_page`] does the same for
//! transaction status and its like, for which no engine is needed.

mod chain;
mod engine;
mod plan;
mod reconstruct;
mod slru;

pub use chain::{Chain, InvalidChainError};
pub use engine::{ApplyRequest, Engine, EngineError, NoEngine, REQUEST_LIMIT, START_LIMIT};
pub use plan::{Limits, Step, plan};
pub use reconstruct::{ReconstructError, reconstruct};
pub use slru::{InvalidSlruChainError, slru_page};
