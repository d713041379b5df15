//! Large blocks, and what lies outside of the history that is kept.

use std::iter;

use futures::{FutureExt as _, future::BoxFuture};

use super::*;
use crate::{delta::DeltaFile, room::Room};

/// More than what blocks usually have.
const LARGE: usize = 300 << 10;
const PAGES: u32 = 20;

/// A record as of [`record`], but large, and which may build its page from nothing.
fn large(lsn: u64, block: u32, amount: u8, builds: bool) -> LogRecord {
    let mut record = record(lsn, block, amount);
    for change in &mut record.changes {
        if let Value::Record { record, will_init } = &mut change.value {
            record.bytes = vec![amount; LARGE].into();
            *will_init = builds;
        }
    }
    record
}

/// One large record that changes all pages.
fn large_of_all(lsn: u64, amount: u8) -> LogRecord {
    let changes = (0..PAGES).flat_map(|block| large(lsn, block, amount, false).changes);
    LogRecord {
        lsn: Lsn::new(lsn),
        changes: changes.collect(),
    }
}

#[tokio::test]
async fn large_blocks_are_not_read_ahead() {
    let mut fixture = Fixture::new().await;
    for (lsn, builds) in [(110, false), (120, false), (130, true), (140, false)] {
        fixture.layer_of(large(lsn, 1, 1, builds)).await;
    }
    let reader = fixture.reader().await;
    let before = fixture.reads();
    assert_eq!(first_byte(&reader, 1, 140).await, 2);
    // Index and block of the newest and of the one at which the chain begins; of the one before that,
    // which was opened ahead, the index alone.
    assert_eq!(fixture.reads() - before, 2 + 2 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_large_block_is_looked_into_only_where_there_is_room() {
    for (len, needs_room) in [(8, false), (LARGE, true)] {
        let mut fixture = Fixture::new().await;
        let mut change = record(110, 1, 1);
        change.changes[0].value = Value::File(vec![1; len].into());
        fixture.layer_of(change).await;
        let Some(entry) = fixture.manifest.layers().last() else {
            panic!("a layer was stored");
        };
        let LayerKind::Delta(span) = entry.kind else {
            panic!("the last layer is of changes");
        };
        let (files, room) = (&fixture.files, &Room::new());
        let file = Arc::new(DeltaFile::listed(files, entry, span));
        let (first, up_to) = (Key::RelBlock(REL, BlockNumber::new(1)), Lsn::new(110));
        let keys = first..Key::RelBlock(REL, BlockNumber::new(2));
        let opened = Arc::clone(&file).open(files, iter::once((first, up_to)));
        let opened = opened.await.unwrap();

        let all = room.take(u64::MAX).await;
        let a_while = Duration::from_secs(60);
        let has_to_wait = async |read: BoxFuture<'_, ()>| {
            let read = tokio::time::timeout(a_while, read).await;
            assert_eq!(read.is_err(), needs_room);
        };
        let mut seen = 0;
        let mut see = |_, _, _| seen += 1;
        let range = file.range(files, room, keys.clone(), up_to, &mut see);
        has_to_wait(range.map(Result::unwrap).boxed()).await;
        let range = file.first_range(files, room, keys.clone(), &mut see);
        has_to_wait(range.map(Result::unwrap).boxed()).await;
        let mut visit = |_, _, _: &Value| {
            seen += 1;
            Visit::Continue
        };
        let versions = opened.versions(files, room, (first, span), &mut visit);
        has_to_wait(versions.map(|wish| assert!(wish.is_ok())).boxed()).await;
        assert_eq!(seen, if needs_room { 0 } else { 3 });

        drop(all);
        let newest = file.newest_in(files, room, keys, up_to).await.unwrap();
        assert_eq!(newest.len(), 1);
    }
}

#[tokio::test]
async fn pages_of_many_large_blocks_take_turns_and_all_come() {
    let mut fixture = Fixture::with_base(PAGES, |_| [10; PAGE_SIZE]).await;
    fixture.layer_of(large_of_all(110, 1)).await;
    let each = (0..PAGES).map(|block| large(200 + 10 * u64::from(block), block, 2, false));
    let last = Lsn::new(500);
    let each = each.collect();
    fixture.tail.extend(each, last, ByteCount::mib(64)).unwrap();
    fixture.flush().await;
    fixture.tail.drop_until(last);
    fixture.layer_of(large_of_all(510, 4)).await;
    // What is read is not kept.
    fixture.files.blocks = Arc::new(BlockCache::new(ByteCount::new(1)));
    let reader = fixture.reader().await;
    let blocks: Vec<_> = (0..PAGES).map(BlockNumber::new).collect();
    let pages = reader.pages(REL, &blocks, Lsn::new(510)).await.unwrap();
    assert!(pages.iter().all(|page| page[..] == [17; PAGE_SIZE]));
}

#[tokio::test]
async fn the_base_is_not_there_before_its_lsn() {
    let fixture = Fixture::new().await;
    let reader = fixture.reader().await;
    // Now its page is cached.
    assert_eq!(first_byte(&reader, 0, 100).await, 10);
    let keys = [Key::RelBlock(REL, BlockNumber::new(0))];
    for (lsn, is_there) in [(99, false), (100, true), (1, false)] {
        let found = reader.find(&keys, &(Lsn::ZERO..=Lsn::new(lsn))).await;
        let [found] = &found.unwrap()[..] else {
            panic!("one key was asked for");
        };
        assert_eq!(found.page().is_some(), is_there, "{lsn}");
        assert_eq!(found.base().await.unwrap().is_some(), is_there, "{lsn}");
        assert_eq!(found.version.lsn == Lsn::new(100), is_there, "{lsn}");
    }
}

#[tokio::test]
async fn a_size_that_two_base_layers_have_is_an_error() {
    let open_with = async |key| {
        let mut fixture = Fixture::new().await;
        let lsn = Lsn::new(100);
        let mut layer = ImageLayerWriter::new(lsn);
        layer.rel_size(key, BlockNumber::new(7));
        let (bytes, keys) = layer.finish().unwrap();
        let kind = LayerKind::Base(lsn);
        fixture.store(kind, keys.first..keys.last, bytes).await;
        Layers::open(fixture.files.clone(), &fixture.manifest, None).await
    };
    let other_fork = REL.with_fork(Fork::VisibilityMap);
    assert!(open_with(Key::RelSize(other_fork)).await.is_ok());
    let twice = open_with(Key::RelSize(REL)).await;
    assert!(
        matches!(twice, Err(ReadError::NotAsListed { .. })),
        "{twice:?}"
    );
}
