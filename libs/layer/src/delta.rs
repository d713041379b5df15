use std::ops::Range;

use palimpsest_types::{Key, KeyRange, Lsn, WriterEpoch};
use palimpsest_wal::Value;

/// Whether a reader wants older versions still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// Go on to the next older version.
    Continue,
    /// It has all it needs.
    Stop,
}

/// Changes of some keys over a range of LSNs.
pub trait DeltaLayer {
    /// Generation of the writer that made it.
    fn epoch(&self) -> WriterEpoch;

    /// LSNs of its changes; the start is exclusive as changes end after it, the end inclusive.
    fn lsns(&self) -> Range<Lsn>;

    /// Shows the versions of a key at or before `up_to`, newest first, until told to stop.
    fn versions(&self, key: Key, up_to: Lsn, visit: &mut dyn FnMut(Lsn, &Value) -> Visit);

    /// Shows for each key of a range its newest version at or before `up_to`, in key order.
    fn newest(&self, keys: KeyRange, up_to: Lsn, visit: &mut dyn FnMut(Key, Lsn, &Value));
}
