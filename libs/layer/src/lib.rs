//! Layers: the immutable and growing pieces that a timeline's history is made of.
//!
//! - [`OpenLayer`]: the newest changes, in memory, appended in LSN order.
//! - [`delta_file`]: files with all changes of some keys over a range of LSNs. Format in
//!   `docs/formats/delta-layer.md`.
//! - [`image`]: files with one version of each key, at one LSN. Format in
//!   `docs/formats/image-layer.md`.
//!
//! Reading goes through [`DeltaLayer`], so that changes in memory and in files are one to the reader.
//! Pure: bytes in, bytes out; whoever calls does the I/O.

mod delta;
pub mod delta_file;
pub mod image;
mod open;

pub use delta::{DeltaLayer, Visit};
pub use open::{LogRecord, OpenLayer, OutOfOrderError};
