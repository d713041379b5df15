use std::{
    cmp::Ordering,
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use bytes::Bytes;
use palimpsest_layer::Visit;
use palimpsest_manifest::{KeySpan, LayerEntry, LayerKind, LsnSpan, TimelineManifest};
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{Key, KeyRange, Lsn, SystemIdentifier, WriterEpoch};
use palimpsest_wal::Value;

use crate::{
    base::BaseLayers,
    blocks::BlockCache,
    error::ReadError,
    room::Room,
    versions::{Images, Listing, Versions},
};

mod changes;
mod databases;
mod listed;
mod listing;
mod walk;

use databases::{Databases, are_databases};
use listed::Listed;
pub(crate) use walk::Seek;

/// Where the layer files of one timeline are, and the blocks of them that are in memory.
#[derive(Debug, Clone)]
pub struct LayerFiles {
    pub(crate) store: ObjectStore,
    pub(crate) directory: StorePath,
    pub(crate) blocks: Arc<BlockCache>,
}

/// The layers that a manifest lists: all versions up to its LSN. Never changes; a newer manifest
/// gives new `Layers`, which share what did not change.
///
/// Of delta layers there is in memory what the manifest says of them; the rest is read when a read
/// first needs it, by one reader for all, and kept as long as the block cache likes.
#[derive(Debug)]
pub struct Layers {
    files: LayerFiles,
    lsn: Lsn,
    oldest: Lsn,
    /// LSNs that stay readable, rising.
    pinned: Arc<[Lsn]>,
    /// What was lost.
    holes: Arc<[LsnSpan]>,
    /// PostgreSQL timelines that were left, each with where, rising.
    left: Arc<[(u32, Lsn)]>,
    /// Who writes what comes after them.
    cluster: SystemIdentifier,
    base: Arc<BaseLayers>,
    deltas: Listed,
    images: Listed,
    databases: Arc<Databases>,
}

/// Looks for the newest version of a key.
struct SeekNewest {
    key: Key,
    lsns: RangeInclusive<Lsn>,
    found: Option<(Lsn, Value)>,
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
    /// The layers of a manifest. What `before` has of them is taken from it, so this reads from the
    /// store only what is new, and of that only base layers and what says of whole databases.
    ///
    /// # Errors
    /// If a layer that is read is missing or damaged.
    pub async fn open(
        files: LayerFiles,
        manifest: &TimelineManifest,
        before: Option<&Self>,
    ) -> Result<Self, ReadError> {
        let bases: Vec<_> = bases(manifest).collect();
        let base = match before.filter(|before| before.base.consists_of(&bases)) {
            Some(before) => Arc::clone(&before.base),
            None => Arc::new(BaseLayers::open(&files, &bases).await?),
        };
        let known = before.map(|before| &before.images);
        let (images, _) = Listed::follow(known, &files, self::images(manifest));
        let known = before.map(|before| &before.deltas);
        let (deltas, changes) = Listed::follow(known, &files, self::deltas(manifest));
        let databases = before.map(|before| Arc::clone(&before.databases));
        let databases = databases.unwrap_or_default();
        let databases = Databases::follow(databases, &files, &changes).await?;
        Ok(Self {
            files,
            lsn: manifest.lsn,
            oldest: oldest(manifest),
            pinned: pinned(manifest),
            holes: manifest.holes().into(),
            left: left(manifest),
            cluster: manifest.source.system_identifier,
            base,
            deltas,
            images,
            databases,
        })
    }

    /// Whether a manifest is worth to be opened in the place of these: one that reaches further, or as far
    /// with other layers, as compaction replaces them, or with other LSNs that can be read. One that reaches less
    /// far is an older one.
    pub fn are_superseded_by(&self, manifest: &TimelineManifest) -> bool {
        match manifest.lsn.cmp(&self.lsn) {
            Ordering::Greater => true,
            Ordering::Equal => !self.are_of(manifest),
            Ordering::Less => false,
        }
    }

    /// Whether these are the layers of a manifest, and what can be read is the same.
    fn are_of(&self, manifest: &TimelineManifest) -> bool {
        let bases: Vec<_> = bases(manifest).collect();
        self.oldest == oldest(manifest)
            && self.pinned == pinned(manifest)
            && *self.holes == *manifest.holes()
            && self.left == left(manifest)
            && self.cluster == manifest.source.system_identifier
            && self.deltas.are(deltas(manifest))
            && self.images.are(images(manifest))
            && self.base.consists_of(&bases)
    }

    /// All versions up to here are in them.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The oldest LSN from which on all can be read.
    pub fn oldest(&self) -> Lsn {
        self.oldest
    }

    /// Whether an LSN can be read though the oldest may be above it. Records end at multiples of 8 bytes.
    pub(crate) fn is_pinned(&self, lsn: Lsn) -> bool {
        self.pinned.binary_search(&lsn.floor_to(8)).is_ok()
    }

    /// What was lost, of changes.
    pub(crate) fn holes(&self) -> &[LsnSpan] {
        &self.holes
    }

    /// PostgreSQL timelines that were left for another, each with where, rising; also before a branch point.
    pub(crate) fn left(&self) -> &[(u32, Lsn)] {
        &self.left
    }

    /// The cluster that has written the newest of them.
    pub(crate) fn cluster(&self) -> SystemIdentifier {
        self.cluster
    }

    /// Number of files that hold changes.
    pub fn deltas(&self) -> usize {
        self.deltas.len()
    }

    /// Number of layers that have a change of any of these keys at these LSNs, but no more than
    /// `enough`.
    ///
    /// # Errors
    /// If one is missing or damaged.
    pub async fn layers_with(
        &self,
        keys: KeySpan,
        lsns: LsnSpan,
        enough: usize,
    ) -> Result<usize, ReadError> {
        let Some(end) = keys.last.next() else {
            return Ok(0);
        };
        let keys = keys.first..end;
        let room = Room::new();
        let mut found = 0;
        for (_, file) in self.deltas.map.overlapping(&keys, lsns) {
            if found < enough && file.has_any(&self.files, &room, keys.clone(), lsns).await? {
                found += 1;
            }
        }
        Ok(found)
    }

    pub(crate) fn base(&self) -> &BaseLayers {
        &self.base
    }

    pub(crate) fn files(&self) -> &LayerFiles {
        &self.files
    }

    /// Shows seekers the versions of their keys, newest first, until they say stop. The version of
    /// the base comes apart.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub(crate) async fn seek<S: Seek>(&self, seekers: &mut [S]) -> Result<(), ReadError> {
        walk::walk(self, seekers).await
    }
}

