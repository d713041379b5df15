//! What page-serve does, without gRPC.

mod admission;
mod answer_memory;
mod base_backup;
mod error;
mod follow;
mod metrics;
mod opening;
mod pace;
mod room;
mod served;
mod timelines;
mod within;

pub use admission::{Admission, Call, Lane, Room};
pub use answer_memory::{AnswerMemory, InvalidAnswerMemoryError};
pub use base_backup::{NoBackupError, RunningBackup, WantedBackup};
pub use error::ServeError;
pub use metrics::{ReadMetrics, Timer};
pub use timelines::{Limits, Timelines};
pub use within::within;
