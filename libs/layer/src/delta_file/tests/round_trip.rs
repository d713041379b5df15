use palimpsest_types::ByteCount;
use proptest::{prelude::*, sample::select};

use super::{
    sample::{EPOCH, START, any_layer, block, layer_of, noise, pool, record_at, small_layer},
    *,
};
use crate::{DeltaLayer, Visit, image::KeyRangeInclusive};

fn versions(layer: &OpenLayer, key: Key, up_to: Lsn) -> Vec<(Lsn, Value)> {
    let mut found = Vec::new();
    layer.versions(key, up_to, &mut |lsn, value| {
        found.push((lsn, value.clone()));
        Visit::Continue
    });
    found
}

fn range(layer: &OpenLayer, keys: KeyRange) -> Vec<(Key, Lsn, Value)> {
    let inside = layer.entries().filter(|(key, ..)| keys.contains(key));
    inside
        .map(|(key, lsn, value)| (key, lsn, value.clone()))
        .collect()
}

fn shared(block: &EntryBlock, key: Key) -> Vec<RecordPlace> {
    let place = |(_, stored)| match stored {
        Stored::Shared { at, .. } => Some(at),
        Stored::Value(_) => None,
    };
    block.versions(key, Lsn::MAX).filter_map(place).collect()
}

proptest! {
    #[test]
    fn a_file_reads_as_the_layer_that_it_was(layer in any_layer()) {
        let file = File::open(written(&layer)).unwrap();
        prop_assert_eq!(file.index.epoch(), layer.epoch());
        prop_assert_eq!(file.index.lsns(), layer.lsns());
        prop_assert_eq!(file.index.entries(), layer.entries().count() as u64);
        for key in pool().into_iter().chain([block(99)]) {
            let expected = versions(&layer, key, Lsn::MAX);
            prop_assert_eq!(file.versions(key, Lsn::MAX).unwrap(), expected);
        }
        let all: Vec<_> = layer.entries().map(|(k, l, v)| (k, l, v.clone())).collect();
        prop_assert_eq!(file.everything().unwrap(), all);
    }

    #[test]
    fn nothing_from_after_the_lsn_is_shown(
        layer in any_layer(),
        key in select(pool()),
        up_to in 900u64..10_000,
        from in select(pool()),
        to in select(pool()),
    ) {
        let file = File::open(written(&layer)).unwrap();
        let lsns = layer.entries().map(|(_, lsn, _)| lsn.get());
        let edges: Vec<u64> = lsns.take(5).flat_map(|lsn| [lsn - 1, lsn, lsn + 1]).collect();
        for up_to in edges.into_iter().chain([up_to, 0, START.get()]) {
            let up_to = Lsn::new(up_to);
            prop_assert_eq!(file.versions(key, up_to).unwrap(), versions(&layer, key, up_to));
        }
        prop_assert_eq!(file.range(from..to).unwrap(), range(&layer, from..to));
    }
}

#[test]
fn a_layer_without_changes_is_a_file_without_blocks() {
    let mut layer = layer_of([]);
    layer.advance(Lsn::new(5000));
    let mut bytes = Vec::new();
    let summary = write_delta_layer(&layer, &mut bytes).unwrap();
    assert_eq!(
        summary.size,
        ByteCount::new((HEADER_LEN + Footer::LEN) as u64)
    );
    assert_eq!((summary.keys, summary.entries), (None, 0));
    let file = File::open(bytes.into()).unwrap();
    assert_eq!(file.index.lsns(), START..Lsn::new(5000));
    assert_eq!(file.index.keys(), None);
    assert_eq!(file.versions(block(1), Lsn::MAX).unwrap(), []);
    assert_eq!(file.everything().unwrap(), []);
}

