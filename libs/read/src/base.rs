//! The layers of a base backup: all of one LSN, each key in one of them.
//!
//! What is in memory is small: which runs of neighbouring pages there are and the sizes of forks
//! and segments, so about as much as there are relations, however many pages they have. The indexes,
//! which say where a page stands, are read whole once and checked; then in pieces, through the block
//! cache.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use palimpsest_layer::image::{
    Footer, ImageLayerError, ImageLayerIndex, IndexPiece, IndexPieces, ValueRef,
};
use palimpsest_manifest::{LayerEntry, LayerKind};
use palimpsest_store::StorePath;
use palimpsest_types::{Key, KeyRange, Lsn};
use palimpsest_wal::Value;

use crate::{
    blocks::{Block, BlockId, FilePart},
    error::ReadError,
    layers::LayerFiles,
    parts::{Part, parts},
};

mod runs;

use runs::{Run, Runs, Spot};

/// The base layers of a manifest.
#[derive(Debug)]
pub(crate) struct BaseLayers {
    lsn: Lsn,
    layers: Vec<Arc<Layer>>,
    /// All keys but those of `sizes`.
    runs: Runs,
    /// Sizes of forks and segments: every read of a page asks for one.
    sizes: BTreeMap<Key, Value>,
}

/// A version in the base, which is not read yet. Those that were asked for together and lie
/// together are read at once, when the first of them is.
#[derive(Debug, Clone)]
pub(crate) struct BaseValue {
    key: Key,
    value: ValueRef,
    part: Part,
    layer: Arc<Layer>,
}

#[derive(Debug)]
struct Layer {
    number: u64,
    name: String,
    path: StorePath,
    pieces: IndexPieces,
}

/// What opening a layer tells.
struct Opened {
    layer: Layer,
    runs: Vec<Run>,
    sizes: Vec<(Key, Value)>,
}

/// Layers whose indexes are in memory at once while they are opened.
const OPENED_AT_ONCE: usize = 8;

impl BaseLayers {
    /// Opens layers, which are all of one LSN.
    pub(crate) async fn open(
        files: &LayerFiles,
        entries: &[&LayerEntry],
    ) -> Result<Self, ReadError> {
        let lsn = entries.first().map_or(Lsn::ZERO, |entry| entry.up_to());
        let opened = (0..).zip(entries).map(|(number, entry)| {
            let path = files.directory.child(&entry.name);
            Layer::open(files, path, entry, (number, lsn))
        });
        let mut opened = stream::iter(opened.collect::<Vec<_>>()).buffered(OPENED_AT_ONCE);
        let (mut layers, mut runs, mut sizes) = (Vec::new(), Vec::new(), BTreeMap::new());
        while let Some(next) = opened.try_next().await? {
            for (key, size) in next.sizes {
                if sizes.insert(key, size).is_some() {
                    return Err(in_another(Some(&next.layer)));
                }
            }
            layers.push(Arc::new(next.layer));
            runs.extend(next.runs);
        }
        let runs = Runs::new(runs).map_err(|spot| {
            let layer = layers.get(spot.layer as usize);
            in_another(layer.map(AsRef::as_ref))
        })?;
        Ok(Self {
            lsn,
            layers,
            runs,
            sizes,
        })
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
        // Apart: its state is large, and who asks for a size must not move it about.
        let stored = async {
            match self.values(files, &[key]).await?.pop().flatten() {
                Some(value) => value.read().await.map(Some),
                None => Ok(None),
            }
        };
        Box::pin(stored).await
    }

