//! Compaction, without gRPC.

mod activity;
mod cut;
mod error;
mod looks;
mod merge;
mod metrics;
mod plan;
mod uploads;
mod worker;

pub use activity::{Activity, Done, Work};
pub use cut::{Cell, Piece, cut};
pub use error::CompactError;
pub use merge::{Making, Merged, merge};
pub use metrics::CompactionMetrics;
pub use plan::{Plan, Policy, choose};
pub use worker::Compactor;
