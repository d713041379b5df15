//! The compactor's gRPC service.

mod compaction;

pub(crate) use compaction::CompactionApi;
