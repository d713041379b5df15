//! Pages, sizes and listings of a timeline at an LSN.
//!
//! A read looks for the changes of a key from the newest that the LSN may see back to one that
//! stands alone: in the [`Tail`] (what layer files do not have yet, in memory), then in the delta
//! files of [`Layers`], and ends at the image layers below them. It replays what it found on that.
//! [`PageCache`] remembers versions already made; a version never changes, so what is cached is
//! right for ever. [`BlockCache`] does the same for blocks of files.

mod base;
mod blocks;
mod cache;
mod delta;
mod error;
mod layers;
mod reader;
mod tail;

pub use blocks::BlockCache;
pub use cache::PageCache;
pub use error::ReadError;
pub use layers::{LayerFiles, Layers};
pub use reader::TimelineReader;
pub use tail::{Pieces, Tail, TailError};