    /// Versions of all keys in a range, in no order.
    pub(crate) async fn range(
        &self,
        files: &LayerFiles,
        keys: KeyRange,
    ) -> Result<Vec<(Key, Value)>, ReadError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let sizes = self.sizes.range(keys.clone());
        let mut found: Vec<_> = sizes.map(|(key, size)| (*key, size.clone())).collect();
        let others: Vec<_> = self.runs.keys_in(&keys).collect();
        let values = self.values(files, &others).await?;
        let values = values.into_iter().flatten().map(|value| async move {
            let key = value.key;
            Ok::<_, ReadError>((key, value.read().await?))
        });
        found.extend(try_join_all(values).await?);
        Ok(found)
    }

    /// Where the versions of keys other than sizes stand, each if there is one. Keys in order are
    /// read best.
    pub(crate) async fn values(
        &self,
        files: &LayerFiles,
        keys: &[Key],
    ) -> Result<Vec<Option<BaseValue>>, ReadError> {
        let mut by_layer: BTreeMap<u32, Vec<(usize, Spot)>> = BTreeMap::new();
        for (at, key) in keys.iter().enumerate() {
            if let Some(spot) = self.runs.find(*key) {
                by_layer.entry(spot.layer).or_default().push((at, spot));
            }
        }
        let found = by_layer.iter().filter_map(|(layer, spots)| {
            let layer = self.layers.get(*layer as usize)?;
            Some(Layer::values(layer, files, spots))
        });
        let mut values = vec![None; keys.len()];
        for (at, value) in try_join_all(found).await?.into_iter().flatten() {
            if let Some(place) = values.get_mut(at) {
                *place = Some(value);
            }
        }
        Ok(values)
    }
}

impl BaseValue {
    /// The version.
    pub(crate) async fn read(self) -> Result<Value, ReadError> {
        let stored = self.part.bytes().await?;
        let value = self.value.decode(self.key, stored);
        value.map_err(|source| damaged(&self.layer.path, source))
    }
}

