//! Compaction, without gRPC.

mod activity;
mod claim;
mod cut;
mod error;
#[cfg(test)]
mod fixture;
mod known;
mod looks;
mod making;
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
