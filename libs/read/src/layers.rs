use std::{
    collections::BTreeMap,
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use bytes::Bytes;
use palimpsest_layer::Visit;
use palimpsest_manifest::{LayerEntry, LayerKind, TimelineManifest};
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{Key, KeyRange, Lsn, WriterEpoch};
use palimpsest_wal::Value;

use crate::{
    base::BaseLayers, blocks::BlockCache, delta::DeltaFile, error::ReadError, versions::Versions,
};

/// Where the layer files of one timeline are, and the blocks of them that are in memory.
#[derive(Debug, Clone)]
pub struct LayerFiles {
    pub(crate) store: ObjectStore,
    pub(crate) directory: StorePath,
    pub(crate) blocks: Arc<BlockCache>,
}

/// The layers that a manifest lists: all versions up to its LSN. Never changes; a newer manifest
/// gives new `Layers`, which share the files that were open already.
#[derive(Debug)]
pub struct Layers {
    files: LayerFiles,
    lsn: Lsn,
    oldest: Lsn,
    base: Arc<BaseLayers>,
    /// Oldest first; each begins where the one before ends.
    deltas: Vec<(String, Arc<DeltaFile>)>,
}

impl LayerFiles {
    /// Layer files below `directory`.
    pub fn new(store: ObjectStore, directory: StorePath, blocks: Arc<BlockCache>) -> Self {
        Self {
            store,
            directory,
            blocks,
        }
    }

    pub(crate) async fn read(
        &self,
        path: &StorePath,
        range: Range<u64>,
    ) -> Result<Bytes, ReadError> {
        // A layer without changes has an index without bytes, which stores refuse to read.
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let bytes = self.store.get_range(path, range).await;
        bytes.map_err(|error| ReadError::store(&path.to_string(), &error))
    }
}

impl Layers {
    /// Opens the layers of a manifest; those that `before` has open are taken from it.
    ///
    /// # Errors
    /// If one is missing or damaged.
    pub async fn open(
        files: LayerFiles,
        manifest: &TimelineManifest,
        before: Option<&Self>,
    ) -> Result<Self, ReadError> {
        let (images, deltas): (Vec<_>, Vec<_>) = manifest
            .layers()
            .iter()
            .partition(|entry| matches!(entry.kind, LayerKind::Image(_)));
        let base = match before.filter(|before| before.base.consists_of(&images)) {
            Some(before) => Arc::clone(&before.base),
            None => Arc::new(BaseLayers::open(&files, &images).await?),
        };
        let mut opened = Vec::with_capacity(deltas.len());
        for entry in deltas {
            let known = before.and_then(|before| before.delta(entry));
            let file = match known {
                Some(file) => file,
                None => Arc::new(DeltaFile::open(&files, entry).await?),
            };
            opened.push((entry.name.clone(), file));
        }
        opened.sort_by_key(|(_, file)| file.start());
        Ok(Self {
            files,
            lsn: manifest.lsn,
            oldest: manifest.oldest_readable.max(manifest.gc_cutoff),
            base,
            deltas: opened,
        })
    }

    /// All versions up to here are in them.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The oldest LSN that can be read.
    pub fn oldest(&self) -> Lsn {
        self.oldest
    }

    /// Number of files that hold changes.
    pub fn deltas(&self) -> usize {
        self.deltas.len()
    }

    pub(crate) fn base(&self) -> &BaseLayers {
        &self.base
    }

    /// Shows the changes of a key at these LSNs, newest first, with the generation of their writer,
    /// until told to stop; perhaps older ones, too. The version of the base comes apart.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub(crate) async fn versions(
        &self,
        key: Key,
        lsns: &RangeInclusive<Lsn>,
        visit: &mut (dyn FnMut(WriterEpoch, Lsn, &Value) -> Visit + Send),
    ) -> Result<(), ReadError> {
        let up_to = *lsns.end();
        for (_, file) in self.deltas.iter().rev() {
            if file.start() >= up_to {
                continue;
            }
            if file.last() < *lsns.start() {
                break;
            }
            let epoch = file.epoch();
            let mut visit = |lsn, value: &Value| visit(epoch, lsn, value);
            let wish = file.versions(&self.files, key, up_to, &mut visit).await?;
            if wish == Visit::Stop {
                break;
            }
        }
        Ok(())
    }

    /// The version of a key in the base, if it has one.
    pub(crate) async fn base_version(&self, key: Key) -> Result<Option<Value>, ReadError> {
        self.base.get(&self.files, key).await
    }

    fn delta(&self, entry: &LayerEntry) -> Option<Arc<DeltaFile>> {
        let known = self.deltas.iter().find(|(name, _)| *name == entry.name);
        known.map(|(_, file)| Arc::clone(file))
    }
}

impl Versions for Layers {
    async fn newest(
        &self,
        key: Key,
        lsns: RangeInclusive<Lsn>,
    ) -> Result<Option<(Lsn, Value)>, ReadError> {
        let mut newest = None;
        let mut visit = |_, at, value: &Value| {
            newest = Some((at, value.clone()));
            Visit::Stop
        };
        self.versions(key, &lsns, &mut visit).await?;
        let base = self.base.lsn();
        if newest.is_none() && lsns.contains(&base) {
            let value = self.base_version(key).await?;
            newest = value.map(|value| (base, value));
        }
        Ok(newest.filter(|(at, _)| lsns.contains(at)))
    }

    async fn newest_in(
        &self,
        keys: KeyRange,
        up_to: Lsn,
    ) -> Result<BTreeMap<Key, (Lsn, Value)>, ReadError> {
        let mut newest = BTreeMap::new();
        if self.base.lsn() <= up_to {
            for (key, value) in self.base.range(&self.files, keys.clone()).await? {
                newest.insert(key, (self.base.lsn(), value));
            }
        }
        // Oldest first, so that the newest stays.
        let mut insert = |key, at, value: &Value| drop(newest.insert(key, (at, value.clone())));
        for (_, file) in &self.deltas {
            if file.start() < up_to {
                let range = file.range(&self.files, keys.clone(), up_to, &mut insert);
                range.await?;
            }
        }
        Ok(newest)
    }
}
