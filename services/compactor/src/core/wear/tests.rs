use palimpsest_manifest::LsnSpan;
use palimpsest_types::{ByteCount, WriterEpoch};
use proptest::prelude::*;

use super::{super::fixture::key, *};

fn span(first: u32, last: u32) -> KeySpan {
    KeySpan {
        first: key(first),
        last: key(last),
    }
}

fn layer(keys: KeySpan, kind: LayerKind, level: u8) -> LayerEntry {
    LayerEntry {
        name: String::new(),
        kind,
        keys,
        size: ByteCount::mib(1),
        entries: 1,
        level,
        epoch: WriterEpoch::FIRST,
    }
}

/// A compacted layer.
fn delta(first: u32, last: u32, up_to: u64) -> LayerEntry {
    let lsns = LsnSpan {
        after: Lsn::new(up_to - 10),
        up_to: Lsn::new(up_to),
    };
    layer(span(first, last), LayerKind::Delta(lsns), 1)
}

fn image(first: u32, last: u32, lsn: u64) -> LayerEntry {
    layer(span(first, last), LayerKind::Image(Lsn::new(lsn)), 1)
}

fn found(layers: &[LayerEntry]) -> Vec<(KeySpan, u64, usize)> {
    let worn = worn(layers, 3).into_iter();
    worn.map(|worn| (worn.keys, worn.since.get(), worn.layers))
        .collect()
}

#[test]
fn keys_wear_out_by_compacted_layers_since_their_image() {
    let mut layers = vec![delta(0, 99, 20), delta(0, 99, 30)];
    assert_eq!(found(&layers), []);
    layers.push(delta(10, 49, 40));
    // Those beside it have nearly as many.
    assert_eq!(found(&layers), [(span(0, 99), 0, 3)]);
    layers.push(image(0, 39, 40));
    assert_eq!(found(&layers), [(span(40, 99), 0, 3)]);
    layers.push(image(40, 99, 40));
    assert_eq!(found(&layers), []);
    let newer = [50, 60, 70].map(|up_to| delta(20, 69, up_to));
    layers.extend(newer);
    assert_eq!(found(&layers), [(span(20, 69), 40, 3)]);
    assert_eq!(compacted_up_to(&layers), Lsn::new(70));
}

#[test]
fn what_is_cold_or_not_compacted_is_left_alone() {
    let hot = [20, 30, 40].map(|up_to| delta(0, 9, up_to));
    let mut layers = hot.to_vec();
    layers.push(delta(20, 29, 20));
    assert_eq!(found(&layers), [(span(0, 9), 0, 3)]);
    let mut fresh = hot.to_vec();
    for layer in &mut fresh {
        layer.level = 0;
    }
    assert_eq!(found(&fresh), []);
    // Of these keys there are no images.
    let others = KeySpan {
        first: Key::Parameters,
        last: Key::Origin(9),
    };
    let mut of_others = hot.to_vec();
    for layer in &mut of_others {
        layer.keys = others;
    }
    assert_eq!(found(&of_others), []);
}

#[test]
fn what_has_images_at_different_lsns_stays_apart() {
    let mut layers = vec![image(0, 9, 20), image(10, 19, 30)];
    layers.extend([40, 50, 60].map(|up_to| delta(0, 19, up_to)));
    assert_eq!(found(&layers), [(span(0, 9), 20, 3), (span(10, 19), 30, 3)]);
}

proptest! {
    #[test]
    fn p5_no_key_has_more_layers_than_it_should_unless_it_is_worn(
        rectangles in prop::collection::vec(
            (0..30u32, 0..10u32, 1..20u64, prop::bool::weighted(0.2)), 0..30,
        ),
        threshold in 1..5usize,
    ) {
        let rectangle = |(first, more, at, is_image): (u32, u32, u64, bool)| match is_image {
            true => image(first, first + more, 10 * at),
            false => delta(first, first + more, 10 * at),
        };
        let layers: Vec<_> = rectangles.into_iter().map(rectangle).collect();
        let worn = worn(&layers, threshold);
        for block in 0..45 {
            let of = |image: bool| {
                let layers = layers.iter().filter(move |layer| {
                    layer.keys.contains(key(block)) && image == matches!(layer.kind, LayerKind::Image(_))
                });
                layers.map(LayerEntry::up_to)
            };
            let since = of(true).max().unwrap_or(Lsn::ZERO);
            let newer = of(false).filter(|up_to| *up_to > since).count();
            let has = worn.iter().filter(|worn| worn.keys.contains(key(block)));
            let has: Vec<_> = has.collect();
            prop_assert!(has.len() <= 1);
            prop_assert!(newer < threshold || has.len() == 1, "{block}: {newer}");
            prop_assert!(has.is_empty() || newer >= nearly(threshold), "{block}: {newer}");
            prop_assert!(has.iter().all(|worn| worn.since == since));
        }
    }
}
