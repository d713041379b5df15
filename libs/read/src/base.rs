use std::collections::HashMap;

use bytes::Bytes;
use palimpsest_layer::image::{Footer, ImageLayerError, ImageLayerIndex, ValueRef};
use palimpsest_manifest::LayerEntry;
use palimpsest_store::StorePath;
use palimpsest_types::{Key, KeyRange, Lsn};
use palimpsest_wal::Value;

use crate::{error::ReadError, layers::LayerFiles};

/// The image layers of a manifest, with one index over all of them.
#[derive(Debug)]
pub(crate) struct BaseLayers {
    lsn: Lsn,
    layers: Vec<Layer>,
    /// Sorted by key.
    index: Vec<Entry>,
    /// Sizes of forks and segments: every read of a page asks for one.
    sizes: HashMap<Key, Value>,
}

#[derive(Debug)]
struct Layer {
    name: String,
    path: StorePath,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: Key,
    layer: u32,
    value: ValueRef,
}

/// Reading so many bytes in vain is cheaper than reading twice.
const READ_OVER: u64 = 4 << 10;

impl BaseLayers {
    /// Opens layers, which are all of one LSN.
    pub(crate) async fn open(
        files: &LayerFiles,
        entries: &[&LayerEntry],
    ) -> Result<Self, ReadError> {
        let mut layers = Vec::with_capacity(entries.len());
        let mut index = Vec::new();
        let mut lsn = Lsn::ZERO;
        for entry in entries {
            let path = files.directory.child(&entry.name);
            let found = read_index(files, &path, entry).await?;
            lsn = lsn.max(found.lsn());
            let layer = layers.len() as u32;
            index.extend(
                found
                    .entries()
                    .map(|(key, value)| Entry { key, layer, value }),
            );
            let name = entry.name.clone();
            layers.push(Layer { name, path });
        }
        index.sort_unstable_by_key(|entry| entry.key);
        let mut base = Self {
            lsn,
            layers,
            index,
            sizes: HashMap::new(),
        };
        base.sizes = base.read_sizes(files).await?;
        Ok(base)
    }

    /// Values of all keys that say how long something is.
    async fn read_sizes(&self, files: &LayerFiles) -> Result<HashMap<Key, Value>, ReadError> {
        let is_size = |entry: &&Entry| matches!(entry.key, Key::RelSize(_) | Key::SlruSegment(..));
        let mut entries: Vec<_> = self.index.iter().filter(is_size).copied().collect();
        entries.sort_unstable_by_key(|entry| (entry.layer, entry.value.offset));
        let mut sizes = HashMap::with_capacity(entries.len());
        for run in entries.chunk_by(lie_together) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            let from = first.value.offset;
            let path = &self.layer_of(first)?.path;
            let mut bytes = files.read(path, from..last.end()).await?;
            let mut at = from;
            for entry in run {
                let (skip, len) = (entry.value.offset - at, entry.value.len as usize);
                let (skip, all) = (skip as usize, skip as usize + len);
                if bytes.len() < all {
                    return Err(ReadError::WrongValue(entry.key));
                }
                let stored = bytes.split_to(all).split_off(skip);
                at = entry.end();
                sizes.insert(entry.key, self.decode(entry, stored)?);
            }
        }
        Ok(sizes)
    }

    /// Whether it was opened from these layers.
    pub(crate) fn consists_of(&self, entries: &[&LayerEntry]) -> bool {
        let names = self.layers.iter().map(|layer| &layer.name);
        names.eq(entries.iter().map(|entry| &entry.name))
    }

    /// The LSN of all its versions.
    pub(crate) fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The version of a key, if it has one.
    pub(crate) async fn get(
        &self,
        files: &LayerFiles,
        key: Key,
    ) -> Result<Option<Value>, ReadError> {
        if let Some(size) = self.sizes.get(&key) {
            return Ok(Some(size.clone()));
        }
        // A base begins with what there is, copied or not.
        if matches!(key, Key::Database { .. }) {
            return Ok(None);
        }
        match self.index.binary_search_by_key(&key, |entry| entry.key) {
            Ok(at) => match self.index.get(at) {
                Some(entry) => self.load(files, entry).await.map(Some),
                None => Ok(None),
            },
            Err(_) => Ok(None),
        }
    }

    /// Versions of all keys in a range, in key order.
    pub(crate) async fn range(
        &self,
        files: &LayerFiles,
        keys: KeyRange,
    ) -> Result<Vec<(Key, Value)>, ReadError> {
        let from = self.index.partition_point(|entry| entry.key < keys.start);
        let to = self.index.partition_point(|entry| entry.key < keys.end);
        let mut found = Vec::new();
        for entry in self.index.get(from..to).unwrap_or_default() {
            found.push((entry.key, self.load(files, entry).await?));
        }
        Ok(found)
    }

    async fn load(&self, files: &LayerFiles, entry: &Entry) -> Result<Value, ReadError> {
        if let Some(size) = self.sizes.get(&entry.key) {
            return Ok(size.clone());
        }
        let path = &self.layer_of(entry)?.path;
        let stored = files.read(path, entry.value.offset..entry.end()).await?;
        self.decode(entry, stored)
    }

    fn decode(&self, entry: &Entry, stored: Bytes) -> Result<Value, ReadError> {
        let layer = self.layer_of(entry)?;
        let value = entry.value.decode(entry.key, stored);
        value.map_err(|source| damaged(&layer.path, source))
    }

    fn layer_of(&self, entry: &Entry) -> Result<&Layer, ReadError> {
        let layer = self.layers.get(entry.layer as usize);
        layer.ok_or(ReadError::WrongValue(entry.key))
    }
}

impl Entry {
    /// Where its value ends in the layer.
    fn end(&self) -> u64 {
        self.value.offset + u64::from(self.value.len)
    }
}

/// Whether two values, the second after the first, are worth reading at once.
fn lie_together(one: &Entry, next: &Entry) -> bool {
    let is_behind = one.end() <= next.value.offset;
    one.layer == next.layer && is_behind && next.value.offset - one.end() <= READ_OVER
}

async fn read_index(
    files: &LayerFiles,
    path: &StorePath,
    entry: &LayerEntry,
) -> Result<ImageLayerIndex, ReadError> {
    let size = entry.size.get();
    let from = size.saturating_sub(Footer::LEN as u64);
    let footer = files.read(path, from..size).await?;
    let footer = Footer::decode(&footer, size).map_err(|source| damaged(path, source))?;
    let index = footer.index_offset..footer.index_offset + footer.index_len;
    let index = files.read(path, index).await?;
    ImageLayerIndex::decode(&footer, &index).map_err(|source| damaged(path, source))
}

fn damaged(path: &StorePath, source: ImageLayerError) -> ReadError {
    ReadError::Layer {
        layer: path.to_string(),
        source,
    }
}
