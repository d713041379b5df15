//! Layers to write: one small by hand, and arbitrary ones.

use std::collections::BTreeMap;

use palimpsest_types::{BlockNumber, Fork, Oid, RelTag, SlruKind, WriterEpoch};
use palimpsest_wal::{Change, PagePatches, TransactionEnd};
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::LogRecord;

pub(super) const EPOCH: WriterEpoch = WriterEpoch::new(7);
pub(super) const START: Lsn = Lsn::new(1000);

pub(super) const SMALLEST_KEY: Key = Key::RelSize(RelTag {
    spc: 0,
    db: 0,
    rel: 0,
    fork: Fork::Main,
});
/// No key of these layers is as large.
pub(super) const LARGEST_KEY: Key = Key::Database {
    spc: Oid::MAX,
    db: Oid::MAX,
};

/// What a change does, before it is known at which record.
#[derive(Debug, Clone)]
enum Kind {
    Image(u64),
    ZeroPage,
    Record { will_init: bool },
    OtherRecord,
    TruncateVisibilityMap(u32),
    TransactionsEnded(bool, Vec<u32>),
    Patched(u16, Vec<u8>),
    RelSize(u32),
    File(Vec<u8>),
    CopyOf(Oid, Oid),
    Dropped,
}

/// A record, and what it changes.
#[derive(Debug, Clone)]
struct Step {
    distance: u64,
    record: Bytes,
    changes: BTreeMap<Key, Kind>,
}

pub(super) fn rel(rel: Oid) -> RelTag {
    RelTag {
        spc: 1663,
        db: 5,
        rel,
        fork: Fork::Main,
    }
}

pub(super) fn block(number: u32) -> Key {
    Key::RelBlock(rel(16384), BlockNumber::new(number))
}

pub(super) fn record_at(start: u64, bytes: Bytes) -> RawRecord {
    RawRecord {
        start_lsn: Lsn::new(start),
        end_lsn: Lsn::new(start + 8),
        bytes,
    }
}

/// Bytes that do not compress.
pub(super) fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn layer_of(records: impl IntoIterator<Item = (u64, Vec<(Key, Value)>)>) -> OpenLayer {
    let mut layer = OpenLayer::new(EPOCH, START);
    for (lsn, changes) in records {
        let change = |(key, value)| Change { key, value };
        let changes = changes.into_iter().map(change).collect();
        let lsn = Lsn::new(lsn);
        layer.append(LogRecord { lsn, changes }).unwrap();
    }
    layer
}

/// Every kind of value, a record of one page and one of two.
pub(super) fn small_layer() -> OpenLayer {
    let record = |start, text: &'static [u8], will_init| Value::Record {
        will_init,
        record: record_at(start, Bytes::from_static(text)),
    };
    let ended = Value::TransactionsEnded {
        end: TransactionEnd::Aborted,
        xids: [700, 701].into(),
    };
    let heap_blocks = BlockNumber::new(3);
    let size = Key::RelSize(rel(16384));
    let clog = Key::SlruBlock(SlruKind::Clog, 0);
    let map = Key::RelMap { spc: 1663, db: 5 };
    let split = b"a split changes two pages";
    layer_of([
        (1008, vec![(block(1), record(1000, b"insert", true))]),
        (
            1016,
            vec![
                (block(1), record(1008, split, false)),
                (block(2), record(1008, split, true)),
                (size, Value::RelSize(BlockNumber::new(3))),
            ],
        ),
        (1024, vec![(clog, Value::ZeroPage)]),
        (1032, vec![(clog, ended)]),
        (1040, vec![(map, Value::File(Bytes::from_static(b"map")))]),
        (1048, vec![(block(1), Value::Image(vec![9; 64].into()))]),
        (
            1056,
            vec![(block(2), Value::TruncateVisibilityMap { heap_blocks })],
        ),
        (1064, vec![(size, Value::Dropped)]),
        (1072, vec![(clog, patched(3, &[1, 2]))]),
    ])
}

fn patched(offset: u16, bytes: &[u8]) -> Value {
    let len = (bytes.len() as u16).to_le_bytes();
    let encoded = [&offset.to_le_bytes(), &len, bytes].concat();
    Value::Patched(PagePatches::decode(encoded.into()).unwrap())
}

