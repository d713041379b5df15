//! Versions of keys, wherever they are.

use std::{collections::BTreeMap, ops::RangeInclusive};

use palimpsest_types::{Key, KeyRange, Lsn};
use palimpsest_wal::Value;

use crate::error::ReadError;

/// The newest versions of the keys of a range at an LSN.
#[derive(Debug, Default)]
pub struct Listing {
    /// Of each key that has one, with its own LSN. Of what is in an image that is the image's.
    pub versions: BTreeMap<Key, (Lsn, Value)>,
    /// The images that it begins with.
    pub images: Images,
}

/// Where images of keys are.
#[derive(Debug, Clone, Default)]
pub struct Images {
    /// On each timeline of a history that has any, newest first: of keys in order.
    timelines: Vec<Vec<(KeyRange, Lsn)>>,
}

impl Listing {
    /// Adds what the ancestor has of the same keys: it counts where nothing newer does.
    pub(crate) fn add_older(&mut self, older: Self) {
        for (key, version) in older.versions {
            if self.images.of(key).is_none() {
                self.versions.entry(key).or_insert(version);
            }
        }
        self.images.timelines.extend(older.images.timelines);
    }
}

impl Images {
    /// There is one of these keys, all behind those known before, on the same timeline.
    pub(crate) fn push(&mut self, keys: KeyRange, at: Lsn) {
        match self.timelines.last_mut() {
            Some(images) => images.push((keys, at)),
            None => self.timelines.push(vec![(keys, at)]),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.timelines.is_empty()
    }

    /// Where the newest image of a key is. If the key has no version in a listing it does not exist there,
    /// whatever is older.
    pub fn of(&self, key: Key) -> Option<Lsn> {
        self.timelines.iter().find_map(|images| {
            let behind = images.partition_point(|(keys, _)| keys.start <= key);
            let (keys, at) = images.get(behind.checked_sub(1)?)?;
            (key < keys.end).then_some(*at)
        })
    }
}

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

    /// For each key of a range that has one, the newest version at or before `up_to`. Of what does not exist
    /// there may be none, or one that says so.
    ///
    /// # Errors
    /// If they can't be read.
    fn newest_in(
        &self,
        keys: KeyRange,
        up_to: Lsn,
    ) -> impl Future<Output = Result<Listing, ReadError>> + Send;
}
