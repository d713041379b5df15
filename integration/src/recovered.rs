//! The recovered-instance reference: what a stock PostgreSQL makes of the same base backup and the
//! same WAL when it is told to stop at an LSN.
//!
//! Its relation files hold only what redo wrote. Recovery reads the log up to the target, writes a
//! checkpoint record and flushes its buffers; nobody connects, and nothing else that writes pages
//! runs. So no hint bit is set, nothing is vacuumed, and pages may be compared byte by byte, where
//! a primary's own files need exceptions. Free space maps, which are not logged, are not compared.
//! Main forks of unlogged relations it makes anew from their init forks; with those they are compared.

mod backup;
mod instance;
mod tap;
mod tears;

pub use backup::{BaseBackup, OutsideTablespace};
pub use instance::{RecoveredInstance, Recovery};
pub use tap::BackupTap;
pub use tears::Tears;