#[test]
fn the_summary_and_the_index_know_the_keys() {
    let mut bytes = Vec::new();
    let summary = write_delta_layer(&small_layer(), &mut bytes).unwrap();
    let file = File::open(bytes.into()).unwrap();
    assert_eq!(file.index.epoch(), EPOCH);
    assert_eq!(summary.keys, file.index.keys());
    let (first, last) = (pool()[6], pool()[10]);
    assert_eq!(summary.keys, Some(KeyRangeInclusive { first, last }));
}

#[test]
fn a_record_of_many_pages_is_stored_once_and_read_without_copies() {
    let record = record_at(1000, noise(1, 20_000));
    let value = Value::Record {
        will_init: false,
        record: record.clone(),
    };
    let changes = (0..10).map(|number| (block(number), value.clone()));
    let file = File::open(written(&layer_of([(1020, changes.collect())]))).unwrap();
    assert!(file.bytes.len() < 21_000, "{}", file.bytes.len());

    let entries = file.entry_block(BlockNo::new(1)).unwrap();
    let places = [shared(&entries, block(0)), shared(&entries, block(9))].concat();
    assert_eq!(places.len(), 2);
    let no = BlockNo::new(0);
    let records = RecordBlock::decode(&file.index, no, file.stored(no).unwrap()).unwrap();
    let [a, b] = [places[0], places[1]].map(|place| records.record(place).unwrap());
    assert_eq!((&a, &b), (&record, &record));
    assert_eq!(a.bytes.as_ptr(), b.bytes.as_ptr());
}

#[test]
fn a_record_of_one_page_stands_with_the_page() {
    let versions = (1u64..50).map(|at| {
        let record = record_at(1000 + 8 * at, noise(at, 100));
        let will_init = false;
        let value = Value::Record { will_init, record };
        (1008 + 8 * at, vec![(block(at as u32 % 3), value)])
    });
    let file = File::open(written(&layer_of(versions))).unwrap();
    let blocks: Vec<_> = file.index.blocks_of(block(1), Lsn::MAX).collect();
    assert_eq!(blocks, [BlockNo::new(0)], "no other block is needed");
    assert_eq!(file.versions(block(1), Lsn::MAX).unwrap().len(), 17);
}

#[test]
fn a_long_chain_is_read_from_its_newest_block_on() {
    let versions = (0u64..40).map(|at| {
        let page = Value::Image(noise(at, 8192));
        (1001 + at, vec![(block(1), page.clone()), (block(2), page)])
    });
    let file = File::open(written(&layer_of(versions))).unwrap();
    let of = |up_to| -> Vec<_> {
        let blocks = file.index.blocks_of(block(1), Lsn::new(up_to));
        blocks.map(BlockNo::get).collect()
    };
    let all = of(u64::MAX);
    assert!(all.len() >= 13, "three pages fit into a block: {all:?}");
    assert!(all.is_sorted_by(|newer, older| newer > older));
    assert_eq!(of(1001), [0]);
    assert_eq!(of(1000), [0; 0]);
    let newest = file.entry_block(BlockNo::new(all[0])).unwrap();
    let (lsn, _) = newest.versions(block(1), Lsn::MAX).next().unwrap();
    assert_eq!(lsn, Lsn::new(1040));
}

#[test]
fn a_huge_record_has_a_block_of_its_own() {
    let huge = Value::Record {
        will_init: true,
        record: record_at(1008, noise(5, 1 << 20)),
    };
    let size = Value::Dropped;
    let layer = layer_of([
        (1008, vec![(block(1), size.clone())]),
        (1016, vec![(block(1), huge.clone())]),
        (1024, vec![(block(1), size)]),
    ]);
    let file = File::open(written(&layer)).unwrap();
    let blocks: Vec<_> = file.index.blocks_of(block(1), Lsn::MAX).collect();
    assert_eq!(blocks, [2, 1, 0].map(BlockNo::new));
    let found = file.versions(block(1), Lsn::new(1016)).unwrap();
    assert_eq!(found.first(), Some(&(Lsn::new(1016), huge)));
    let small = file.entry_block(BlockNo::new(2)).unwrap();
    assert!(small.size() < ByteCount::kib(4), "{}", small.size());
}
