//! Making images of keys that are worn, part by part.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, pin_mut, stream};
use palimpsest_api::TimelineRef;
use palimpsest_layer::delta_file::{DeltaLayerSummary, RecordSection};
use palimpsest_manifest::{LayerEntry, LayerKind, LsnSpan, TimelineManifest, Versioned};
use palimpsest_read::{Inventory, Part, TimelineReader};
use palimpsest_redo::Engine;
use palimpsest_store::{Body, BodyWriter};
use palimpsest_types::{ByteCount, Lsn, WriterEpoch};
use tokio::time::Instant;

use super::{
    asked::Asked,
    background::{in_background, rest_in_between},
    checks::{Check, Checks},
    claim::Claim,
    error::CompactError,
    making::{Job, Workshop},
    plan::Policy,
    readers::{Engines, Reader, Readers},
    setbacks::Setbacks,
    wear::{Worn, compacted_up_to, nearly},
};

/// Images that are made of one timeline, by one claim.
#[derive(Debug)]
pub(super) struct Imaging<'a, R> {
    pub(super) shop: &'a Workshop,
    pub(super) readers: &'a Readers<R>,
    pub(super) checks: &'a Checks,
    pub(super) setbacks: &'a Setbacks,
    pub(super) asked: &'a Asked,
    pub(super) timeline: TimelineRef,
    pub(super) claim: &'a Claim,
    pub(super) job: &'a Job<'a>,
    pub(super) policy: &'a Policy,
}

/// What making images came to.
#[derive(Debug, Default)]
pub(super) struct Images {
    /// How many were published.
    pub(super) count: usize,
    /// Their size.
    pub(super) size: ByteCount,
    /// Why not all was looked at, if so.
    pub(super) interrupted: Option<Interruption>,
    /// The first that went wrong. Images of other parts may have been made after it.
    pub(super) failed: Option<CompactError>,
}

/// Why it was not gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interruption {
    /// Layers are to be put together first.
    Pressing,
    /// It is somebody else's turn.
    Turn,
}

/// Pages that are made together. One batch after the other, though what makes the next could be looked for while a
/// redo-worker makes this one: so this takes one CPU at a time, and on a machine of two the other is free for whoever
/// wakes up to read.
const PAGES: u32 = 64;
/// Other timelines wait no longer than this and for the image that is made; who asks for a compaction only
/// for that image.
const TURN: Duration = Duration::from_secs(30);
/// How old the manifest may be by which nothing is more pressing.
const FRESH: Duration = Duration::from_secs(2);
/// Parts that may fail one after the other before it is given up: one has a page that nobody can make, all of
/// them have no redo-worker.
const FAILURES: usize = 3;

