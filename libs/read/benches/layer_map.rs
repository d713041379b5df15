//! How long it takes to find the next layer of a key, and to publish one, by the number of layers.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use palimpsest_manifest::{KeySpan, LsnSpan};
use palimpsest_read::{LayerMap, Place};
use palimpsest_types::{BlockNumber, Fork, Key, Lsn, RelTag};

const LAYERS: [u64; 4] = [100, 1_000, 10_000, 100_000];
/// Key ranges that compacted layers are cut into.
const RANGES: u64 = 100;
const BLOCKS_OF_RANGE: u64 = 10_000;
const LSNS: u64 = 1_000;

fn key(block: u64) -> Key {
    let rel = RelTag {
        spc: 1663,
        db: 5,
        rel: 16384,
        fork: Fork::Main,
    };
    Key::RelBlock(rel, BlockNumber::new(block as u32))
}

fn place(number: u64, blocks: (u64, u64), generation: u64) -> Place {
    Place {
        keys: KeySpan {
            first: key(blocks.0),
            last: key(blocks.1),
        },
        lsns: LsnSpan {
            after: Lsn::new(generation * LSNS),
            up_to: Lsn::new((generation + 1) * LSNS),
        },
        number,
    }
}

/// As written from WAL: each of all keys, after the one before.
fn as_written(number: u64) -> Place {
    place(number, (0, RANGES * BLOCKS_OF_RANGE - 1), number)
}

/// As after compactions: each of a range of keys, many of the same LSNs.
fn compacted(number: u64) -> Place {
    let first = number % RANGES * BLOCKS_OF_RANGE;
    place(
        number,
        (first, first + BLOCKS_OF_RANGE - 1),
        number / RANGES,
    )
}

fn map_of(layers: u64, place: fn(u64) -> Place) -> LayerMap<u64> {
    let mut map = LayerMap::default();
    for number in 0..layers {
        map.insert(place(number), number);
    }
    map
}

/// Keys and LSNs in no order.
fn questions(newest: Lsn) -> Vec<(Key, Lsn)> {
    let mut state = 7u64;
    let mut next = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut question = || {
        let key = key(next(RANGES * BLOCKS_OF_RANGE));
        (key, Lsn::new(1 + next(newest.get())))
    };
    (0..1024).map(|_| question()).collect()
}

fn layer_map(criterion: &mut Criterion) {
    let shapes = [
        ("as written", as_written as fn(u64) -> Place),
        ("compacted", compacted),
    ];
    for (shape, place) in shapes {
        let mut group = criterion.benchmark_group(format!("layer map, {shape}"));
        for layers in LAYERS {
            let map = map_of(layers, place);
            let questions = questions(place(layers - 1).lsns.up_to);
            let mut asked = questions.iter().cycle();
            group.bench_function(BenchmarkId::new("next layer", layers), |bencher| {
                bencher.iter(|| {
                    let question = asked.next();
                    black_box(question.and_then(|(key, lsn)| map.newest(*key, *lsn)))
                });
            });
            group.bench_function(BenchmarkId::new("publish one", layers), |bencher| {
                bencher.iter(|| {
                    let mut newer = map.clone();
                    newer.insert(place(layers), layers);
                    black_box(newer)
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, layer_map);
criterion_main!(benches);
