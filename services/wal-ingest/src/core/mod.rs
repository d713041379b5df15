//! What wal-ingest does, without gRPC.
//!
//! ```text
//! Node ─ one Timeline task per assignment
//!          attach: checks ─▶ slot ─▶ base backup ─▶ image layers ─▶ manifest
//!          stream: replication ─▶ WAL files (fsync) ─▶ Decoder ─▶ Tail ─▶ feed subscribers
//! ```

mod attach;
mod backup;
mod decoder;
mod delete;
mod error;
mod node;
mod source;
mod stream;
mod timeline;
mod wal_files;

pub use error::{IngestError, Stop};
pub use node::{Limits, Node};
pub use source::{CheckError, SourceReport, check_source};
