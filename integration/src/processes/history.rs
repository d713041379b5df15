//! What was published of a timeline, as it happened: the store keeps only the newest manifests.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use palimpsest_api::TimelineRef;
use palimpsest_manifest::{TimelineManifest, TimelineManifests, Versioned};
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{Lsn, WriterEpoch};
use tokio::task::JoinHandle;

/// Reads manifests as they are published, for as long as it lives.
#[derive(Debug)]
pub struct ManifestHistory {
    store: ObjectStore,
    timeline: TimelineRef,
    manifests: TimelineManifests,
    seen: Arc<Mutex<Seen>>,
    watching: JoinHandle<()>,
}

/// The beginning of a writer's generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakeOver {
    /// Its epoch.
    pub epoch: WriterEpoch,
    /// The LSN of the manifest that it took over.
    pub start: Lsn,
}

#[derive(Debug, Default)]
struct Seen {
    /// By number.
    published: BTreeMap<u64, TakeOver>,
    /// Layers that any of them refers to.
    named: BTreeSet<String>,
    /// Those of them that a wal-ingest wrote.
    written: BTreeSet<String>,
    wrong: Vec<String>,
}

/// Much less than a publish takes, which waits for several fsyncs.
const LOOK: Duration = Duration::from_millis(5);

impl ManifestHistory {
    /// Begins to watch a timeline whose first manifest is published already.
    ///
    /// # Errors
    /// If the store can't be opened.
    pub async fn watch(store: &Path, timeline: TimelineRef) -> Result<Self> {
        let store = ObjectStore::open(store).await?;
        let manifests = TimelineManifests::new(store.clone(), timeline.tenant, timeline.timeline);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (watched, noting) = (manifests.clone(), Arc::clone(&seen));
        let watching = tokio::spawn(async move {
            loop {
                match watched.newest().await {
                    Ok(Some(Versioned { number, state })) => lock(&noting).note(number, &state),
                    Ok(None) => lock(&noting).wrong.push("the manifest is gone".to_owned()),
                    Err(error) => {
                        let finding = format!("a manifest can't be read: {error:?}");
                        lock(&noting).wrong.push(finding);
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Ok(Self {
            store,
            timeline,
            manifests,
            seen,
            watching,
        })
    }

    /// The newest manifest.
    ///
    /// # Errors
    /// If it can't be read.
    pub async fn newest(&self) -> Result<TimelineManifest> {
        let newest = self.manifests.newest().await?;
        Ok(newest.context("there is no manifest")?.state)
    }

    /// Whether a manifest that was seen refers to a layer.
    pub fn has_named(&self, layer: &str) -> bool {
        lock(&self.seen).named.contains(layer)
    }

    /// How many layers of changes came from a wal-ingest so far.
    pub fn written(&self) -> usize {
        lock(&self.seen).written.len()
    }

    /// Layer files that the newest manifest does not refer to: first those that another one did, then
    /// those that none did.
    ///
    /// # Errors
    /// If the store can't be read.
    pub async fn unreferenced(&self) -> Result<(usize, usize)> {
        let manifest = self.newest().await?;
        let there = layer_names(&manifest);
        let stored = self.store.list(&self.layers_directory()).await?;
        let names = stored.iter().filter_map(StorePath::file_name);
        let left = names.filter(|name| !there.contains(name));
        let (before, never): (Vec<_>, Vec<_>) = left.partition(|name| self.has_named(name));
        Ok((before.len(), never.len()))
    }

    fn layers_directory(&self) -> StorePath {
        let TimelineRef { tenant, timeline } = self.timeline;
        StorePath::timeline(tenant, timeline).child("layers")
    }

    /// How many manifests were seen, and the writers that published them, the newest last.
    pub fn summary(&self) -> (usize, Vec<TakeOver>) {
        let seen = lock(&self.seen);
        let mut writers: Vec<_> = seen.published.values().copied().collect();
        writers.dedup_by_key(|writer| writer.epoch);
        (seen.published.len(), writers)
    }

    /// What was wrong with what was published since this was asked last.
    pub fn findings(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.seen).wrong)
    }

    /// What is wrong with the layers of the newest manifest: one that is not in the store, or that a
    /// writer made of changes from after it was superseded.
    ///
    /// # Errors
    /// If the store can't be read.
    pub async fn check_layers(&self) -> Result<Vec<String>> {
        let manifest = self.newest().await?;
        let stored = self.store.list(&self.layers_directory()).await?;
        let stored: BTreeSet<_> = stored.iter().filter_map(StorePath::file_name).collect();
        let (_, writers) = self.summary();
        let mut wrong = Vec::new();
        for layer in manifest.layers() {
            if !stored.contains(layer.name.as_str()) {
                wrong.push(format!("layer {} is not in the store", layer.name));
            }
            let mut later = writers.iter().filter(|writer| writer.epoch > layer.epoch);
            if let Some(by) = later.find(|writer| layer.up_to() > writer.start) {
                wrong.push(format!(
                    "layer {} of epoch {} goes beyond {}, where epoch {} began",
                    layer.name, layer.epoch, by.start, by.epoch
                ));
            }
        }
        Ok(wrong)
    }
}

impl Drop for ManifestHistory {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Seen {
    /// A number says the same for ever, and a later one is never by an earlier writer.
    fn note(&mut self, number: u64, manifest: &TimelineManifest) {
        let writer = TakeOver {
            epoch: manifest.writer_epoch,
            start: manifest.epoch_start,
        };
        let before = self.published.insert(number, writer);
        if before.is_none() {
            let layers = manifest.layers().iter();
            self.named.extend(layers.map(|layer| layer.name.clone()));
            let written = manifest.layers().iter().filter(|layer| layer.is_written());
            self.written.extend(written.map(|layer| layer.name.clone()));
        }
        if before.is_some_and(|before| before != writer) {
            self.wrong.push(format!("manifest {number} was replaced"));
        }
        let newest = self.published.last_key_value();
        if newest.is_some_and(|(newest, _)| *newest > number) {
            self.wrong
                .push(format!("manifest {number} became the newest again"));
        }
        let earlier = self.published.range(..number).next_back();
        if let Some((_, earlier)) = earlier.filter(|(_, earlier)| earlier.epoch > writer.epoch) {
            self.wrong.push(format!(
                "manifest {number} is by epoch {}, after one by epoch {}",
                writer.epoch, earlier.epoch
            ));
        }
    }
}

/// The names of its layers.
pub(crate) fn layer_names(manifest: &TimelineManifest) -> BTreeSet<&str> {
    let layers = manifest.layers().iter();
    layers.map(|layer| layer.name.as_str()).collect()
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
