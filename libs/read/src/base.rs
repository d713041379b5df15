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
        Ok(Self { lsn, layers, index })
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
        let Some(layer) = self.layers.get(entry.layer as usize) else {
            return Err(ReadError::WrongValue(entry.key));
        };
        let ValueRef { offset, len, .. } = entry.value;
        let stored = files
            .read(&layer.path, offset..offset + u64::from(len))
            .await?;
        entry
            .value
            .decode(entry.key, stored)
            .map_err(|source| damaged(&layer.path, source))
    }
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