impl<R: Engines> Imaging<'_, R> {
    /// Makes images of keys that are worn, the most worn first, each published as soon as it is there,
    /// until there is something more pressing.
    pub(super) async fn make(&self, newest: Versioned<TimelineManifest>, worn: &[Worn]) -> Images {
        let mut images = Images::default();
        if let Err(error) = self.make_into(&mut images, newest, worn).await {
            images.failed.get_or_insert(error);
        }
        images
    }

    async fn make_into(
        &self,
        images: &mut Images,
        mut newest: Versioned<TimelineManifest>,
        worn: &[Worn],
    ) -> Result<(), CompactError> {
        let keep = self.claim.keep(self.shop.known(), newest.clone());
        pin_mut!(keep);
        // Cancel-safe, here and below: until it is published, what was uploaded is known to the job.
        let (reader, inventory) = tokio::select! {
            opened = self.open(&newest.state) => opened?,
            error = &mut keep => return Err(error),
        };
        let parts = self.parts(&inventory, worn);
        self.shop.activity().plan(parts.len());
        // So that something comes of each time that it was found out what there is.
        let (begun, mut tried) = (Instant::now(), false);
        let (mut looked, mut failures) = (None::<Instant>, 0);
        for (part, since) in parts {
            if looked.is_none_or(|looked| looked.elapsed() > FRESH) {
                newest = self.claim.newest().await?;
                looked = Some(Instant::now());
                if self.is_pressing(&newest.state) {
                    images.interrupted = Some(Interruption::Pressing);
                    return Ok(());
                }
            }
            if tried && (begun.elapsed() > TURN || self.asked.any()) {
                images.interrupted = Some(Interruption::Turn);
                return Ok(());
            }
            let made = tokio::select! {
                made = self.made(&reader, &inventory, (part, since), &newest.state) => made,
                error = &mut keep => Err(error),
            };
            tried |= !matches!(made, Ok(None));
            match made {
                Ok(None) => {}
                Ok(Some(image)) => {
                    self.publish(&mut newest, &image).await?;
                    self.checks.note_made(self.timeline, part.keys);
                    failures = 0;
                    images.count += 1;
                    images.size = ByteCount::new(images.size.get() + image.size.get());
                    self.shop.activity().wrote(images.count);
                }
                Err(error) => {
                    self.job.undo().await;
                    // What goes while it is read looks damaged.
                    self.shop.known().check(self.timeline)?;
                    let now = Instant::now();
                    self.checks.note_failed(self.timeline, part.keys, now);
                    failures += 1;
                    if error.is_of_another() || failures == FAILURES {
                        return Err(error);
                    }
                    images.failed.get_or_insert(error);
                }
            }
        }
        Ok(())
    }

    async fn open(
        &self,
        manifest: &TimelineManifest,
    ) -> Result<(Arc<Reader<R>>, Arc<Inventory>), CompactError> {
        let opening = self.readers.of(self.shop, self.timeline, manifest);
        let reader = Arc::new(in_background(self.shop.scope(), opening).await??);
        self.readers.keep(self.timeline, reader.layers());
        let (reads, lsn) = (Arc::clone(&reader), manifest.lsn);
        // Sizes of all forks are read.
        let inventory = async move { reads.inventory(lsn).await };
        let inventory = in_background(self.shop.scope(), inventory).await??;
        Ok((reader, Arc::new(inventory)))
    }

    /// Whether layers are to be put together, which comes first.
    fn is_pressing(&self, manifest: &TimelineManifest) -> bool {
        let (layers, now) = (manifest.layers(), Instant::now());
        let plan = self
            .setbacks
            .choose(self.timeline, layers, self.policy, now);
        plan.is_some()
    }

    /// Parts of what is worn, each with where its newest image is. Those that are most worn come first, so
    /// that all have their turn even if there is never time for all; those that failed come last, in turn.
    fn parts(&self, inventory: &Inventory, worn: &[Worn]) -> Vec<(Part, Lsn)> {
        let mut worn = worn.to_vec();
        worn.sort_by_key(|worn| (Reverse(worn.layers), worn.since));
        let parts = worn.iter().flat_map(|worn| {
            let parts = inventory.parts(worn.keys, self.policy.target);
            parts.into_iter().map(|part| (part, worn.since))
        });
        let mut parts: Vec<_> = parts.collect();
        parts.sort_by_key(|(part, _)| self.checks.failed(self.timeline, part.keys));
        parts
    }

    /// The image of a part, if that is worn.
    async fn made(
        &self,
        reader: &Arc<Reader<R>>,
        inventory: &Arc<Inventory>,
        (part, since): (Part, Lsn),
        manifest: &TimelineManifest,
    ) -> Result<Option<LayerEntry>, CompactError> {
        let up_to = compacted_up_to(manifest.layers());
        if !self.is_worn(reader, part, (since, up_to)).await? {
            return Ok(None);
        }
        let writer = newest_writer(manifest);
        let image = self.job.image(reader, inventory, part, writer).await;
        image.map(Some)
    }

    /// Whether so many compacted layers have changes of a part since its image. By what the manifest says
    /// more of them may have, as they have keys on both sides of it.
    async fn is_worn(
        &self,
        reader: &Reader<R>,
        part: Part,
        (since, up_to): (Lsn, Lsn),
    ) -> Result<bool, CompactError> {
        let enough = nearly(self.policy.images);
        let known = self.checks.get(self.timeline, part.keys, since);
        let lsns = LsnSpan {
            after: known.up_to,
            up_to,
        };
        let more = enough.saturating_sub(known.layers);
        let layers = match more > 0 && lsns.after < lsns.up_to {
            true => {
                let layers = reader.layers();
                let counting = async move { layers.layers_with(part.keys, lsns, more).await };
                in_background(self.shop.scope(), counting).await??
            }
            false => 0,
        };
        let check = Check {
            since,
            up_to,
            layers: known.layers + layers,
        };
        let is_worn = check.layers >= enough;
        if !is_worn {
            self.checks.note(self.timeline, part.keys, check);
        }
        Ok(is_worn)
    }

    async fn publish(
        &self,
        newest: &mut Versioned<TimelineManifest>,
        image: &LayerEntry,
    ) -> Result<(), CompactError> {
        if let Err(error) = self.shop.known().check(self.timeline) {
            self.job.undo().await;
            return Err(error);
        }
        // From here on a manifest may name it, even if the answer is lost.
        let put = self.job.hand_over();
        let published = self.claim.add(newest, image).await;
        if let Err(error) = &published
            && error.leaves_nothing_published()
        {
            put.remove(self.shop.store()).await;
        }
        published
    }
}

