//! What all layers of changes of a timeline hold together, as one small value.
//!
//! Layers may be made anew in any way as long as this stays the same: it knows versions only, not in
//! which files they are.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
    sync::Arc,
};

use anyhow::Result;
use palimpsest_api::TimelineRef;
use palimpsest_layer::delta_file::Stored;
use palimpsest_manifest::{LayerEntry, LayerKind, LsnSpan, TimelineManifest};
use palimpsest_read::{BlockCache, KeyBounds, LayerFiles, LayerScan};
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{ByteCount, Key, Lsn};
use palimpsest_wal::{RawRecord, Value};

use crate::processes::layer_names;

/// Some versions: how many, and the sum of their hashes, which no order changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VersionSum {
    /// How many.
    pub count: u64,
    /// Of all their keys, LSNs and values.
    pub hashes: u64,
}

/// Sums up the versions in layers. Files never change, so it reads each once.
#[derive(Debug)]
pub struct VersionReader {
    files: LayerFiles,
    known: HashMap<String, VersionSum>,
}

impl VersionReader {
    /// A reader of a timeline's layers.
    ///
    /// # Errors
    /// If the store can't be opened.
    pub async fn open(store: &Path, timeline: TimelineRef) -> Result<Self> {
        let store = ObjectStore::open(store).await?;
        let directory = StorePath::timeline(timeline.tenant, timeline.timeline).child("layers");
        let blocks = Arc::new(BlockCache::new(ByteCount::mib(1)));
        Ok(Self {
            files: LayerFiles::new(store, directory, blocks),
            known: HashMap::new(),
        })
    }

    /// The sum of all changes up to an LSN that a manifest's layers have.
    ///
    /// # Errors
    /// If a layer is missing or damaged.
    pub async fn sum(&mut self, manifest: &TimelineManifest, up_to: Lsn) -> Result<VersionSum> {
        let mut sum = VersionSum::default();
        for layer in manifest.layers() {
            let LayerKind::Delta(lsns) = layer.kind else {
                continue;
            };
            if lsns.up_to > up_to {
                let within = LsnSpan { up_to, ..lsns };
                sum.add(self.read(layer, lsns, within).await?);
            } else if let Some(known) = self.known.get(&layer.name) {
                sum.add(*known);
            } else {
                let read = self.read(layer, lsns, lsns).await?;
                self.known.insert(layer.name.clone(), read);
                sum.add(read);
            }
        }
        let there = layer_names(manifest);
        self.known.retain(|name, _| there.contains(name.as_str()));
        Ok(sum)
    }

    async fn read(&self, layer: &LayerEntry, lsns: LsnSpan, within: LsnSpan) -> Result<VersionSum> {
        if within.is_empty() {
            return Ok(VersionSum::default());
        }
        let scan = LayerScan::open(&self.files, layer, lsns).await?;
        let mut sum = VersionSum::default();
        let mut shared = Vec::new();
        let mut entries = scan.entries(KeyBounds::default(), within);
        while let Some((key, lsn, stored)) = entries.next().await? {
            match stored {
                Stored::Value(value) => sum.add(VersionSum::of(key, lsn, &value)),
                Stored::Shared { at, will_init } => shared.push((key, lsn, at, will_init)),
            }
        }
        let places = shared.iter().map(|(_, _, at, _)| *at).collect();
        let mut records = scan.records(places);
        let mut found = HashMap::new();
        while let Some((at, record)) = records.next().await? {
            found.insert(at, record);
        }
        for (key, lsn, at, will_init) in shared {
            // One that is missing makes a difference: its version is not counted.
            let record = found.get(&at).cloned();
            let value = record.map(|record| Value::Record { will_init, record });
            sum.add(value.map_or_else(VersionSum::default, |it| VersionSum::of(key, lsn, &it)));
        }
        Ok(sum)
    }
}

impl VersionSum {
    fn of(key: Key, lsn: Lsn, value: &Value) -> Self {
        let mut hasher = DefaultHasher::new();
        key.to_bytes().hash(&mut hasher);
        lsn.get().hash(&mut hasher);
        match value {
            Value::Image(page) => ("image", page).hash(&mut hasher),
            Value::Record { will_init, record } => {
                let RawRecord {
                    start_lsn,
                    end_lsn,
                    bytes,
                } = record;
                let lsns = (start_lsn.get(), end_lsn.get());
                ("record", will_init, lsns, bytes).hash(&mut hasher);
            }
            small => format!("{small:?}").hash(&mut hasher),
        }
        Self {
            count: 1,
            hashes: hasher.finish(),
        }
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.hashes = self.hashes.wrapping_add(other.hashes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_knows_each_version_and_no_order() {
        let of = |lsn, value| VersionSum::of(Key::Parameters, Lsn::new(lsn), value);
        let sum = |versions: &[VersionSum]| {
            let mut sum = VersionSum::default();
            versions.iter().for_each(|version| sum.add(*version));
            sum
        };
        let image = Value::Image(vec![1; 8192].into());
        let (zero, page) = (of(1, &Value::ZeroPage), of(2, &image));
        assert_eq!(sum(&[zero, page]), sum(&[page, zero]));
        let others = [
            sum(&[zero]),
            sum(&[zero, zero]),
            sum(&[of(2, &Value::ZeroPage), of(1, &image)]),
            sum(&[zero, of(2, &Value::Image(vec![2; 8192].into()))]),
            sum(&[zero, page, page]),
        ];
        assert!(!others.contains(&sum(&[zero, page])));
    }
}
