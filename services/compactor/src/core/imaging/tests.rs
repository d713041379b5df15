//! Images of relations of one page each, some of which nobody can make.

use palimpsest_layer::{LogRecord, OpenLayer};
use palimpsest_types::{BlockNumber, Fork, Key, PAGE_SIZE, RelTag};
use palimpsest_wal::{Change, RawRecord, Value};

use super::super::{
    Compactor,
    fixture::{Fixture, START, TIMELINE, policy, runtime},
    looks::Again,
};
use super::*;

const LAYERS: u64 = 2;
/// A page, or a few sizes.
const PART: u64 = PAGE_SIZE as u64;

fn rel(number: u32) -> RelTag {
    RelTag {
        spc: 1663,
        db: 5,
        rel: number,
        fork: Fork::Main,
    }
}

fn page_of(number: u32) -> Key {
    Key::RelBlock(rel(number), BlockNumber::ZERO)
}

/// Layers of changes of all relations, put together. Of those up to `broken` a page begins with a change of
/// what never was.
async fn worn(relations: u32, broken: u32) -> (Fixture, Compactor) {
    let fixture = Fixture::new().await;
    for number in 0..LAYERS {
        let (start, end) = (START + 20 * number, START + 20 * (number + 1));
        let mut layer = OpenLayer::new(WriterEpoch::FIRST, Lsn::new(start));
        let lsn = Lsn::new(start + 10);
        let page = |number: u32| match number <= broken {
            true => Value::Record {
                will_init: false,
                record: RawRecord {
                    start_lsn: Lsn::new(start),
                    end_lsn: lsn,
                    bytes: vec![1; 24].into(),
                },
            },
            false => Value::Image(vec![number as u8; PAGE_SIZE].into()),
        };
        let changes = (1..=relations).flat_map(|number| {
            let size = Value::RelSize(BlockNumber::new(1));
            [
                (Key::RelSize(rel(number)), size),
                (page_of(number), page(number)),
            ]
        });
        let change = |(key, value)| Change { key, value };
        let changes = changes.map(change).collect();
        layer.append(LogRecord { lsn, changes }).unwrap();
        layer.advance(Lsn::new(end));
        fixture.add(WriterEpoch::FIRST, &layer).await;
    }
    let compactor = fixture.compactor(Policy {
        images: 1,
        ..policy(2, 8, PART)
    });
    let done = compactor.compact_once(TIMELINE).await.unwrap();
    assert!(done.is_some(), "layers from WAL are not imaged");
    (fixture, compactor)
}

/// Of which pages there are images.
async fn imaged(fixture: &Fixture, relations: u32) -> Vec<u32> {
    let manifest = fixture.newest().await.state;
    let layers = manifest.layers().iter();
    let images: Vec<_> = layers
        .filter(|layer| matches!(layer.kind, LayerKind::Image(_)))
        .collect();
    let has = |number: &u32| {
        let mut images = images.iter();
        images.any(|image| image.keys.contains(page_of(*number)))
    };
    (1..=relations).filter(has).collect()
}

#[test]
fn p8_pages_that_nobody_can_make_hold_up_no_others() {
    runtime().block_on(async {
        // More of them, and before the others, than may fail one after the other.
        let (fixture, compactor) = worn(7, 5).await;
        for _ in 0..3 {
            // What comes of it is what is imaged.
            let _ = compactor.image_once(TIMELINE).await;
        }
        assert_eq!(imaged(&fixture, 7).await, [6, 7]);
        let claim = fixture.newest().await.state.compactor_claim;
        assert!(claim.is_none(), "others may go on");
    });
}

#[test]
fn who_asks_waits_for_one_image_and_one_is_made() {
    runtime().block_on(async {
        let (fixture, compactor) = worn(4, 0).await;
        let asking = compactor.asked().enter();
        let images = || async { imaged(&fixture, 4).await.len() };
        // Sizes come first.
        for expected in [0, 1, 2] {
            let again = compactor.image_once(TIMELINE).await.unwrap();
            assert_eq!(again, Again::Now);
            assert_eq!(images().await, expected);
        }
        drop(asking);
        let again = compactor.image_once(TIMELINE).await.unwrap();
        assert_eq!(again, Again::WhenChanged);
        assert_eq!(images().await, 4);
    });
}
