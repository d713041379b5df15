//! Many pages at once: what is asked of the store and of the engine.

use std::{
    iter,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures::future::join_all;

use super::*;

const BLOCKS: u32 = 256;

/// A page that does not compress.
fn noisy_page(block: u32) -> [u8; PAGE_SIZE] {
    let mut state = u64::from(block) + 1;
    std::array::from_fn(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

fn blocks() -> Vec<BlockNumber> {
    (0..BLOCKS).map(BlockNumber::new).collect()
}

/// A change of every page by this amount.
fn change_all(lsn: u64, amount: u8) -> LogRecord {
    let changes = (0..BLOCKS).flat_map(|block| record(lsn, block, amount).changes);
    LogRecord {
        lsn: Lsn::new(lsn),
        changes: changes.collect(),
    }
}

/// "Replays" as [`AddingEngine`] does, but so slowly that all who want the page ask meanwhile.
#[derive(Debug, Default)]
struct SlowEngine {
    jobs: Arc<AtomicUsize>,
}

impl Engine for SlowEngine {
    async fn apply(&self, request: ApplyRequest) -> Result<Bytes, EngineError> {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        AddingEngine.apply(request).await
    }
}

#[tokio::test]
async fn pages_that_lie_together_are_read_at_once() {
    for (page, expected) in [
        // A piece of the index, then 2 MiB in two reads.
        (noisy_page as fn(u32) -> [u8; PAGE_SIZE], 3),
        (|block| [block as u8; PAGE_SIZE], 2),
    ] {
        let fixture = Fixture::with_base(BLOCKS, page).await;
        let reader = fixture.reader().await;
        let before = fixture.reads();
        let pages = reader.pages(REL, &blocks(), Lsn::new(100)).await.unwrap();
        assert_eq!(fixture.reads() - before, expected);
        for (block, found) in (0..).zip(&pages) {
            assert_eq!(found[..], page(block), "{block}");
        }
        // All of it is in memory by now.
        let again = reader.pages(REL, &blocks(), Lsn::new(100)).await.unwrap();
        assert_eq!(again, pages);
        assert_eq!(fixture.reads() - before, expected);
    }
}

#[tokio::test]
async fn a_batch_reads_each_layer_once() {
    let mut fixture = Fixture::with_base(BLOCKS, noisy_page).await;
    let amounts = [1, 2, 3, 4, 5];
    for (lsn, amount) in (110..).step_by(10).zip(amounts) {
        fixture.layer_of(change_all(lsn, amount)).await;
    }
    let reader = fixture.reader().await;
    let before = fixture.reads();
    let pages = reader.pages(REL, &blocks(), Lsn::new(150)).await.unwrap();
    let reads = fixture.reads() - before;
    let expected = noisy_page(77).map(|byte| byte.wrapping_add(15));
    assert_eq!(pages[77][..], expected);
    // Of each layer the index, the changes, and the record that they share; of the base three as above.
    assert_eq!(reads, 3 * 5 + 3);
}

#[tokio::test]
async fn nothing_depends_on_what_the_block_cache_keeps() {
    let mut fixture = Fixture::with_base(BLOCKS, noisy_page).await;
    for lsn in [110, 120, 130] {
        fixture.layer_of(change_all(lsn, 1)).await;
    }
    fixture.files.blocks = Arc::new(BlockCache::new(ByteCount::new(1)));
    let reader = fixture.reader().await;
    for (lsn, changes) in [(130, 3), (115, 1), (105, 0)] {
        let pages = reader.pages(REL, &blocks(), Lsn::new(lsn)).await.unwrap();
        for (block, page) in (0..).zip(pages) {
            let expected = noisy_page(block).map(|byte| byte.wrapping_add(changes));
            assert_eq!(page[..], expected, "{block} at {lsn}");
        }
    }
}

#[tokio::test]
async fn pages_come_in_the_order_asked_for_however_often() {
    let mut fixture = Fixture::with_base(BLOCKS, noisy_page).await;
    fixture.layer_of(change_all(110, 1)).await;
    fixture.layer_of(record(120, 5, 2)).await;
    let reader = fixture.reader().await;
    let asked = [200, 5, 0, 5, 255, 199].map(BlockNumber::new);
    let pages = reader.pages(REL, &asked, Lsn::new(120)).await.unwrap();
    for (block, page) in iter::zip(asked, pages) {
        let alone = fixture.reader().await.page(REL, block, Lsn::new(120)).await;
        assert_eq!(page, alone.unwrap(), "{block}");
    }
}

#[tokio::test]
async fn identical_reads_share_one_reconstruction() {
    let mut fixture = Fixture::with_base(BLOCKS, noisy_page).await;
    fixture.layer_of(change_all(110, 1)).await;
    let engine = SlowEngine::default();
    let jobs = Arc::clone(&engine.jobs);
    let reader = fixture.reader_with(engine).await;
    let asked: Vec<_> = blocks().into_iter().take(8).collect();
    let before = fixture.reads();
    let reads = (0..20).map(|_| reader.pages(REL, &asked, Lsn::new(110)));
    let answers: Vec<_> = join_all(reads)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(jobs.load(Ordering::Relaxed), asked.len());
    assert!(answers.iter().all(|pages| *pages == answers[0]));
    let expected = noisy_page(3).map(|byte| byte.wrapping_add(1));
    assert_eq!(answers[0][3][..], expected);
    // Of the layer three, as above; a piece of the base's index, and what lies together there.
    assert_eq!(fixture.reads() - before, 3 + 2);
}

#[tokio::test]
async fn a_read_passes_over_layers_without_its_key() {
    let mut fixture = Fixture::with_base(BLOCKS, noisy_page).await;
    for block in 0..40 {
        fixture
            .layer_of(record(110 + 10 * u64::from(block), block, 1))
            .await;
    }
    let before = fixture.reads();
    let reader = fixture.reader().await;
    // The base: its footer, its index, its sizes.
    assert_eq!(fixture.reads() - before, 3);
    let page = reader.page(REL, BlockNumber::new(7), Lsn::new(500)).await;
    let expected = noisy_page(7).map(|byte| byte.wrapping_add(1));
    assert_eq!(page.unwrap()[..], expected);
    // One layer, whose index and block are two reads; of the base an entry and the page.
    assert_eq!(fixture.reads() - before, 3 + 2 + 2);
}

#[tokio::test]
async fn what_is_read_ahead_and_not_needed_may_be_damaged() {
    let mut fixture = Fixture::with_base(2, noisy_page).await;
    fixture.layer_of(record(110, 1, 1)).await;
    let damaged = fixture.manifest.layers().last().unwrap().name.clone();
    let whole = LogRecord {
        lsn: Lsn::new(120),
        changes: vec![Change {
            key: Key::RelBlock(REL, BlockNumber::new(1)),
            value: Value::ZeroPage,
        }],
    };
    fixture.layer_of(whole).await;
    fixture.layer_of(record(130, 1, 5)).await;
    let reader = fixture.reader().await;
    let path = fixture.files.directory.child(&damaged);
    fixture.files.store.delete(&path).await.unwrap();
    // The second step asks for two layers, of which the newer is enough.
    let page = reader.page(REL, BlockNumber::new(1), Lsn::new(130)).await;
    assert_eq!(page.unwrap()[..], [5; PAGE_SIZE]);
    let older = reader.page(REL, BlockNumber::new(1), Lsn::new(115)).await;
    older.unwrap_err();
}

#[tokio::test]
async fn a_long_way_down_is_read_ahead_and_ends_where_it_should() {
    let mut fixture = Fixture::with_base(2, noisy_page).await;
    for at in 0..50 {
        fixture.layer_of(record(110 + 10 * at, 1, 1)).await;
    }
    let reader = fixture.reader().await;
    for changes in [50, 17, 1, 0] {
        let lsn = Lsn::new(100 + 10 * changes);
        let page = reader.page(REL, BlockNumber::new(1), lsn).await.unwrap();
        let expected = noisy_page(1).map(|byte| byte.wrapping_add(changes as u8));
        assert_eq!(page[..], expected, "{changes}");
    }
}
