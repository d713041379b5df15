//! The redo-worker's gRPC services.

mod conversation;
mod redo;

pub use redo::RedoApi;
