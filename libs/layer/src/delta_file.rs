//! Delta layer files: all changes of some keys over a range of LSNs.
//!
//! ```text
//! 0        magic "PALDELTA", version u32, reserved u32                   16 bytes
//! 16       record blocks: records that several entries refer to          …
//!          entry blocks: versions, sorted by key, then LSN               …
//! index    of each record block, then of each entry block:
//!          stored length u32, raw length u32, crc32c u32, items u32      16 bytes
//!          and of an entry block also, in front: first key and LSN,
//!          last key and LSN                                              52 bytes
//! end-60   footer: epoch u64, start LSN u64, end LSN u64, entries u64,
//!          index offset u64, record blocks u32, entry blocks u32,
//!          index crc32c u32, version u32, crc32c of these 56 bytes u32   60 bytes
//! ```
//!
//! All numbers are little-endian but keys, which are big-endian so that they sort. Blocks follow
//! each other without gaps, so lengths alone say where each stands, and no two can overlap. Records
//! come before entries because an entry says where its record stands. What is inside of blocks:
//! [`EntryBlock`] and [`RecordBlock`].
//!
//! The writer ([`write_delta_layer`]) streams. A reader fetches the last [`Footer::LEN`] bytes,
//! then the index, and after that only the blocks that it needs, each checked by its own checksum
//! and wholly parsed before anything in it is believed:
//!
//! 1. [`DeltaLayerIndex::blocks_of`] a key, newest first; [`DeltaLayerIndex::place`] of each;
//! 2. [`EntryBlock::decode`], [`EntryBlock::versions`], until the reader has what it needs;
//! 3. for each [`Stored::Shared`], the [`RecordBlock`] that its place names.

mod entry;
mod entry_block;
mod error;
mod file_writer;
mod footer;
mod frame;
mod index;
mod record_block;
mod shared;
mod writer;

pub use entry::{RecordPlace, Stored};
pub use entry_block::EntryBlock;
pub use error::DeltaLayerError;
pub use footer::{Footer, HEADER_LEN, check_header};
pub use index::{BlockNo, BlockPlace, DeltaLayerIndex, EntryBlockSpan};
pub use record_block::RecordBlock;
pub use writer::{
    DeltaLayerSummary, EntrySection, RecordSection, WriteDeltaLayerError, write_delta_entries,
    write_delta_layer,
};

#[cfg(test)]
mod tests;
