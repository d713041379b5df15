//! Compaction, without gRPC.

mod activity;
mod asked;
mod background;
mod checks;
mod claim;
mod cut;
mod error;
#[cfg(test)]
mod fixture;
mod imaging;
mod known;
mod lock;
mod looks;
mod making;
mod merge;
mod metrics;
#[cfg(test)]
mod model;
mod plan;
mod readers;
mod setbacks;
mod uploads;
mod wear;
mod worker;

pub use activity::{Activity, Done, Work};
pub use cut::{Cell, Piece, cut};
pub use error::CompactError;
pub use merge::{Making, Merged, merge};
pub use metrics::CompactionMetrics;
pub use plan::{Plan, Policy, choose};
pub use readers::Engines;
pub use wear::{Worn, compacted_up_to, worn};
pub use worker::{Compactor, Next};
