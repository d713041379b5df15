use std::collections::BTreeMap;

use palimpsest_types::{BlockNumber, KeyRange};

use super::*;
use crate::versions::Listing;

/// Versions in memory, by key and LSN.
#[derive(Debug, Default)]
struct Memory(BTreeMap<(Key, Lsn), Value>);

impl Versions for Memory {
    async fn newest(
        &self,
        key: Key,
        lsns: RangeInclusive<Lsn>,
    ) -> Result<Option<(Lsn, Value)>, ReadError> {
        let versions = self.0.range((key, *lsns.start())..=(key, *lsns.end()));
        let newest = versions.last();
        Ok(newest.map(|((_, at), value)| (*at, value.clone())))
    }

    async fn newest_in(&self, _: KeyRange, _: Lsn) -> Result<Listing, ReadError> {
        Ok(Listing::default())
    }
}

const A: Database = Database { spc: 1663, db: 1 };
const B: Database = Database { spc: 1663, db: 2 };
const C: Database = Database { spc: 1700, db: 2 };

fn copy_of(Database { spc, db }: Database) -> Value {
    Value::CopyOf { spc, db }
}

fn memory(versions: impl IntoIterator<Item = (u64, Database, Value)>) -> Memory {
    let version = |(at, of, value): (u64, Database, Value)| ((of.key(), Lsn::new(at)), value);
    Memory(versions.into_iter().map(version).collect())
}

/// The stretches: whose, from where, to where.
async fn lineage(memory: &Memory, of: Database, at: u64) -> Vec<(Database, u64, u64)> {
    let lineage = Lineage::of(memory, of, Lsn::new(at)).await.unwrap();
    let shape = |stretch: &Stretch| {
        let (from, to) = (stretch.lsns.start(), stretch.lsns.end());
        (stretch.database, from.get(), to.get())
    };
    lineage.stretches().map(shape).collect()
}

#[tokio::test]
async fn copies_are_followed_back_to_what_was_not_copied() {
    let memory = memory([(40, B, copy_of(A)), (70, C, copy_of(B))]);
    let whole = [(C, 70, 90), (B, 40, 69), (A, 0, 39)];
    assert_eq!(lineage(&memory, C, 90).await, whole);
    // The source as it was before, however much it changed since.
    assert_eq!(
        lineage(&memory, C, 70).await,
        [(C, 70, 70), whole[1], whole[2]]
    );
    assert_eq!(lineage(&memory, C, 69).await, [(C, 0, 69)]);
    assert_eq!(lineage(&memory, B, 90).await, [(B, 40, 90), (A, 0, 39)]);
    assert_eq!(lineage(&memory, A, 90).await, [(A, 0, 90)]);
}

#[tokio::test]
async fn nothing_older_than_a_drop_counts() {
    let versions = [
        (40, B, copy_of(A)),
        (50, A, Value::Dropped),
        (60, B, Value::Dropped),
        (70, B, copy_of(A)),
    ];
    let memory = memory(versions);
    assert_eq!(lineage(&memory, B, 65).await, [(B, 60, 65)]);
    assert_eq!(lineage(&memory, B, 55).await, [(B, 40, 55), (A, 0, 39)]);
    assert_eq!(lineage(&memory, B, 99).await, [(B, 70, 99), (A, 50, 69)]);
}

#[tokio::test]
async fn there_and_back_again() {
    let moved = [
        (40, C, copy_of(B)),
        (41, B, Value::Dropped),
        (80, B, copy_of(C)),
        (81, C, Value::Dropped),
    ];
    let memory = memory(moved);
    let whole = [(B, 80, 90), (C, 40, 79), (B, 0, 39)];
    assert_eq!(lineage(&memory, B, 90).await, whole);
    assert_eq!(lineage(&memory, C, 90).await, [(C, 81, 90)]);
}

#[tokio::test]
async fn a_copy_of_itself_ends_and_is_what_it_was() {
    let memory = memory([(0, B, copy_of(B)), (1, A, copy_of(A)), (7, A, copy_of(A))]);
    let whole = [(A, 7, 9), (A, 1, 6), (A, 0, 0)];
    assert_eq!(lineage(&memory, A, 9).await, whole);
    assert_eq!(lineage(&memory, B, 9).await, [(B, 0, 9)]);
}

#[tokio::test]
async fn a_key_is_the_newest_of_the_stretches_that_count() {
    let map = |Database { spc, db }| Key::RelMap { spc, db };
    let mut memory = memory([(40, B, copy_of(A)), (60, C, Value::Dropped)]);
    let blocks = |number| Value::RelSize(BlockNumber::new(number));
    let versions = [(A, 30, 1), (A, 40, 2), (B, 39, 3), (B, 50, 4), (C, 59, 5)];
    for (of, at, number) in versions {
        memory.0.insert((map(of), Lsn::new(at)), blocks(number));
    }
    let newest = async |of, at| {
        let lineage = Lineage::of(&memory, of, Lsn::new(at)).await.unwrap();
        lineage.newest(&memory, map).await.unwrap()
    };
    // What the source changed by the record of the copy, or later, is its own.
    assert_eq!(newest(B, 40).await, Some(blocks(1)));
    assert_eq!(newest(B, 49).await, Some(blocks(1)));
    assert_eq!(newest(B, 50).await, Some(blocks(4)));
    assert_eq!(newest(B, 39).await, Some(blocks(3)));
    assert_eq!(newest(A, 99).await, Some(blocks(2)));
    assert_eq!(newest(C, 99).await, None);
    assert_eq!(newest(C, 59).await, Some(blocks(5)));
}

#[tokio::test]
async fn a_version_by_the_record_of_the_copy_comes_after_it() {
    let map = |Database { spc, db }| Key::RelMap { spc, db };
    let mut memory = memory([(40, B, copy_of(A))]);
    memory.0.insert((map(B), Lsn::new(40)), Value::Dropped);
    let lineage = Lineage::of(&memory, B, Lsn::new(40)).await.unwrap();
    let newest = lineage.newest(&memory, map).await.unwrap();
    assert_eq!(newest, Some(Value::Dropped));
}

#[tokio::test]
async fn no_more_copies_are_followed_than_allowed() {
    let chain = |count: usize| {
        let database = |number: usize| Database {
            spc: 1663,
            db: number as Oid,
        };
        let copy = |at: usize| (at as u64, database(at), copy_of(database(at - 1)));
        (memory((1..=count).map(copy)), database(count))
    };
    let at = u64::MAX;
    let (memory, newest) = chain(MAX_COPIES);
    assert_eq!(lineage(&memory, newest, at).await.len(), MAX_COPIES + 1);
    let (memory, newest) = chain(MAX_COPIES + 1);
    let error = Lineage::of(&memory, newest, Lsn::new(at)).await;
    assert!(matches!(error, Err(ReadError::CopiedTooOften { .. })));
}

#[tokio::test]
async fn any_other_version_of_a_database_is_an_error() {
    for value in [Value::ZeroPage, Value::RelSize(BlockNumber::ZERO)] {
        let memory = memory([(40, B, value)]);
        let error = Lineage::of(&memory, B, Lsn::new(40)).await;
        assert!(matches!(error, Err(ReadError::WrongValue(_))));
    }
}
