//! The page oracle: is a page of ours the page that PostgreSQL has?

mod compare;
mod data_files;
mod page_kind;
mod wal_files;

pub use compare::{Comparison, Oracle, Tally, VisibilityDifference, visibility_differences};
pub use data_files::{DataFiles, RelationFile};
pub use page_kind::PageKind;
pub use wal_files::read_wal;
