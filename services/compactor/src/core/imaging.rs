//! Making images of keys that are worn, part by part.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, pin_mut, stream};
use palimpsest_api::TimelineRef;
use palimpsest_layer::delta_file::{DeltaLayerSummary, RecordSection};
use palimpsest_manifest::{
    LayerEntry, LayerKind, LsnSpan, ManifestError, TimelineManifest, Versioned,
};
use palimpsest_read::{Inventory, Part};
use palimpsest_types::{ByteCount, Lsn, WriterEpoch};

use super::{
    background::in_background,
    claim::Claim,
    error::CompactError,
    making::{Job, Reader, Workshop},
    plan::{Policy, choose},
    wear::{Worn, nearly},
};

/// Images that are made of one timeline, by one claim.
#[derive(Debug)]
pub(super) struct Imaging<'a> {
    pub(super) shop: &'a Workshop,
    pub(super) timeline: TimelineRef,
    pub(super) claim: &'a Claim,
    pub(super) job: &'a Job<'a>,
    pub(super) policy: &'a Policy,
}

/// What making images came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Images {
    /// How many were published.
    pub(super) count: usize,
    /// Their size.
    pub(super) size: ByteCount,
    /// Layers as they were written came up meanwhile, which are more pressing.
    pub(super) is_interrupted: bool,
}

/// Pages that are made together …
const PAGES: u32 = 64;
/// … and so many times that side by side.
const BATCHES: usize = 4;

impl Imaging<'_> {
    /// Makes images of keys that are worn, each published as soon as it is there, until there is
    /// something more pressing.
    ///
    /// # Errors
    /// If one can't be made or published.
    pub(super) async fn make(
        &self,
        mut newest: Versioned<TimelineManifest>,
        worn: &[Worn],
    ) -> Result<Images, CompactError> {
        let reader = Arc::new(self.shop.reader(self.timeline, &newest.state).await?);
        let inventory = Arc::new(reader.inventory(newest.state.lsn).await?);
        let parts_of = |worn: &Worn| (worn.since, inventory.parts(worn.keys, self.policy.target));
        let parts: Vec<_> = worn.iter().map(parts_of).collect();
        let count = parts.iter().map(|(_, parts)| parts.len()).sum();
        self.shop.activity().plan(count);
        let mut images = Images::default();
        for (since, part) in parts.into_iter().flat_map(|(since, parts)| {
            let each = parts.into_iter();
            each.map(move |part| (since, part))
        }) {
            if choose(newest.state.layers(), self.policy).is_some() {
                images.is_interrupted = true;
                break;
            }
            if self.is_worn(&reader, part, since).await? {
                let writer = newest_writer(&newest.state);
                let image = self.job.image(&reader, &inventory, part, writer).await?;
                self.publish(&mut newest, &image).await?;
                images.count += 1;
                images.size = ByteCount::new(images.size.get() + image.size.get());
                self.shop.activity().wrote(images.count);
            }
        }
        Ok(images)
    }

    /// Whether so many layers have changes of a part. By what the manifest says more of them may have, as
    /// they have keys on both sides of it.
    async fn is_worn(&self, reader: &Reader, part: Part, since: Lsn) -> Result<bool, CompactError> {
        let layers = reader.layers();
        let enough = nearly(self.policy.images);
        let lsns = LsnSpan {
            after: since,
            up_to: layers.lsn(),
        };
        Ok(layers.layers_with(part.keys, lsns, enough).await? >= enough)
    }

    async fn publish(
        &self,
        newest: &mut Versioned<TimelineManifest>,
        image: &LayerEntry,
    ) -> Result<(), CompactError> {
        self.shop.known().check(self.timeline)?;
        // From here on a manifest may name it, even if the answer is lost.
        let put = self.job.hand_over();
        let published = self.claim.add(newest, image).await;
        if let Err(CompactError::Manifest(ManifestError::Gone)) = published {
            put.remove(self.shop.store()).await;
        }
        published
    }
}

impl Job<'_> {
    /// Makes the image of a part and puts it into the store. In memory are the new file and some batches of
    /// pages.
    ///
    /// # Errors
    /// If a page can't be made, or the file not be written.
    async fn image(
        &self,
        reader: &Arc<Reader>,
        inventory: &Arc<Inventory>,
        part: Part,
        writer: WriterEpoch,
    ) -> Result<LayerEntry, CompactError> {
        let lsn = inventory.lsn();
        let (reader, inventory) = (Arc::clone(reader), Arc::clone(inventory));
        // Ends with this future, too: nobody would want what it makes.
        let token = self.scope().token().child_token();
        let guard = token.clone().drop_guard();
        let work = async move {
            // Cancel-safe: it only reads.
            let written = token.run_until_cancelled(write(&reader, &inventory, part, writer));
            written.await.unwrap_or(Err(CompactError::Stopped))
        };
        let (bytes, summary) = in_background(self.scope(), work).await??;
        drop(guard);
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
async fn write(
    reader: &Reader,
    inventory: &Inventory,
    part: Part,
    writer: WriterEpoch,
) -> Result<(Vec<u8>, DeltaLayerSummary), CompactError> {
    let lsn = inventory.lsn();
    let span = LsnSpan::only(lsn);
    let mut bytes = Vec::new();
    let records = RecordSection::begin(writer, span.after..span.up_to, &mut bytes)?;
    let mut section = records.end()?;
    let batches = stream::iter(inventory.batches(part.keys, PAGES));
    let made = batches.map(|batch| reader.image(batch, lsn));
    let made = made.buffered(BATCHES);
    pin_mut!(made);
    while let Some(versions) = made.try_next().await? {
        for (key, value) in versions {
            section.add(key, lsn, &value)?;
        }
    }
    let summary = section.finish()?;
    Ok((bytes, summary))
}

/// The generation of the newest changes: see [`Plan::writer`](super::plan::Plan::writer).
fn newest_writer(manifest: &TimelineManifest) -> WriterEpoch {
    let epochs = manifest.layers().iter().map(|layer| layer.epoch);
    epochs.max().unwrap_or(WriterEpoch::FIRST)
}
