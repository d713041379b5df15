//! A data directory that a stock PostgreSQL 15 starts from, untouched, as a timeline was at any LSN.
//!
//! [`BaseBackup::plan`] asks a [`TimelineReader`](palimpsest_read::TimelineReader) what there is at the LSN, and
//! [`BaseBackup::write`] streams it as a tar archive in bounded memory. The server that starts finds a cluster that
//! was shut down: a control file that says so (`start.rs`), and a checkpoint record of our own, exactly at
//! the LSN, in a segment that holds nothing else. So there is no recovery, and transactions that were in progress
//! have no status, which means that they are aborted; prepared ones are there.
//!
//! What is not in a timeline's history is not in its base backup: settings and access files (there are
//! plain ones, `server_files.rs`), replication slots, statistics, and what relations held that are not logged.

mod archive;
mod backup;
mod catalogs;
mod checksum;
mod contents;
mod error;
mod manifest;
mod pack;
mod server_files;
mod start;

pub use backup::{BackupFacts, BaseBackup, Form};
pub use error::BackupError;
pub use pack::zstd_frame;
pub use start::{Identity, fresh_timeline};
