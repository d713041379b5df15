use palimpsest_types::Fork;
use proptest::prelude::*;

use super::*;

fn rel(number: u32) -> RelTag {
    RelTag {
        spc: 1663,
        db: 5,
        rel: number,
        fork: Fork::Main,
    }
}

/// Forks of these sizes, with two segments of an SLRU area.
fn inventory(sizes: &[u32]) -> Inventory {
    let mut runs = vec![
        Run::SlruPages(SlruKind::Clog, 64..96),
        Run::SlruPages(SlruKind::Clog, 96..99),
    ];
    for (number, blocks) in (1..).zip(sizes) {
        let size = Value::RelSize(BlockNumber::new(*blocks));
        runs.push(Run::Value(Key::RelSize(rel(number)), size));
        runs.push(Run::Blocks(rel(number), *blocks));
    }
    Inventory::new(Lsn::new(100), runs)
}

fn keys(batch: Batch) -> Vec<Key> {
    match batch {
        Batch::Value(key, _) => vec![key],
        Batch::Blocks(rel, blocks) => {
            let blocks = blocks.into_iter();
            blocks.map(|block| Key::RelBlock(rel, block)).collect()
        }
        Batch::SlruPages(kind, pages) => {
            let pages = pages.into_iter();
            pages.map(|page| Key::SlruBlock(kind, page)).collect()
        }
    }
}

fn all_keys(inventory: &Inventory, span: KeySpan) -> Vec<Key> {
    inventory.batches(span, 7).flat_map(keys).collect()
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        (0..6u32).prop_map(|number| Key::RelSize(rel(number))),
        (0..6u32, 0..40u32)
            .prop_map(|(number, block)| Key::RelBlock(rel(number), BlockNumber::new(block))),
        (60..110u32).prop_map(|page| Key::SlruBlock(SlruKind::Clog, page)),
        Just(KeySpan::IMAGED[0].first),
        Just(KeySpan::IMAGED[0].last),
    ]
}

proptest! {
    #[test]
    fn p5_parts_have_each_key_of_their_span_once(
        sizes in prop::collection::vec(0..40u32, 0..5),
        ends in (any_key(), any_key()),
        target in 1..200_000u64,
    ) {
        let inventory = inventory(&sizes);
        let span = KeySpan { first: ends.0.min(ends.1), last: ends.0.max(ends.1) };
        let all = all_keys(&inventory, KeySpan::IMAGED[0]);
        let wanted: Vec<_> = all.iter().copied().filter(|key| span.contains(*key)).collect();
        prop_assert_eq!(&all_keys(&inventory, span), &wanted);

        let parts = inventory.parts(span, ByteCount::new(target));
        let first = parts.first().map(|part| part.keys.first);
        let last = parts.last().map(|part| part.keys.last);
        prop_assert_eq!((first, last), (Some(span.first), Some(span.last)));
        for pair in parts.windows(2) {
            prop_assert_eq!(pair[0].keys.last.next(), Some(pair[1].keys.first));
            // No more fitted in.
            prop_assert!(pair[0].size.get() + ENTRY + PAGE_SIZE as u64 > target);
        }
        let found: Vec<_> = parts.iter().flat_map(|part| all_keys(&inventory, part.keys)).collect();
        prop_assert_eq!(found, wanted);
        let largest = ENTRY + PAGE_SIZE as u64;
        prop_assert!(parts.iter().all(|part| part.size.get() <= target.max(largest)));
    }
}

#[test]
fn pages_come_in_batches_of_one_fork() {
    let inventory = inventory(&[3, 0]);
    let batches: Vec<_> = inventory.batches(KeySpan::IMAGED[0], 2).collect();
    let block = BlockNumber::new;
    let size =
        |number, blocks| Batch::Value(Key::RelSize(rel(number)), Value::RelSize(block(blocks)));
    assert_eq!(
        batches[..4],
        [
            size(1, 3),
            size(2, 0),
            Batch::Blocks(rel(1), vec![block(0), block(1)]),
            Batch::Blocks(rel(1), vec![block(2)]),
        ]
    );
    assert_eq!(batches.len(), 4 + 16 + 2);
}
