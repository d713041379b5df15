//! Which keys need images: those whose reads visit many layers. Pure.

use std::collections::{BTreeMap, BTreeSet};

use palimpsest_manifest::{KeySpan, LayerEntry, LayerKind};
use palimpsest_types::{Key, Lsn};

/// Keys that lie next to each other and have the newest image at the same LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worn {
    /// The keys.
    pub keys: KeySpan,
    /// Where the newest image of them is; zero if there is none.
    pub since: Lsn,
    /// Compacted layers that may have changes of one of them since then, at most.
    pub layers: usize,
}

/// What begins or ends at a key.
#[derive(Debug, Default)]
struct Boundary {
    begin: Vec<usize>,
    end: Vec<usize>,
}

/// A layer of changes or an image, as far as it counts here.
#[derive(Debug, Clone, Copy)]
struct Counted {
    keys: KeySpan,
    up_to: Lsn,
    is_image: bool,
}

/// Layers that have the keys which are looked at, by number, in the order of where they end.
#[derive(Debug, Default)]
struct Open {
    deltas: BTreeSet<(Lsn, usize)>,
    images: BTreeSet<(Lsn, usize)>,
}

/// The keys of which an image is due: since the last one there are changes of them in `threshold`
/// compacted layers. Neighbours that have nearly as many are taken along, so that images are not cut up
/// by where layers happen to begin.
///
/// Takes O(n log n) for n layers that are not as written from WAL, if no more than some of them are above
/// each other.
pub fn worn(layers: &[LayerEntry], threshold: usize) -> Vec<Worn> {
    let layers: Vec<_> = layers.iter().filter_map(Counted::of).collect();
    let spans = KeySpan::IMAGED.iter();
    let stretches = spans.flat_map(|span| stretches(&layers, *span));
    let stretches: Vec<_> = stretches
        .filter(|it| it.layers >= nearly(threshold))
        .collect();
    let together = stretches.chunk_by(|one, next| {
        one.since == next.since && one.keys.last.next() == Some(next.keys.first)
    });
    together
        .filter_map(joined)
        .filter(|worn| worn.layers >= threshold.max(1))
        .collect()
}

/// Layers above an image are counted up to here: more are no reason for more.
const MOST_COUNTED: usize = 256;

/// As many layers as neighbours of what is worn have that are taken along.
pub(super) fn nearly(threshold: usize) -> usize {
    threshold.saturating_sub(1).max(1)
}

/// Where the newest compacted layer ends: until that changes, no keys wear out.
pub fn compacted_up_to(layers: &[LayerEntry]) -> Lsn {
    let deltas = layers.iter().filter_map(Counted::of);
    let deltas = deltas.filter(|layer| !layer.is_image);
    deltas.map(|layer| layer.up_to).max().unwrap_or(Lsn::ZERO)
}

impl Counted {
    fn of(layer: &LayerEntry) -> Option<Self> {
        let is_image = match layer.kind {
            LayerKind::Image(_) => true,
            LayerKind::Delta(_) if layer.level > 0 => false,
            // Those as they were written are compacted first.
            LayerKind::Delta(_) | LayerKind::Base(_) => return None,
        };
        Some(Self {
            keys: layer.keys,
            up_to: layer.up_to(),
            is_image,
        })
    }
}

impl Open {
    fn of(&mut self, layer: &Counted) -> &mut BTreeSet<(Lsn, usize)> {
        match layer.is_image {
            true => &mut self.images,
            false => &mut self.deltas,
        }
    }
}

/// A span, cut up wherever the layers of its keys change.
fn stretches(layers: &[Counted], span: KeySpan) -> Vec<Worn> {
    let mut boundaries: BTreeMap<Key, Boundary> = BTreeMap::new();
    for (number, layer) in layers.iter().enumerate() {
        let Some(keys) = layer.keys.and(&span) else {
            continue;
        };
        boundaries.entry(keys.first).or_default().begin.push(number);
        if let Some(behind) = keys.last.next().filter(|behind| *behind <= span.last) {
            boundaries.entry(behind).or_default().end.push(number);
        }
    }
    let ends = boundaries.keys().skip(1).map(|next| next.previous());
    let ends: Vec<_> = ends.chain([Some(span.last)]).collect();
    let mut open = Open::default();
    let mut stretches = Vec::with_capacity(ends.len());
    for ((first, boundary), last) in boundaries.into_iter().zip(ends) {
        let of = |number: usize| layers.get(number).map(|layer| (layer, number));
        for (layer, number) in boundary.end.into_iter().filter_map(of) {
            open.of(layer).remove(&(layer.up_to, number));
        }
        for (layer, number) in boundary.begin.into_iter().filter_map(of) {
            open.of(layer).insert((layer.up_to, number));
        }
        let since = open.images.last().map_or(Lsn::ZERO, |(lsn, _)| *lsn);
        let newer = open.deltas.range((since, usize::MAX)..);
        let newer = newer.take(MOST_COUNTED).count();
        if let Some(last) = last {
            stretches.push(Worn {
                keys: KeySpan { first, last },
                since,
                layers: newer,
            });
        }
    }
    stretches
}

/// Neighbours as one.
fn joined(stretches: &[Worn]) -> Option<Worn> {
    let (first, last) = (stretches.first()?, stretches.last()?);
    Some(Worn {
        keys: KeySpan {
            first: first.keys.first,
            last: last.keys.last,
        },
        since: first.since,
        layers: stretches.iter().map(|it| it.layers).max()?,
    })
}

#[cfg(test)]
mod tests;
