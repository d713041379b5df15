//! What services say to each other, as domain types, and the clients to say it with.
//!
//! Generated messages end here: conversions validate once, and cores never see protobuf. This is
//! also the one place where an [`ErrorKind`](palimpsest_types::ErrorKind) becomes a gRPC status.

pub mod admin;
pub mod broker;
pub mod channel;
pub mod compaction;
mod convert;
pub mod feed;
pub mod lease;
pub mod page;
pub mod redo;
mod status;
pub mod tenant_settings;

pub use convert::{
    InvalidMessageError, TimelineRef, lsn_from_wire, rel_tag, rel_tag_to_wire, request_id,
};
pub use status::{RemoteError, error_detail, error_status};