impl Versions for Layers {
    async fn newest(
        &self,
        key: Key,
        lsns: RangeInclusive<Lsn>,
    ) -> Result<Option<(Lsn, Value)>, ReadError> {
        if let Key::Database { .. } = key {
            return Ok(self.databases.newest(key, &lsns));
        }
        let mut seekers = [SeekNewest {
            key,
            lsns: lsns.clone(),
            found: None,
        }];
        self.seek(&mut seekers).await?;
        let [SeekNewest { mut found, .. }] = seekers;
        let base = self.base.lsn();
        if found.is_none() && lsns.contains(&base) {
            let value = self.base.get(&self.files, key).await?;
            found = value.map(|value| (base, value));
        }
        Ok(found.filter(|(at, _)| lsns.contains(at)))
    }

    async fn newest_in(&self, keys: KeyRange, up_to: Lsn) -> Result<Listing, ReadError> {
        if are_databases(&keys) {
            return Ok(Listing {
                versions: self.databases.newest_in(&keys, up_to),
                images: Images::default(),
            });
        }
        // Apart: its state is large.
        Box::pin(listing::newest_in(self, &keys, up_to)).await
    }
}

impl Seek for SeekNewest {
    fn key(&self) -> Key {
        self.key
    }

    fn lsns(&self) -> RangeInclusive<Lsn> {
        self.lsns.clone()
    }

    fn take(&mut self, _: WriterEpoch, at: Lsn, value: &Value) -> Visit {
        self.found = Some((at, value.clone()));
        Visit::Stop
    }

    fn absent(&mut self, _: WriterEpoch, at: Lsn) {
        self.found = Some((at, Value::Dropped));
    }
}

/// The oldest LSN that can be read, unless it is pinned.
fn oldest(manifest: &TimelineManifest) -> Lsn {
    manifest.oldest_readable.max(manifest.gc_cutoff)
}

/// What stays readable whatever is removed, rising.
fn pinned(manifest: &TimelineManifest) -> Arc<[Lsn]> {
    let pins = manifest.pins().iter();
    let mut lsns: Vec<_> = pins.map(|pin| pin.lsn.floor_to(8)).collect();
    lsns.sort_unstable();
    lsns.dedup();
    lsns.into()
}

/// Each PostgreSQL timeline ends where the next begins.
fn left(manifest: &TimelineManifest) -> Arc<[(u32, Lsn)]> {
    let begun = &manifest.pg_timeline_history;
    let left = begun.iter().zip(begun.iter().skip(1));
    left.map(|(one, next)| (one.pg_timeline, next.begin))
        .collect()
}

fn bases(manifest: &TimelineManifest) -> impl Iterator<Item = &LayerEntry> {
    let is_base = |entry: &&LayerEntry| matches!(entry.kind, LayerKind::Base(_));
    manifest.layers().iter().filter(is_base)
}

/// The images, each with the span that it is found by.
fn images(manifest: &TimelineManifest) -> impl Iterator<Item = (&LayerEntry, LsnSpan)> {
    let layers = manifest.layers().iter();
    layers.filter_map(|entry| match entry.kind {
        LayerKind::Image(lsn) => Some((entry, LsnSpan::only(lsn))),
        LayerKind::Base(_) | LayerKind::Delta(_) => None,
    })
}

/// The delta layers, each with the span that it is found by.
fn deltas(manifest: &TimelineManifest) -> impl Iterator<Item = (&LayerEntry, LsnSpan)> {
    let layers = manifest.layers().iter();
    layers.filter_map(|entry| match entry.kind {
        LayerKind::Delta(span) => Some((entry, span)),
        LayerKind::Base(_) | LayerKind::Image(_) => None,
    })
}
