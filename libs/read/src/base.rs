use palimpsest_layer::image::{Footer, ImageLayerError, ImageLayerIndex, ValueRef};
use palimpsest_manifest::LayerEntry;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{Key, KeyRange, Lsn};
use palimpsest_wal::Value;

use crate::error::ReadError;

/// The image layers of a manifest, with one index over all of them.
#[derive(Debug)]
pub struct BaseLayers {
    store: ObjectStore,
    lsn: Lsn,
    names: Vec<StorePath>,
    /// Sorted by key.
    index: Vec<Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: Key,
    layer: u32,
    value: ValueRef,
}

impl BaseLayers {
    /// Opens the layers that a manifest lists, which lie below `directory`.
    ///
    /// # Errors
    /// If one is missing or damaged.
    pub async fn open(
        store: ObjectStore,
        directory: &StorePath,
        lsn: Lsn,
        layers: &[LayerEntry],
    ) -> Result<Self, ReadError> {
        let mut names = Vec::with_capacity(layers.len());
        let mut index = Vec::new();
        let (first, end) = whole_range();
        for entry in layers {
            let path = directory.child(&entry.name);
            let found = read_index(&store, &path, entry).await?;
            let layer = names.len() as u32;
            index.extend(
                found
                    .range(first..end)
                    .map(|(key, value)| Entry { key, layer, value }),
            );
            names.push(path);
        }
        index.sort_unstable_by_key(|entry| entry.key);
        Ok(Self {
            store,
            lsn,
            names,
            index,
        })
    }

    /// The LSN of all its versions.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The version of a key, if it has one.
    ///
    /// # Errors
    /// If its layer is missing or damaged.
    pub async fn get(&self, key: Key) -> Result<Option<Value>, ReadError> {
        match self.index.binary_search_by_key(&key, |entry| entry.key) {
            Ok(at) => match self.index.get(at) {
                Some(entry) => self.load(entry).await.map(Some),
                None => Ok(None),
            },
            Err(_) => Ok(None),
        }
    }

    /// Versions of all keys in a range, in key order.
    ///
    /// # Errors
    /// If a layer is missing or damaged.
    pub async fn range(&self, keys: KeyRange) -> Result<Vec<(Key, Value)>, ReadError> {
        let from = self.index.partition_point(|entry| entry.key < keys.start);
        let to = self.index.partition_point(|entry| entry.key < keys.end);
        let mut found = Vec::new();
        for entry in self.index.get(from..to).unwrap_or_default() {
            found.push((entry.key, self.load(entry).await?));
        }
        Ok(found)
    }

    async fn load(&self, entry: &Entry) -> Result<Value, ReadError> {
        let Some(path) = self.names.get(entry.layer as usize) else {
            return Err(ReadError::WrongValue(entry.key));
        };
        let ValueRef { offset, len, .. } = entry.value;
        let stored = self
            .store
            .get_range(path, offset..offset + u64::from(len))
            .await
            .map_err(|error| ReadError::store(&path.to_string(), &error))?;
        entry
            .value
            .decode(entry.key, stored)
            .map_err(|source| damaged(path, source))
    }
}

async fn read_index(
    store: &ObjectStore,
    path: &StorePath,
    entry: &LayerEntry,
) -> Result<ImageLayerIndex, ReadError> {
    let read = async |range| {
        let bytes = store.get_range(path, range).await;
        bytes.map_err(|error| ReadError::store(&path.to_string(), &error))
    };
    let size = entry.size.get();
    let footer = read(size.saturating_sub(Footer::LEN as u64)..size).await?;
    let footer = Footer::decode(&footer, size).map_err(|source| damaged(path, source))?;
    let index = read(footer.index_offset..footer.index_offset + footer.index_len).await?;
    ImageLayerIndex::decode(&footer, &index).map_err(|source| damaged(path, source))
}

fn damaged(path: &StorePath, source: ImageLayerError) -> ReadError {
    ReadError::Layer {
        layer: path.to_string(),
        source,
    }
}

/// Every key there can be, but for the last relation map.
fn whole_range() -> (Key, Key) {
    use palimpsest_types::{Fork, RelTag};
    let first = RelTag {
        spc: 0,
        db: 0,
        rel: 0,
        fork: Fork::Main,
    };
    (
        Key::RelSize(first),
        Key::RelMap {
            spc: u32::MAX,
            db: u32::MAX,
        },
    )
}