impl Job<'_> {
    /// Makes the image of a part and puts it into the store. In memory are the new file and a batch of
    /// pages.
    ///
    /// # Errors
    /// If a page can't be made, or the file not be written.
    async fn image<E: Engine + 'static>(
        &self,
        reader: &Arc<TimelineReader<E>>,
        inventory: &Arc<Inventory>,
        part: Part,
        writer: WriterEpoch,
    ) -> Result<LayerEntry, CompactError> {
        let lsn = inventory.lsn();
        let (reader, inventory) = (Arc::clone(reader), Arc::clone(inventory));
        let work = async move { write(&reader, &inventory, part, writer).await };
        let (bytes, summary) = in_background(self.scope(), work).await??;
        let (at, epoch, random) = (lsn.get(), self.epoch(), rand::random::<u64>());
        let image = LayerEntry {
            name: format!("image-{at:016X}-c{epoch}-{random:016x}"),
            kind: LayerKind::Image(lsn),
            keys: part.keys,
            size: summary.size,
            entries: summary.entries,
            level: 1,
            epoch: writer,
        };
        self.put(&image, bytes).await?;
        Ok(image)
    }
}

/// The file of an image.
async fn write<E: Engine>(
    reader: &TimelineReader<E>,
    inventory: &Inventory,
    part: Part,
    writer: WriterEpoch,
) -> Result<(Body, DeltaLayerSummary), CompactError> {
    let lsn = inventory.lsn();
    let span = LsnSpan::only(lsn);
    let mut bytes = BodyWriter::new();
    let records = RecordSection::begin(writer, span.after..span.up_to, &mut bytes)?;
    let mut section = records.end()?;
    let batches = stream::iter(inventory.batches(part.keys, PAGES));
    let made = batches.then(|batch| reader.image(batch, lsn));
    pin_mut!(made);
    while let Some(versions) = made.try_next().await? {
        for (key, value) in versions {
            section.add(key, lsn, &value)?;
            rest_in_between();
        }
    }
    let summary = section.finish()?;
    Ok((bytes.finish(), summary))
}

/// The generation of the newest changes: see [`Plan::writer`](super::plan::Plan::writer).
fn newest_writer(manifest: &TimelineManifest) -> WriterEpoch {
    let epochs = manifest.layers().iter().map(|layer| layer.epoch);
    epochs.max().unwrap_or(WriterEpoch::FIRST)
}

#[cfg(test)]
mod tests;
