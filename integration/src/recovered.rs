//! The recovered-instance reference: what a stock PostgreSQL makes of the same base backup and the
//! same WAL when it is told to stop at an LSN.
//!
//! Its relation files hold only what redo wrote. Recovery reads the log up to the target, writes a
//! checkpoint record and flushes its buffers; nobody connects, and nothing else that writes pages
//! runs. So no hint bit is set, nothing is vacuumed, and pages may be compared byte by byte, where
//! a primary's own files need exceptions. What it changes besides is not compared: main forks of
//! unlogged relations (made anew from their init forks) and free space maps (not logged).

mod backup;
mod instance;

pub use backup::BaseBackup;
pub use instance::{RecoveredInstance, Recovery};
