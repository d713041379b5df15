//! What `make bench` measures: each figure beside the one it is to be held against, in one run.
//!
//! Machines are shared and noisy. So nothing here is compared with a figure from another day, the
//! two sides of a comparison take turns, and what is reported is the median of their rounds.

pub mod branches;
pub mod chains;
mod chart;
mod circumstances;
pub mod commit;
pub mod compaction;
pub mod floor;
pub mod ingest;
pub mod pages;
mod pictures;
mod places;
mod rounds;
mod table;
mod told;

pub use circumstances::{circumstances, commit_in_names};
pub use pictures::put_picture;
pub use places::Places;
pub use rounds::{Latencies, Rounds};
pub use table::{Aim, Row, Table};

/// Rounds of each measurement.
pub const ROUNDS: usize = 5;