impl Layer {
    /// Opens the layer of this number, which should be of this LSN.
    async fn open(
        files: &LayerFiles,
        path: StorePath,
        entry: &LayerEntry,
        (number, lsn): (u32, Lsn),
    ) -> Result<Opened, ReadError> {
        let (index, pieces) = read_index(files, &path, entry).await?;
        if index.lsn() != lsn || entry.kind != LayerKind::Base(lsn) {
            return Err(not_as_listed(Some(&path), "it is not of the base's LSN"));
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut sizes = Vec::new();
        for (at, (key, value)) in (0..).zip(index.entries()) {
            if is_size(key) {
                sizes.push((key, value));
            } else if !runs.last_mut().is_some_and(|run| run.extend(key, at)) {
                let layer = number;
                runs.push(Run::new(key, Spot { layer, entry: at }));
            }
        }
        let sizes = read_values(files, &path, sizes).await?;
        let layer = Self {
            number: files.blocks.number_file(),
            name: entry.name.clone(),
            path,
            pieces,
        };
        Ok(Opened { layer, runs, sizes })
    }

    /// Where versions stand, of which the index has entries of these numbers.
    async fn values(
        layer: &Arc<Self>,
        files: &LayerFiles,
        spots: &[(usize, Spot)],
    ) -> Result<Vec<(usize, BaseValue)>, ReadError> {
        let pieces = layer.pieces_of(files, spots).await?;
        let entry = |(at, spot): &(usize, Spot)| {
            let piece = pieces.get(&IndexPieces::piece_of(spot.entry));
            let entry = piece.and_then(|piece| piece.entry(spot.entry));
            let (key, value) = entry.ok_or_else(|| layer.confused())?;
            Ok::<_, ReadError>((*at, key, value))
        };
        let mut entries = spots.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        entries.sort_unstable_by_key(|(_, _, value)| value.offset);
        let places: Vec<_> = entries.iter().map(|(.., value)| value.range()).collect();
        let parts = parts(files, &layer.path, &places);
        let values = entries
            .into_iter()
            .zip(parts)
            .map(|((at, key, value), part)| {
                let layer = Arc::clone(layer);
                let value = BaseValue {
                    key,
                    value,
                    part,
                    layer,
                };
                (at, value)
            });
        Ok(values.collect())
    }

    /// The pieces of the index that tell of these.
    async fn pieces_of(
        &self,
        files: &LayerFiles,
        spots: &[(usize, Spot)],
    ) -> Result<HashMap<u32, Arc<IndexPiece>>, ReadError> {
        let numbers = spots
            .iter()
            .map(|(_, spot)| IndexPieces::piece_of(spot.entry));
        let mut numbers: Vec<_> = numbers.collect();
        numbers.sort_unstable();
        numbers.dedup();
        let is_missing = |no: &&u32| !files.blocks.has(self.id(**no));
        let missing: Vec<_> = numbers.iter().filter(is_missing).copied().collect();
        let places = missing.iter().map(|no| self.place_of(*no));
        let places = places.collect::<Result<Vec<_>, _>>()?;
        let parts = parts(files, &self.path, &places);
        let mut missing: HashMap<_, _> = missing.into_iter().zip(parts).collect();
        let read = numbers.iter().map(|no| {
            let part = missing.remove(no);
            self.piece(files, *no, part)
        });
        let pieces = try_join_all(read).await?;
        Ok(numbers.into_iter().zip(pieces).collect())
    }

    async fn piece(
        &self,
        files: &LayerFiles,
        no: u32,
        part: Option<Part>,
    ) -> Result<Arc<IndexPiece>, ReadError> {
        let read = || async {
            let stored = match part {
                Some(part) => part.bytes().await?,
                None => files.read(&self.path, self.place_of(no)?).await?,
            };
            let piece = self.pieces.piece(no, &stored);
            let piece = piece.map_err(|source| damaged(&self.path, source))?;
            Ok(Block::IndexPiece(Arc::new(piece)))
        };
        match files.blocks.get_or_read(self.id(no), read).await? {
            Block::IndexPiece(piece) => Ok(piece),
            _ => Err(self.confused()),
        }
    }

    fn place_of(&self, no: u32) -> Result<std::ops::Range<u64>, ReadError> {
        self.pieces.place(no).ok_or_else(|| self.confused())
    }

    fn id(&self, no: u32) -> BlockId {
        BlockId {
            file: self.number,
            part: FilePart::IndexPiece(no),
        }
    }

    /// The index has not what it had when the layer was opened.
    fn confused(&self) -> ReadError {
        not_as_listed(Some(&self.path), "its index is another's")
    }
}

/// Which version counts, nobody could tell.
fn in_another(layer: Option<&Layer>) -> ReadError {
    let path = layer.map(|layer| &layer.path);
    not_as_listed(path, "it has a key that another base layer has, too")
}

fn is_size(key: Key) -> bool {
    matches!(key, Key::RelSize(_) | Key::SlruSegment(..))
}

/// Reads values now, which should be small.
async fn read_values(
    files: &LayerFiles,
    path: &StorePath,
    mut values: Vec<(Key, ValueRef)>,
) -> Result<Vec<(Key, Value)>, ReadError> {
    values.sort_unstable_by_key(|(_, value)| value.offset);
    let places: Vec<_> = values.iter().map(|(_, value)| value.range()).collect();
    let parts = parts(files, path, &places);
    let read = values
        .into_iter()
        .zip(parts)
        .map(|((key, value), part)| async move {
            let value = value.decode(key, part.bytes().await?);
            let value = value.map_err(|source| damaged(path, source))?;
            Ok::<_, ReadError>((key, value))
        });
    try_join_all(read).await
}

async fn read_index(
    files: &LayerFiles,
    path: &StorePath,
    entry: &LayerEntry,
) -> Result<(ImageLayerIndex, IndexPieces), ReadError> {
    let size = entry.size.get();
    let from = size.saturating_sub(Footer::LEN as u64);
    let footer: Bytes = files.read(path, from..size).await?;
    let footer = Footer::decode(&footer, size).map_err(|source| damaged(path, source))?;
    let index = footer.index_offset..footer.index_offset + footer.index_len;
    let index = files.read(path, index).await?;
    IndexPieces::decode(&footer, &index).map_err(|source| damaged(path, source))
}

fn damaged(path: &StorePath, source: ImageLayerError) -> ReadError {
    ReadError::Layer {
        layer: path.to_string(),
        source,
    }
}

fn not_as_listed(path: Option<&StorePath>, problem: &'static str) -> ReadError {
    ReadError::NotAsListed {
        layer: path.map(ToString::to_string).unwrap_or_default(),
        problem,
    }
}