/// Keys that arbitrary layers have.
pub(super) fn pool() -> Vec<Key> {
    let blocks = (0..6).map(block);
    let others = [
        Key::RelSize(rel(16384)),
        Key::RelSize(rel(16385)),
        Key::RelBlock(rel(16385), BlockNumber::new(u32::MAX)),
        Key::SlruBlock(SlruKind::Clog, 0),
        Key::RelMap { spc: 1663, db: 5 },
        Key::TwoPhase(700),
        Key::SlruSegment(SlruKind::CommitTs, 1),
        Key::Database { spc: 1663, db: 5 },
    ];
    blocks.chain(others).collect()
}

/// Layers with all kinds of values, blocks of all sizes, and some with no changes.
pub(super) fn any_layer() -> impl Strategy<Value = OpenLayer> {
    (vec(any_step(), 0..40), 0u64..100).prop_map(|(steps, idle)| {
        let mut end = START.get();
        let mut layer = layer_of(steps.into_iter().map(|step| {
            let start = end;
            end += step.distance;
            let record = record_at(start, step.record);
            let change = |(key, kind): (Key, Kind)| (key, kind.value(&record));
            (end, step.changes.into_iter().map(change).collect())
        }));
        layer.advance(Lsn::new(end + idle));
        layer
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let changes = proptest::collection::btree_map(select(pool()), any_kind(), 0..5);
    (1u64..200, any_record(), changes).prop_map(|(distance, record, changes)| Step {
        distance,
        record,
        changes,
    })
}

/// Short records, and some that are larger than a block should be.
fn any_record() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        8 => vec(any::<u8>(), 0..300).prop_map(Bytes::from),
        2 => (any::<u64>(), 0usize..20_000).prop_map(|(seed, len)| noise(seed, len)),
        1 => (any::<u64>(), 32_700usize..50_000).prop_map(|(seed, len)| noise(seed, len)),
        1 => (0usize..100_000).prop_map(|len| vec![0; len].into()),
    ]
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        2 => any::<u64>().prop_map(Kind::Image),
        1 => Just(Kind::ZeroPage),
        6 => any::<bool>().prop_map(|will_init| Kind::Record { will_init }),
        1 => Just(Kind::OtherRecord),
        1 => any::<u32>().prop_map(Kind::TruncateVisibilityMap),
        1 => (any::<bool>(), vec(any::<u32>(), 0..20))
            .prop_map(|(aborted, xids)| Kind::TransactionsEnded(aborted, xids)),
        1 => (0u16..8000, vec(any::<u8>(), 0..192))
            .prop_map(|(offset, bytes)| Kind::Patched(offset, bytes)),
        1 => any::<u32>().prop_map(Kind::RelSize),
        1 => vec(any::<u8>(), 0..600).prop_map(Kind::File),
        1 => (any::<Oid>(), any::<Oid>()).prop_map(|(spc, db)| Kind::CopyOf(spc, db)),
        1 => Just(Kind::Dropped),
    ]
}

impl Kind {
    fn value(self, record: &RawRecord) -> Value {
        match self {
            Self::Image(seed) => Value::Image(noise(seed, 8192)),
            Self::ZeroPage => Value::ZeroPage,
            Self::Record { will_init } => Value::Record {
                will_init,
                record: record.clone(),
            },
            // Starts where the record of its neighbours does, and is another.
            Self::OtherRecord => Value::Record {
                will_init: false,
                record: record_at(record.start_lsn.get(), Bytes::from_static(b"other")),
            },
            Self::TruncateVisibilityMap(blocks) => Value::TruncateVisibilityMap {
                heap_blocks: BlockNumber::new(blocks),
            },
            Self::TransactionsEnded(aborted, xids) => Value::TransactionsEnded {
                end: match aborted {
                    true => TransactionEnd::Aborted,
                    false => TransactionEnd::Committed,
                },
                xids: xids.into(),
            },
            Self::Patched(offset, bytes) => patched(offset, &bytes),
            Self::RelSize(blocks) => Value::RelSize(BlockNumber::new(blocks)),
            Self::File(content) => Value::File(content.into()),
            Self::CopyOf(spc, db) => Value::CopyOf { spc, db },
            Self::Dropped => Value::Dropped,
        }
    }
}
