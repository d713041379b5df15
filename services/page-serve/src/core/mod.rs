//! What page-serve does, without gRPC.

mod admission;
mod error;
mod follow;
mod metrics;
mod opening;
mod room;
mod served;
mod timelines;

pub use admission::{Admission, Lane, Room};
pub use error::ServeError;
pub use metrics::{ReadMetrics, Timer};
pub use timelines::{Limits, Timelines};
