//! What page-serve does, without gRPC.

mod error;
mod metrics;
mod opening;
mod served;
mod timelines;

pub use error::ServeError;
pub use metrics::{ReadMetrics, Timer};
pub use timelines::{Limits, Timelines};
