//! All keys of a range at once: from their newest images up, not from the base, so that the time it takes does
//! not grow with history.

use std::{collections::BTreeSet, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use palimpsest_manifest::LsnSpan;
use palimpsest_types::{KeyRange, Lsn};

use super::Layers;
use crate::{
    delta::{DeltaFile, Newest, merge},
    error::ReadError,
    layer_map::LayerMap,
    parts::READS,
    room::Room,
    versions::Listing,
};

/// Keys that lie next to each other and have the same newest image, if any.
#[derive(Debug)]
struct Stretch<'a> {
    keys: KeyRange,
    image: Option<&'a Arc<DeltaFile>>,
}

/// The newest versions of keys at or before `up_to`.
pub(super) async fn newest_in(
    layers: &Layers,
    keys: &KeyRange,
    up_to: Lsn,
) -> Result<Listing, ReadError> {
    let room = Room::new();
    let mut listing = Listing::default();
    for stretch in stretches(&layers.images.map, keys, up_to) {
        if let Some(at) = stretch.image_lsn() {
            listing.images.push(stretch.keys.clone(), at);
        }
        // No other stretch has these keys.
        let newest = newest_of(layers, &room, &stretch, up_to).await?;
        listing.versions.extend(newest);
    }
    Ok(listing)
}

/// What the image has, or else the base, and what came after it.
async fn newest_of(
    layers: &Layers,
    room: &Room,
    stretch: &Stretch<'_>,
    up_to: Lsn,
) -> Result<Newest, ReadError> {
    let (keys, base) = (&stretch.keys, layers.base.lsn());
    let mut newest = match stretch.image {
        Some(image) => {
            let image = Arc::clone(image);
            image
                .newest_in(&layers.files, room, keys.clone(), up_to)
                .await?
        }
        None if base <= up_to => {
            let values = layers.base.range(&layers.files, keys.clone()).await?;
            let values = values.into_iter();
            values.map(|(key, value)| (key, (base, value))).collect()
        }
        None => Newest::new(),
    };
    let after = stretch.image_lsn().unwrap_or(Lsn::ZERO);
    let span = LsnSpan { after, up_to };
    if span.is_empty() {
        return Ok(newest);
    }
    let changes = layers.deltas.map.overlapping(keys, span);
    let reads = changes.into_iter().map(|(_, file)| {
        let file = Arc::clone(file);
        file.newest_in(&layers.files, room, keys.clone(), up_to)
    });
    let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(READS);
    while let Some(mut found) = reads.try_next().await? {
        // A layer may reach below the image, where it has what the image does not have any more.
        found.retain(|_, (at, _)| *at > after);
        merge(&mut newest, found);
    }
    Ok(newest)
}

impl Stretch<'_> {
    fn image_lsn(&self) -> Option<Lsn> {
        self.image.map(|image| image.place().lsns.up_to)
    }
}

/// A range, cut where the newest image at or before `up_to` is another.
fn stretches<'a>(
    images: &'a LayerMap<Arc<DeltaFile>>,
    keys: &KeyRange,
    up_to: Lsn,
) -> Vec<Stretch<'a>> {
    if keys.is_empty() {
        return Vec::new();
    }
    let after = Lsn::ZERO;
    let mut starts = BTreeSet::from([keys.start]);
    for (place, _) in images.overlapping(keys, LsnSpan { after, up_to }) {
        let behind = place.keys.last.next();
        let cuts = [Some(place.keys.first), behind].into_iter().flatten();
        starts.extend(cuts.filter(|cut| keys.contains(cut)));
    }
    let ends: Vec<_> = starts.iter().skip(1).copied().chain([keys.end]).collect();
    let mut stretches: Vec<Stretch<'_>> = Vec::new();
    for (start, end) in starts.into_iter().zip(ends) {
        let image = images.newest(start, up_to).map(|(_, image)| image);
        match stretches.last_mut() {
            Some(last) if last.image.map(Arc::as_ptr) == image.map(Arc::as_ptr) => {
                last.keys.end = end;
            }
            _ => stretches.push(Stretch {
                keys: start..end,
                image,
            }),
        }
    }
    stretches
}
