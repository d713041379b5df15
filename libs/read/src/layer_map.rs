//! Which layer has the next older versions of a key.
//!
//! A layer is a rectangle: keys by LSNs. To read a key is to ask again and again for the newest
//! rectangle that has the key and begins below an LSN ([`LayerMap::newest`]), going down from one to
//! the next. The map is an interval tree over the bits of keys:
//!
//! ```text
//!         keys 000 … 111: layers whose first key begins with 0 and whose last one with 1
//!              /                                      \
//!    keys 0…: layers within it that have         keys 1…: …
//!    keys on both sides of its middle
//! ```
//!
//! So all layers of a branch have the keys at its middle, and of a key to the left of it a layer has
//! it exactly if its first key is not behind; likewise to the right. Within a branch, layers stand in
//! the order of LSNs in a balanced tree that knows of each subtree the lowest first key, the highest
//! last key and the lowest and highest LSN ([`History`]), so that what has the key is found without a look at
//! what has not.
//!
//! A lookup is O(d log n): d branches on the way to the key, which are about log n and never more
//! than the 145 prefixes of a key. That holds if no two layers have versions of one key at one LSN,
//! which is what manifests see to: going down from the older end of a layer finds no other that reaches
//! above it. Insertion and removal are as cheap and copy what they change, no more: a clone shares the
//! rest, so who reads keeps the map it has.
//!
//! The map knows a layer's first and last key, not which between it has. Layers as they are written
//! from WAL all reach from the lowest keys to the highest, so until they are compacted a read looks
//! into each of them; layers of few keys are passed over.

mod history;

use std::sync::Arc;

use palimpsest_manifest::{KeySpan, LsnSpan};
use palimpsest_types::{Key, KeyRange, Lsn};

use history::History;

/// Where a layer is.
///
/// An image of keys at an LSN is the span of that LSN alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The keys that it may have.
    pub keys: KeySpan,
    /// The LSNs of its versions.
    pub lsns: LsnSpan,
    /// Tells it from others of the same keys and LSNs.
    pub number: u64,
}

/// Layers of type `L`, by keys and LSNs. Clones share what they have in common.
#[derive(Debug, Clone)]
pub struct LayerMap<L> {
    root: Slot<L>,
    len: usize,
}

type Slot<L> = Option<Arc<Branch<L>>>;
type KeyBytes = [u8; Key::LEN];

/// Keys that begin with the same bits.
#[derive(Debug, Clone)]
struct Branch<L> {
    prefix: Prefix,
    /// Layers that have keys of both halves, or the one key that the prefix is.
    here: History<L>,
    /// Layers within one half.
    halves: [Slot<L>; 2],
}

/// The first bits of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Prefix {
    bytes: KeyBytes,
    bits: usize,
}

const KEY_BITS: usize = Key::LEN * 8;

impl Place {
    /// Newest last.
    pub(crate) fn order(&self) -> (Lsn, Lsn, u64) {
        (self.lsns.up_to, self.lsns.after, self.number)
    }

    fn has(&self, key: Key, before: Lsn) -> bool {
        self.keys.contains(key) && self.lsns.after < before
    }

    fn overlaps(&self, keys: &KeyRange, lsns: LsnSpan) -> bool {
        let has_keys = self.keys.first < keys.end && keys.start <= self.keys.last;
        has_keys && self.lsns.after < lsns.up_to && lsns.after < self.lsns.up_to
    }
}

impl<L> Default for LayerMap<L> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

impl<L: Clone> LayerMap<L> {
    /// Number of layers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a layer. No other in the map may have the same place.
    pub fn insert(&mut self, place: Place, layer: L) {
        insert(&mut self.root, Prefix::of(&place.keys), place, layer);
        self.len += 1;
    }

    /// Removes the layer of this place; false if there is none.
    pub fn remove(&mut self, place: &Place) -> bool {
        let removed = remove(&mut self.root, &Prefix::of(&place.keys), place);
        self.len -= usize::from(removed);
        removed
    }

    /// Of the layers that may have versions of `key` below `before` or at it, the newest: that which
    /// reaches to the highest LSN.
    pub fn newest(&self, key: Key, before: Lsn) -> Option<(&Place, &L)> {
        let bytes = key.to_bytes();
        let mut newest: Option<(&Place, &L)> = None;
        let mut slot = &self.root;
        while let Some(branch) = slot
            && branch.prefix.is_of(&bytes)
        {
            let here = branch.here.newest(key, before);
            newest = match (newest, here) {
                (Some(found), Some(here)) if here.0.order() < found.0.order() => Some(found),
                (found, here) => here.or(found),
            };
            match branch.prefix.half_of(&bytes) {
                Some(half) => slot = &branch.halves[half],
                None => break,
            }
        }
        newest
    }

