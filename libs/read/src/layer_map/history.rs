use std::{cmp::Ordering, mem, sync::Arc};

use palimpsest_manifest::LsnSpan;
use palimpsest_types::{Key, KeyRange, Lsn};

use super::Place;

/// Layers in the order of LSNs: a treap, whose shape follows from what is in it and whose nodes are
/// shared between clones.
#[derive(Debug, Clone)]
pub(super) struct History<L>(Option<Arc<Node<L>>>);

#[derive(Debug, Clone)]
struct Node<L> {
    place: Place,
    layer: L,
    /// Nowhere higher than above it. As if drawn at random, so that the tree is about balanced.
    priority: u64,
    /// Of all layers of this subtree.
    bounds: Bounds,
    older: History<L>,
    newer: History<L>,
}

/// No layer of a subtree reaches beyond.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    first: Key,
    last: Key,
    lsns: LsnSpan,
}

impl<L> Default for History<L> {
    fn default() -> Self {
        Self(None)
    }
}

impl<L> History<L> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The newest layer that may have versions of `key` at or below `before`.
    pub(super) fn newest(&self, key: Key, before: Lsn) -> Option<(&Place, &L)> {
        let node = self.0.as_deref().filter(|it| it.bounds.has(key, before))?;
        let newest = node.newer.newest(key, before);
        let own = || node.place.has(key, before);
        newest
            .or_else(|| own().then_some((&node.place, &node.layer)))
            .or_else(|| node.older.newest(key, before))
    }

    /// Layers that may have versions of keys of a range at these LSNs.
    pub(super) fn overlapping<'a>(
        &'a self,
        keys: &KeyRange,
        lsns: LsnSpan,
        to: &mut Vec<(&'a Place, &'a L)>,
    ) {
        let Some(node) = (self.0.as_deref()).filter(|it| it.bounds.overlap(keys, lsns)) else {
            return;
        };
        node.older.overlapping(keys, lsns, to);
        if node.place.overlaps(keys, lsns) {
            to.push((&node.place, &node.layer));
        }
        node.newer.overlapping(keys, lsns, to);
    }
}

impl<L: Clone> History<L> {
    pub(super) fn insert(&mut self, place: Place, layer: L) {
        self.insert_node(Node::new(place, layer));
    }

    fn insert_node(&mut self, mut new: Node<L>) {
        match &mut self.0 {
            Some(node) if node.priority >= new.priority => {
                let node = Arc::make_mut(node);
                if new.place.order() < node.place.order() {
                    node.older.insert_node(new);
                } else {
                    node.newer.insert_node(new);
                }
                node.rebound();
            }
            _ => {
                (new.older, new.newer) = mem::take(self).split(&new.place);
                new.rebound();
                self.0 = Some(Arc::new(new));
            }
        }
    }

    /// Removes the layer of this place; false if there is none.
    pub(super) fn remove(&mut self, place: &Place) -> bool {
        let Some(node) = &mut self.0 else {
            return false;
        };
        let node = Arc::make_mut(node);
        let removed = match place.order().cmp(&node.place.order()) {
            Ordering::Less => node.older.remove(place),
            Ordering::Greater => node.newer.remove(place),
            Ordering::Equal => {
                let (older, newer) = (mem::take(&mut node.older), mem::take(&mut node.newer));
                *self = Self::joined(older, newer);
                return true;
            }
        };
        node.rebound();
        removed
    }

    /// What is older than a place, and what is not.
    fn split(mut self, at: &Place) -> (Self, Self) {
        let Some(node) = self.0.as_mut().map(Arc::make_mut) else {
            return (Self(None), Self(None));
        };
        if node.place.order() < at.order() {
            let (older, newer) = mem::take(&mut node.newer).split(at);
            node.newer = older;
            node.rebound();
            (self, newer)
        } else {
            let (older, newer) = mem::take(&mut node.older).split(at);
            node.older = newer;
            node.rebound();
            (older, self)
        }
    }

    /// One history of two, of which all of one is older than all of the other.
    fn joined(mut older: Self, mut newer: Self) -> Self {
        match (&mut older.0, &mut newer.0) {
            (None, _) => newer,
            (_, None) => older,
            (Some(one), Some(other)) if one.priority >= other.priority => {
                let one = Arc::make_mut(one);
                one.newer = Self::joined(mem::take(&mut one.newer), newer);
                one.rebound();
                older
            }
            (Some(_), Some(other)) => {
                let other = Arc::make_mut(other);
                other.older = Self::joined(older, mem::take(&mut other.older));
                other.rebound();
                newer
            }
        }
    }
}

impl<L> Node<L> {
    fn new(place: Place, layer: L) -> Self {
        Self {
            place,
            layer,
            priority: mixed(place.number),
            bounds: Bounds::of(&place),
            older: History::default(),
            newer: History::default(),
        }
    }

    /// Says anew how far the subtree reaches, after a change below.
    fn rebound(&mut self) {
        self.bounds = [&self.older, &self.newer]
            .into_iter()
            .filter_map(|below| below.0.as_deref())
            .fold(Bounds::of(&self.place), |all, below| all.with(below.bounds));
    }
}

impl Bounds {
    fn of(place: &Place) -> Self {
        Self {
            first: place.keys.first,
            last: place.keys.last,
            lsns: place.lsns,
        }
    }

    fn with(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            lsns: LsnSpan {
                after: self.lsns.after.min(other.lsns.after),
                up_to: self.lsns.up_to.max(other.lsns.up_to),
            },
        }
    }

    fn has(&self, key: Key, before: Lsn) -> bool {
        self.first <= key && key <= self.last && self.lsns.after < before
    }

    fn overlap(&self, keys: &KeyRange, lsns: LsnSpan) -> bool {
        let have_keys = self.first < keys.end && keys.start <= self.last;
        have_keys && self.lsns.after < lsns.up_to && lsns.after < self.lsns.up_to
    }
}

/// Bits that look random, the same ones for the same number (splitmix64).
const fn mixed(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}
