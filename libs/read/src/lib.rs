//! Pages, sizes and listings of a timeline at an LSN.
//!
//! A read looks for the changes of a key from the newest that the LSN may see back to one that
//! stands alone: in the [`Tail`] (what layer files do not have yet, in memory), then in the delta
//! files of [`Layers`], which a [`LayerMap`] finds, and ends at an image among them or at the base below. It
//! replays what it found on that. [`PageCache`] remembers versions already made; a version never
//! changes, so what is cached is right for ever. [`BlockCache`] does the same for blocks of files and
//! for their indexes.
//!
//! Databases that were copied as files have no versions of their own for what they were copied with:
//! such reads go on in the history of the database copied (`lineage.rs`).

mod base;
mod blocks;
mod cache;
mod cluster;
mod delta;
mod error;
mod inventory;
mod layer_map;
mod layers;
mod lineage;
mod listing;
mod loads;
mod parts;
mod reader;
mod room;
mod scan;
mod stored;
mod tail;
mod times;
mod versions;

pub use blocks::BlockCache;
pub use cache::{CacheUse, PageCache};
pub use cluster::{Cluster, TimeAt, cluster_at, lsn_at_time, time_at_lsn};
pub use error::ReadError;
pub use inventory::{Batch, Inventory, Part};
pub use layer_map::{LayerMap, Place};
pub use layers::{LayerFiles, Layers};
pub use listing::relations_at;
pub use reader::TimelineReader;
pub use scan::{EntryScan, KeyBounds, LayerScan, RecordScan};
pub use stored::{StoredError, StoredTimelines};
pub use tail::{Pieces, Tail, TailError};
pub use times::ReadTimes;
pub use versions::{Images, Listing, Versions};
