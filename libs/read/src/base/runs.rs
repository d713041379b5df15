//! Which keys there are, as runs of neighbours.

use palimpsest_types::{BlockNumber, Key, KeyRange};

/// Keys, each with where its version stands.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<Run>);

/// Neighbouring pages, of which a layer's index has neighbouring entries; or another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    first: Key,
    len: u32,
    spot: Spot,
}

/// An entry of the index of a layer, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) layer: u32,
    pub(super) entry: u32,
}

impl Run {
    /// A run of one key.
    pub(super) fn new(first: Key, spot: Spot) -> Self {
        Self {
            first,
            len: 1,
            spot,
        }
    }

    /// Takes in the key of an entry of its layer, if that is the next.
    pub(super) fn extend(&mut self, key: Key, entry: u32) -> bool {
        let next_entry = self.spot.entry.checked_add(self.len);
        let is_next = nth_after(self.first, self.len) == Some(key) && next_entry == Some(entry);
        self.len += u32::from(is_next);
        is_next
    }

    /// The number of a key in the run.
    fn position(&self, key: Key) -> Option<u32> {
        distance(self.first, key).filter(|at| *at < self.len)
    }

    fn last(&self) -> Key {
        nth_after(self.first, self.len - 1).unwrap_or(self.first)
    }
}

impl Runs {
    /// All of these runs.
    ///
    /// # Errors
    /// Where a run begins that has a key which another has, too.
    pub(super) fn new(mut runs: Vec<Run>) -> Result<Self, Spot> {
        runs.sort_unstable_by_key(|run| run.first);
        let overlap = |pair: &[Run]| match pair {
            [one, next] if one.last() >= next.first => Some(next.spot),
            _ => None,
        };
        match runs.windows(2).find_map(overlap) {
            Some(spot) => Err(spot),
            None => Ok(Self(runs)),
        }
    }

    /// Where the version of a key stands, if there is one.
    pub(super) fn find(&self, key: Key) -> Option<Spot> {
        let behind = self.0.partition_point(|run| run.first <= key);
        let run = self.0.get(behind.checked_sub(1)?)?;
        let at = run.position(key)?;
        Some(Spot {
            layer: run.spot.layer,
            entry: run.spot.entry + at,
        })
    }

    /// The keys of a range, in order.
    pub(super) fn keys_in(&self, keys: &KeyRange) -> impl Iterator<Item = Key> {
        let from = self.0.partition_point(|run| run.last() < keys.start);
        let to = self.0.partition_point(|run| run.first < keys.end);
        let runs = self.0.get(from..to).unwrap_or_default();
        let all = runs
            .iter()
            .flat_map(|run| (0..run.len).filter_map(|n| nth_after(run.first, n)));
        all.filter(|key| keys.contains(key))
    }
}

/// The `n`th page after another in its fork or area; of other kinds of keys there are no neighbours.
fn nth_after(key: Key, n: u32) -> Option<Key> {
    match key {
        Key::RelBlock(rel, block) => {
            let block = block.get().checked_add(n)?;
            Some(Key::RelBlock(rel, BlockNumber::new(block)))
        }
        Key::SlruBlock(kind, page) => Some(Key::SlruBlock(kind, page.checked_add(n)?)),
        _ => (n == 0).then_some(key),
    }
}

/// How many pages a key is after another.
fn distance(from: Key, to: Key) -> Option<u32> {
    match (from, to) {
        (Key::RelBlock(rel, from), Key::RelBlock(other, to)) if rel == other => {
            to.get().checked_sub(from.get())
        }
        (Key::SlruBlock(kind, from), Key::SlruBlock(other, to)) if kind == other => {
            to.checked_sub(from)
        }
        _ => (from == to).then_some(0),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use palimpsest_types::{Fork, RelTag, SlruKind};
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    fn any_key() -> impl Strategy<Value = Key> {
        prop_oneof![
            8 => (0..3u32, 0..30u32).prop_map(|(rel, block)| {
                let fork = Fork::Main;
                let rel = RelTag { spc: 1663, db: 5, rel, fork };
                Key::RelBlock(rel, BlockNumber::new(block))
            }),
            3 => (0..20u32).prop_map(|page| Key::SlruBlock(SlruKind::Clog, page)),
            1 => (0..3u32).prop_map(Key::TwoPhase),
            1 => Just(Key::Parameters),
        ]
    }

    /// The runs of layers whose indexes have these keys.
    fn runs_of(layers: &[Vec<Key>]) -> Vec<Run> {
        let mut all = Vec::new();
        for (layer, keys) in (0..).zip(layers) {
            let mut runs: Vec<Run> = Vec::new();
            for (entry, key) in (0..).zip(keys) {
                if !runs.last_mut().is_some_and(|run| run.extend(*key, entry)) {
                    runs.push(Run::new(*key, Spot { layer, entry }));
                }
            }
            all.extend(runs);
        }
        all
    }

    proptest! {
        #[test]
        fn every_key_is_found_where_it_is_and_no_other(
            keys in btree_set((any_key(), 0..3usize), 0..60),
            others in prop::collection::vec(any_key(), 20),
        ) {
            // Each key in one layer.
            let keys: BTreeMap<Key, usize> = keys.into_iter().collect();
            let mut layers = vec![Vec::new(); 3];
            let mut expected = BTreeMap::new();
            for (key, layer) in keys {
                let entry = layers[layer].len() as u32;
                expected.insert(key, Spot { layer: layer as u32, entry });
                layers[layer].push(key);
            }
            let runs = Runs::new(runs_of(&layers)).unwrap();
            for key in expected.keys().chain(&others) {
                prop_assert_eq!(runs.find(*key), expected.get(key).copied());
            }
            for pair in others.windows(2) {
                let range = pair[0].min(pair[1])..pair[0].max(pair[1]);
                let found: Vec<_> = runs.keys_in(&range).collect();
                let inside: Vec<_> = expected.range(range).map(|(key, _)| *key).collect();
                prop_assert_eq!(found, inside);
            }
        }
    }

    #[test]
    fn a_run_takes_neighbours_and_no_key_is_in_two() {
        let page = |page| Key::SlruBlock(SlruKind::Clog, page);
        let layers = [vec![page(1), page(2), page(4)], vec![page(3)]];
        let runs = runs_of(&layers);
        assert_eq!(
            runs.iter().map(|run| run.len).collect::<Vec<_>>(),
            [2, 1, 1]
        );
        assert!(Runs::new(runs).is_ok());
        let twice = runs_of(&[layers[0].clone(), vec![page(2)]]);
        let spot = Spot { layer: 1, entry: 0 };
        assert_eq!(Runs::new(twice).err(), Some(spot));
    }
}
