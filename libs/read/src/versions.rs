use std::{collections::BTreeMap, ops::RangeInclusive};

use palimpsest_types::{Key, KeyRange, Lsn};
use palimpsest_wal::Value;

use crate::error::ReadError;

/// Where versions of keys are found: layers, or layers and what came after them.
///
/// The keys asked for here have versions that all stand alone; pages need chains.
pub trait Versions: Sync {
    /// The newest version of a key at one of these LSNs, with its own.
    ///
    /// # Errors
    /// If it can't be read.
    fn newest(
        &self,
        key: Key,
        lsns: RangeInclusive<Lsn>,
    ) -> impl Future<Output = Result<Option<(Lsn, Value)>, ReadError>> + Send;

    /// For each key of a range that has one, the newest version at or before `up_to`.
    ///
    /// # Errors
    /// If they can't be read.
    fn newest_in(
        &self,
        keys: KeyRange,
        up_to: Lsn,
    ) -> impl Future<Output = Result<BTreeMap<Key, (Lsn, Value)>, ReadError>> + Send;
}
