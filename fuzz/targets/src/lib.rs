//! What is fuzzed: one function for each parser of bytes from outside.
//!
//! Each takes any bytes and returns; a panic is a finding, and so is memory that the bytes do not
//! account for. Where a checksum would stop almost everything at the door, it is made to fit first:
//! damage is found by checksums, but malice computes them. The programs in the directory above run
//! these functions under libFuzzer; the test `replay` runs them over the committed corpora.

mod catalog;
mod layers;
mod manifest;
mod messages;
mod postgres;
mod protocol;
mod texts;
mod wal;

pub use catalog::catalog;
pub use layers::{delta_layer, image_layer};
pub use manifest::manifest;
pub use messages::{feed, get_pages, redo_answers};
pub use postgres::{backup_label, control_file, replication_origins, tar};
pub use protocol::{base_backup, commands, replication};
pub use texts::{conninfo, names};
pub use wal::{page_images, slru_pages, wal_pages, wal_records};

/// A name and what it fuzzes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets by the names of their programs and of their directories in `corpus`.
pub const TARGETS: [Target; 20] = [
    ("backup_label", backup_label),
    ("base_backup", base_backup),
    ("catalog", catalog),
    ("commands", commands),
    ("conninfo", conninfo),
    ("control_file", control_file),
    ("delta_layer", delta_layer),
    ("feed", feed),
    ("get_pages", get_pages),
    ("image_layer", image_layer),
    ("manifest", manifest),
    ("names", names),
    ("page_images", page_images),
    ("redo_answers", redo_answers),
    ("replication", replication),
    ("replication_origins", replication_origins),
    ("slru_pages", slru_pages),
    ("tar", tar),
    ("wal_pages", wal_pages),
    ("wal_records", wal_records),
];
