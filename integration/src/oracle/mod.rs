//! The page oracle: is a page of ours the page that PostgreSQL has?

mod at_lsn;
mod compare;
mod coverage;
mod data_files;
mod forgetful;
mod landmarks;
mod page_kind;
mod page_source;
mod wal_files;

pub use at_lsn::{RecoveredTally, compare_at};
pub use compare::{Comparison, Oracle, Tally, VisibilityDifference, visibility_differences};
pub use coverage::Coverage;
pub use data_files::{DataFiles, RelationFile, relation_of};
pub use forgetful::Forgetful;
pub use landmarks::{Landmark, Landmarks};
pub use page_kind::PageKind;
pub use page_source::PageSource;
pub use wal_files::{boundaries, read_wal};