    /// All layers that may have versions of keys of a range at these LSNs, oldest first.
    pub fn overlapping(&self, keys: &KeyRange, lsns: LsnSpan) -> Vec<(&Place, &L)> {
        let mut found = Vec::new();
        let ends = [keys.start, keys.end].map(Key::to_bytes);
        collect(&self.root, (keys, &ends), lsns, &mut found);
        found.sort_unstable_by_key(|(place, _)| place.order());
        found
    }
}

impl<L> Branch<L> {
    fn new(prefix: Prefix) -> Self {
        Self {
            prefix,
            here: History::default(),
            halves: [None, None],
        }
    }
}

impl Prefix {
    /// What the keys of a span have in common.
    fn of(keys: &KeySpan) -> Self {
        let bytes = keys.first.to_bytes();
        let bits = common_bits(&bytes, &keys.last.to_bytes());
        Self { bytes, bits }
    }

    fn is_of(&self, key: &KeyBytes) -> bool {
        common_bits(&self.bytes, key) >= self.bits
    }

    /// In which half of the keys of this prefix a key is; `None` if the prefix is a whole key.
    fn half_of(&self, key: &KeyBytes) -> Option<usize> {
        let byte = key.get(self.bits / 8)?;
        Some(usize::from(byte >> (7 - self.bits % 8) & 1))
    }

    /// What two have in common.
    fn common(&self, other: &Self) -> Self {
        let bits = common_bits(&self.bytes, &other.bytes);
        Self {
            bytes: self.bytes,
            bits: bits.min(self.bits).min(other.bits),
        }
    }

    /// Whether any key of this prefix is in the range of which these are the ends.
    fn overlaps(&self, [start, end]: &[KeyBytes; 2]) -> bool {
        // A key that does not begin with these bits is before or behind all that do.
        let is_behind = |key: &KeyBytes| !self.is_of(key) && key < &self.bytes;
        let is_before = |key: &KeyBytes| !self.is_of(key) && key > &self.bytes;
        !is_before(start) && !is_behind(end)
    }
}

fn common_bits(one: &KeyBytes, other: &KeyBytes) -> usize {
    let mut pairs = one.iter().zip(other).enumerate();
    let differing = pairs.find(|(_, (one, other))| one != other);
    differing.map_or(KEY_BITS, |(at, (one, other))| {
        at * 8 + (one ^ other).leading_zeros() as usize
    })
}

fn insert<L: Clone>(slot: &mut Slot<L>, home: Prefix, place: Place, layer: L) {
    let prefix = slot.as_ref().map_or(home, |branch| branch.prefix);
    let common = prefix.common(&home);
    if slot.is_none() || common.bits < prefix.bits {
        // What is here goes below a branch for what both have in common.
        let mut above = Branch::new(common);
        if let Some(half) = common.half_of(&prefix.bytes) {
            above.halves[half] = slot.take();
        }
        *slot = Some(Arc::new(above));
    }
    let Some(branch) = slot.as_mut().map(Arc::make_mut) else {
        return;
    };
    match common.half_of(&home.bytes) {
        Some(half) if common.bits < home.bits => {
            insert(&mut branch.halves[half], home, place, layer);
        }
        _ => branch.here.insert(place, layer),
    }
}

fn remove<L: Clone>(slot: &mut Slot<L>, home: &Prefix, place: &Place) -> bool {
    let Some(branch) = slot else {
        return false;
    };
    if branch.prefix.common(home).bits < branch.prefix.bits {
        return false;
    }
    let branch = Arc::make_mut(branch);
    let removed = match branch.prefix.half_of(&home.bytes) {
        Some(half) if branch.prefix.bits < home.bits => {
            remove(&mut branch.halves[half], home, place)
        }
        _ => branch.here.remove(place),
    };
    // Without layers of its own a branch is for telling two halves apart.
    if branch.here.is_empty()
        && let [half, None] | [None, half] = &mut branch.halves
    {
        *slot = half.take();
    }
    removed
}

fn collect<'a, L>(
    slot: &'a Slot<L>,
    (keys, ends): (&KeyRange, &[KeyBytes; 2]),
    lsns: LsnSpan,
    to: &mut Vec<(&'a Place, &'a L)>,
) {
    let Some(branch) = slot.as_ref().filter(|it| it.prefix.overlaps(ends)) else {
        return;
    };
    branch.here.overlapping(keys, lsns, to);
    for half in &branch.halves {
        collect(half, (keys, ends), lsns, to);
    }
}

#[cfg(test)]
mod tests;
