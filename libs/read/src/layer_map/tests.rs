use palimpsest_types::{BlockNumber, Fork, RelTag, SlruKind};
use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;

/// What the map should do, by looking at every layer.
#[derive(Debug, Clone, Default)]
struct Naive(Vec<Place>);

impl Naive {
    fn newest(&self, key: Key, before: Lsn) -> Option<Place> {
        let has = |place: &&Place| place.keys.contains(key) && place.lsns.after < before;
        let found = self.0.iter().filter(has);
        found.max_by_key(|place| place.order()).copied()
    }

    fn overlapping(&self, keys: &KeyRange, lsns: LsnSpan) -> Vec<Place> {
        let overlaps = |place: &&Place| {
            place.keys.first < keys.end
                && place.keys.last >= keys.start
                && place.lsns.after < lsns.up_to
                && place.lsns.up_to > lsns.after
        };
        let mut found: Vec<_> = self.0.iter().filter(overlaps).copied().collect();
        found.sort_by_key(Place::order);
        found
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert(KeySpan, LsnSpan),
    Remove(Index),
    /// From here on a clone must stay as it is.
    Keep,
}

/// Few enough that layers meet, and of all parts of the key space.
fn any_key() -> impl Strategy<Value = Key> {
    let rel = |rel, fork| RelTag {
        spc: 1663,
        db: 5,
        rel,
        fork,
    };
    prop_oneof![
        1 => (0..3u32).prop_map(move |at| Key::RelSize(rel(at, Fork::Main))),
        6 => (0..3u32, 0..20u32, any::<bool>()).prop_map(move |(at, block, main)| {
            let fork = if main { Fork::Main } else { Fork::VisibilityMap };
            Key::RelBlock(rel(at, fork), BlockNumber::new(block))
        }),
        1 => any::<u32>().prop_map(|page| Key::SlruBlock(SlruKind::Clog, page)),
        1 => Just(Key::Parameters),
        1 => (0..3u32).prop_map(|db| Key::Database { spc: 1663, db }),
    ]
}

fn any_span() -> impl Strategy<Value = LsnSpan> {
    (0..100u64, 1..30u64).prop_map(|(after, len)| LsnSpan {
        after: Lsn::new(after),
        up_to: Lsn::new(after + len),
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let keys = (any_key(), any_key()).prop_map(|(one, other)| KeySpan {
        first: one.min(other),
        last: one.max(other),
    });
    prop_oneof![
        6 => (keys, any_span()).prop_map(|(keys, lsns)| Step::Insert(keys, lsns)),
        3 => any::<Index>().prop_map(Step::Remove),
        1 => Just(Step::Keep),
    ]
}

/// Asks both the same.
fn compare(map: &LayerMap<u64>, naive: &Naive, keys: &[Key]) {
    assert_eq!(map.len(), naive.0.len());
    for key in keys {
        for before in (0..=135).step_by(5).map(Lsn::new) {
            let found = map.newest(*key, before);
            assert_eq!(found.map(|(place, _)| *place), naive.newest(*key, before));
            assert!(found.is_none_or(|(place, layer)| place.number == *layer));
        }
    }
    for range in keys.windows(2) {
        let range = range[0].min(range[1])..range[0].max(range[1]);
        for (after, up_to) in [(0, 0), (0, 40), (0, 200), (30, 50), (60, 200)] {
            let (after, up_to) = (Lsn::new(after), Lsn::new(up_to));
            let lsns = LsnSpan { after, up_to };
            let found = map.overlapping(&range, lsns);
            let found: Vec<_> = found.into_iter().map(|(place, _)| *place).collect();
            assert_eq!(found, naive.overlapping(&range, lsns));
        }
    }
}

proptest! {
    #[test]
    fn answers_are_those_of_a_linear_search(
        steps in vec(any_step(), 0..80),
        keys in vec(any_key(), 2..20),
    ) {
        let mut map = LayerMap::default();
        let mut naive = Naive::default();
        let mut kept = Vec::new();
        for (number, step) in (0..).zip(steps) {
            match step {
                Step::Insert(keys, lsns) => {
                    let place = Place { keys, lsns, number };
                    map.insert(place, number);
                    naive.0.push(place);
                    let absent = Place { number: number + 1000, ..place };
                    prop_assert!(!map.remove(&absent));
                }
                Step::Remove(at) if !naive.0.is_empty() => {
                    let place = naive.0.swap_remove(at.index(naive.0.len()));
                    prop_assert!(map.remove(&place));
                    prop_assert!(!map.remove(&place));
                }
                Step::Remove(_) => {}
                Step::Keep => kept.push((map.clone(), naive.clone())),
            }
        }
        kept.push((map, naive));
        for (map, naive) in kept {
            compare(&map, &naive, &keys);
        }
    }
}

#[test]
fn a_read_goes_down_through_the_layers_that_have_its_key() {
    let key = |block| {
        let rel = RelTag {
            spc: 1663,
            db: 5,
            rel: 16384,
            fork: Fork::Main,
        };
        Key::RelBlock(rel, BlockNumber::new(block))
    };
    let mut map = LayerMap::default();
    let places = [
        ((0, 99), (0, 10)),
        ((0, 49), (10, 30)),
        ((50, 99), (10, 30)),
        ((0, 99), (30, 40)),
        ((20, 29), (40, 50)),
    ];
    for (number, ((first, last), (after, up_to))) in (0..).zip(places) {
        let keys = KeySpan {
            first: key(first),
            last: key(last),
        };
        let lsns = LsnSpan {
            after: Lsn::new(after),
            up_to: Lsn::new(up_to),
        };
        map.insert(Place { keys, lsns, number }, number);
    }
    let visited = |block, mut before: Lsn| {
        let mut visited = Vec::new();
        while let Some((place, layer)) = map.newest(key(block), before) {
            visited.push(*layer);
            before = place.lsns.after;
        }
        visited
    };
    assert_eq!(visited(25, Lsn::new(99)), [4, 3, 1, 0]);
    assert_eq!(visited(60, Lsn::new(99)), [3, 2, 0]);
    assert_eq!(visited(60, Lsn::new(30)), [2, 0]);
    assert_eq!(visited(60, Lsn::new(10)), [0]);
    assert_eq!(visited(100, Lsn::new(99)), [0u64; 0]);
}
