//! What wal-ingest does, without gRPC.
//!
//! ```text
//! Node ─ one Timeline task per assignment
//!          attach: checks ─▶ slot ─▶ base backup ─▶ image layers ─▶ manifest
//!          reattach: base backup ─▶ delta layers ─▶ manifest, where WAL was lost
//!          stream: replication ─▶ WAL files (fsync) ─▶ Decoder ─▶ Tail ─▶ feed subscribers
//!          archive: WAL that the source has no more, by restore-command ─▶ WAL files …
//!          keeper: moves the slot at the source to what the object store has
//!          flush:  frozen pieces of the tail ─▶ local layers (fsync) ─▶ object store ─▶ manifest
//!      ─ leave: at the node's end, what is not in the object store goes there, for a limited time
//! ```

mod archive;
mod arrivals;
mod attach;
mod back_off;
mod backup;
mod broker;
mod budget;
mod cluster;
mod decoder;
mod delete;
mod error;
mod file_work;
#[cfg(test)]
mod fixtures;
mod flush;
mod follow;
mod freeze;
mod growth;
mod intake;
mod keeper;
mod known;
mod laggard;
mod local_layers;
mod logical_size;
mod metrics;
mod node;
mod reattach;
mod replay;
mod set_back;
mod slotless;
mod source;
mod stays;
mod stream;
mod subscribers;
mod succession;
mod timeline;
mod wal_files;
mod warnings;

pub use archive::RestoreCommand;
pub use attach::AttemptError;
pub use broker::Broker;
pub use budget::NoRoom;
pub use error::{IngestError, Stop};
pub use follow::{FollowError, Follower};
pub use metrics::IngestMetrics;
pub use node::{Limits, Local, Node};
pub use source::{CheckError, SourceReport, check_source};
