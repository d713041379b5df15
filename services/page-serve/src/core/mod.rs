//! What page-serve does, without gRPC.

mod error;
mod served;
mod timelines;

pub use error::ServeError;
pub use timelines::{Limits, Timelines};
