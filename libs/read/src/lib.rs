//! Pages, sizes and listings of a timeline at an LSN.
//!
//! A read looks at the [`Tail`] (changes since the base, in memory) from the newest version that
//! the LSN may see back to one that stands alone, then at the [`BaseLayers`], and replays what it
//! found on that. [`PageCache`] remembers versions already made; a version never changes, so what
//! is cached is right for ever.

mod base;
mod cache;
mod error;
mod reader;
mod tail;

pub use base::BaseLayers;
pub use cache::PageCache;
pub use error::ReadError;
pub use reader::TimelineReader;
pub use tail::{Tail, TailError};
