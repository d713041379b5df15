//! What happened to databases as a whole: every read asks for it, and mostly there is none.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    sync::Arc,
};

use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use palimpsest_types::{Key, KeyRange, Lsn};
use palimpsest_wal::Value;

use super::{LayerFiles, changes::Changes};
use crate::{
    delta::{DeltaFile, Newest},
    error::ReadError,
    listing::all_databases,
    parts::READS,
    room::Room,
};

/// All versions of keys of databases in the layers of a manifest, in memory: one for each database
/// that was made or dropped.
#[derive(Debug, Default)]
pub(super) struct Databases {
    /// By the numbers of the layers, of those that have any.
    by_layer: HashMap<u64, Arc<[Event]>>,
    versions: BTreeMap<(Key, Lsn), Value>,
}

type Event = (Key, Lsn, Value);

impl Databases {
    /// Those of a manifest, given those of the one before. Of new layers whose keys reach so far the
    /// end is read, many side by side: every later read needs to know this of every layer.
    pub(super) async fn follow(
        before: Arc<Self>,
        files: &LayerFiles,
        changes: &Changes,
    ) -> Result<Arc<Self>, ReadError> {
        let room = Room::new();
        let added = changes.added.iter().filter(|file| may_tell(file));
        let reads: Vec<_> = added
            .map(|file| read(files, &room, Arc::clone(file)))
            .collect();
        let reads = stream::iter(reads).buffer_unordered(READS);
        let told = |read: &(u64, Arc<[Event]>)| future::ready(!read.1.is_empty());
        let added: Vec<_> = reads.try_filter(told).try_collect().await?;
        let is_told = |file: &&Arc<DeltaFile>| before.by_layer.contains_key(&number_of(file));
        let removed: Vec<_> = changes.removed.iter().filter(is_told).collect();
        if added.is_empty() && removed.is_empty() {
            return Ok(before);
        }
        let mut by_layer = before.by_layer.clone();
        for file in removed {
            by_layer.remove(&number_of(file));
        }
        by_layer.extend(added);
        let events = by_layer.values().flat_map(|events| events.iter());
        let version = |(key, at, value): &Event| ((*key, *at), value.clone());
        let versions = events.map(version).collect();
        Ok(Arc::new(Self { by_layer, versions }))
    }

    /// The newest version of a key at these LSNs.
    pub(super) fn newest(&self, key: Key, lsns: &RangeInclusive<Lsn>) -> Option<(Lsn, Value)> {
        if lsns.is_empty() {
            return None;
        }
        let versions = (key, *lsns.start())..=(key, *lsns.end());
        let newest = self.versions.range(versions).next_back();
        newest.map(|((_, at), value)| (*at, value.clone()))
    }

    /// The newest version of each key of a range at or before `up_to`.
    pub(super) fn newest_in(&self, keys: &KeyRange, up_to: Lsn) -> Newest {
        let mut newest = Newest::new();
        // Oldest first, so that the newest stays.
        for ((key, at), value) in &self.versions {
            if keys.contains(key) && *at <= up_to {
                newest.insert(*key, (*at, value.clone()));
            }
        }
        newest
    }
}

/// Whether a range of keys has no others than those of databases.
pub(super) fn are_databases(keys: &KeyRange) -> bool {
    let all = all_databases();
    all.start <= keys.start && keys.end <= all.end
}

fn may_tell(file: &DeltaFile) -> bool {
    let (keys, all) = (file.place().keys, all_databases());
    keys.first < all.end && all.start <= keys.last
}

fn number_of(file: &DeltaFile) -> u64 {
    file.place().number
}

async fn read(
    files: &LayerFiles,
    room: &Room,
    file: Arc<DeltaFile>,
) -> Result<(u64, Arc<[Event]>), ReadError> {
    let mut events = Vec::new();
    let mut visit = |key, at, value| events.push((key, at, value));
    file.first_range(files, room, all_databases(), &mut visit)
        .await?;
    Ok((number_of(&file), events.into()))
}
