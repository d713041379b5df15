//! The page oracle: is a page of ours the page that PostgreSQL has?

mod at_lsn;
mod compare;
mod data_files;
mod page_kind;
mod page_source;
mod wal_files;

pub use at_lsn::{RecoveredTally, compare_at};
pub use compare::{Comparison, Oracle, Tally, VisibilityDifference, visibility_differences};
pub use data_files::{DataFiles, RelationFile};
pub use page_kind::PageKind;
pub use page_source::PageSource;
pub use wal_files::read_wal;
