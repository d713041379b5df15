//! Branches: what came before them is read from their ancestors.

use palimpsest_manifest::{PgTimelineBegin, Pin, PinKind};
use palimpsest_types::SystemIdentifier;
use proptest::{collection::vec, prelude::*};

use super::*;

const MAIN: TimelineId = TimelineId::from_bytes([1; 16]);

/// A tree of timelines, each with what a simple model says of it.
struct Tree {
    timelines: Vec<Member>,
    cache: Arc<PageCache>,
}

struct Member {
    fixture: Fixture,
    /// Another one, and where this begins on it.
    parent: Option<(usize, Lsn)>,
    /// What was added to which block, and when.
    changes: Vec<(Lsn, u32, u8)>,
}

/// What happens to one of the timelines, chosen by the first number.
#[derive(Debug, Clone)]
enum Step {
    Change(usize, u32, u8),
    Flush(usize),
    Image(usize),
    /// A branch so far below the newest LSN.
    Branch(usize, u64),
}

impl Tree {
    async fn new() -> Self {
        let root = Member {
            fixture: Fixture::new().await,
            parent: None,
            changes: Vec::new(),
        };
        Self {
            timelines: vec![root],
            cache: Arc::new(PageCache::new(ByteCount::mib(16))),
        }
    }

    fn newest(&self, at: usize) -> Lsn {
        self.timelines[at].fixture.tail.newest()
    }

    /// A branch of a timeline, by its number.
    async fn branch(&mut self, of: usize, lsn: u64) -> usize {
        let lsn = Lsn::new(lsn);
        let (_directory, files) = place().await;
        let manifest = &self.timelines[of].fixture.manifest;
        let fixture = Fixture {
            _directory,
            files,
            manifest: manifest.branch(MAIN, lsn).unwrap(),
            tail: Arc::new(Tail::new(WriterEpoch::FIRST, lsn)),
        };
        self.timelines.push(Member {
            fixture,
            parent: Some((of, lsn)),
            changes: Vec::new(),
        });
        self.timelines.len() - 1
    }

    fn put(&mut self, at: usize, record: LogRecord) {
        let tail = &self.timelines[at].fixture.tail;
        let lsn = record.lsn;
        tail.extend(vec![record], lsn, ByteCount::mib(64)).unwrap();
    }

    fn change(&mut self, at: usize, block: u32, amount: u8) {
        let lsn = Lsn::new(self.newest(at).get() + 10);
        self.put(at, record(lsn.get(), block, amount));
        self.timelines[at].changes.push((lsn, block, amount));
    }

    async fn flush(&mut self, at: usize) {
        let fixture = &mut self.timelines[at].fixture;
        if fixture.tail.newest() > fixture.manifest.lsn {
            fixture.flush().await;
            fixture.tail.drop_until(fixture.manifest.lsn);
        }
    }

    async fn image(&mut self, at: usize) {
        let reader = self.reader(at).await;
        let fixture = &mut self.timelines[at].fixture;
        if fixture.manifest.lsn >= fixture.manifest.oldest_readable {
            fixture.image_by(&reader, KeySpan::IMAGED[0]).await;
        }
    }

    async fn reader(&self, at: usize) -> Arc<TimelineReader<AddingEngine>> {
        let mut chain = vec![at];
        while let Some((parent, _)) = self.timelines[chain[chain.len() - 1]].parent {
            chain.push(parent);
        }
        let mut ancestor = None;
        for at in chain.into_iter().rev() {
            let Member {
                fixture, parent, ..
            } = &self.timelines[at];
            let layers = Layers::open(fixture.files.clone(), &fixture.manifest, None).await;
            let timeline = TimelineId::from_bytes([at as u8 + 1; 16]);
            let shared = (Arc::clone(&self.cache), AddingEngine);
            let tail = Arc::clone(&fixture.tail);
            let reader = TimelineReader::new(timeline, layers.unwrap(), tail, shared);
            let reader = match (ancestor.take(), parent) {
                (Some(ancestor), Some((_, lsn))) => reader.with_ancestor(ancestor, *lsn),
                _ => reader,
            };
            ancestor = Some(Arc::new(reader));
        }
        ancestor.unwrap()
    }

    /// The bytes of a block by the model.
    fn expected(&self, at: usize, block: u32, lsn: Lsn) -> u8 {
        let Member {
            parent, changes, ..
        } = &self.timelines[at];
        let before = match parent {
            None => 10,
            Some((parent, begin)) => self.expected(*parent, block, lsn.min(*begin)),
        };
        let counts = |change: &&(Lsn, u32, u8)| change.0 <= lsn && change.1 == block;
        let changes = changes.iter().filter(counts);
        changes.fold(before, |sum, change| sum.wrapping_add(change.2))
    }

    async fn act(&mut self, step: Step) {
        let timelines = self.timelines.len();
        let of = |at: usize| at % timelines;
        match step {
            Step::Change(at, block, amount) => self.change(of(at), block, amount),
            Step::Flush(at) => self.flush(of(at)).await,
            Step::Image(at) => self.image(of(at)).await,
            Step::Branch(at, below) => {
                let of = of(at);
                let lsn = self.newest(of).get() - below;
                let own = self.timelines[of]
                    .parent
                    .map_or(105, |(_, begin)| begin.get());
                if lsn >= own {
                    self.branch(of, lsn).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_branch_has_what_it_shares_and_what_it_did_itself() {
    for (flushed, dropped) in SPREADS {
        let (fixture, parent) = reader(flushed, dropped).await;
        let (main, changes) = (None, Vec::new());
        let mut tree = Tree::new().await;
        tree.timelines[0] = Member {
            fixture,
            parent: main,
            changes,
        };
        let branch = tree.branch(0, 115).await;
        tree.put(branch, record(125, 1, 4));
        tree.put(branch, record(126, 0, 8));
        for flushed in [false, true] {
            if flushed {
                tree.flush(branch).await;
            }
            let reader = tree.reader(branch).await;
            for (lsn, expected) in [(105, 10), (110, 11), (115, 11), (124, 11), (126, 15)] {
                assert_eq!(first_byte(&reader, 1, lsn).await, expected, "{lsn}");
            }
            assert_eq!(first_byte(&reader, 0, 125).await, 10);
            assert_eq!(first_byte(&reader, 0, 126).await, 18);
            // What its parent dropped later it has still.
            let relations = reader.relations(Lsn::new(126)).await.unwrap();
            assert_eq!(relations, [(REL, BlockNumber::new(2))]);
            assert_eq!(first_byte(&parent, 1, 129).await, 13);
        }
    }
}

#[tokio::test]
async fn what_a_branch_drops_is_gone_there_alone() {
    let mut tree = Tree::new().await;
    tree.change(0, 1, 1);
    let branch = tree.branch(0, 110).await;
    tree.put(branch, resize(120, Value::Dropped));
    let imaged = [false, true];
    for imaged in imaged {
        if imaged {
            tree.flush(branch).await;
            tree.image(branch).await;
        }
        let reader = tree.reader(branch).await;
        let lsn = Lsn::new(120);
        assert_eq!(reader.relations(lsn).await.unwrap(), [], "imaged: {imaged}");
        assert_eq!(reader.relation_size(REL, lsn).await.unwrap(), None);
        let before = reader.relation_size(REL, Lsn::new(119)).await.unwrap();
        assert_eq!(before, Some(BlockNumber::new(2)));
    }
    let parent = tree.reader(0).await;
    assert_eq!(first_byte(&parent, 1, 110).await, 11);
}

#[tokio::test]
async fn a_page_that_a_branch_shares_is_made_once() {
    let mut tree = Tree::new().await;
    tree.change(0, 1, 1);
    tree.flush(0).await;
    let branch = tree.branch(0, 110).await;
    tree.put(branch, record(120, 0, 1));
    let parent = tree.reader(0).await;
    first_byte(&parent, 1, 110).await;
    let made = tree.cache.in_use().misses;
    let reader = tree.reader(branch).await;
    first_byte(&reader, 1, 120).await;
    assert_eq!(tree.cache.in_use().misses, made);
}

#[tokio::test(start_paused = true)]
async fn a_branch_can_be_read_once_its_parent_has_come_so_far() {
    let patience = Duration::from_secs(1);
    let mut tree = Tree::new().await;
    let first = tree.branch(0, 115).await;
    let second = tree.branch(first, 118).await;
    let reader = tree.reader(second).await;
    assert_eq!(reader.readable(), (Lsn::new(105), Lsn::new(100)));
    let settle = async |lsn| reader.settle(Some(Lsn::new(lsn)), None, patience).await;
    assert!(matches!(settle(118).await, Err(ReadError::NotYet { .. })));
    assert!(matches!(
        settle(104).await,
        Err(ReadError::BelowHorizon { .. })
    ));
    tree.change(0, 1, 1);
    assert_eq!(settle(110).await.unwrap(), Lsn::new(110));
    let (waiting, ()) = tokio::join!(settle(118), async { tree.change(0, 1, 1) });
    // Of the first branch nothing is known between 115 and 118 yet.
    assert!(matches!(waiting, Err(ReadError::NotYet { .. })));
    assert_eq!(reader.readable(), (Lsn::new(105), Lsn::new(115)));
    let tail = &tree.timelines[first].fixture.tail;
    let to = Lsn::new(130);
    let (waiting, advanced) = tokio::join!(settle(118), async {
        tail.extend(Vec::new(), to, ByteCount::mib(1))
    });
    advanced.unwrap();
    assert_eq!(waiting.unwrap(), Lsn::new(118));
    assert_eq!(reader.readable(), (Lsn::new(105), Lsn::new(118)));
}

#[tokio::test]
async fn a_branch_outlives_what_its_parent_lets_go_of() {
    let mut tree = Tree::new().await;
    tree.change(0, 1, 1);
    tree.flush(0).await;
    let first = tree.branch(0, 110).await;
    tree.change(first, 1, 2);
    let second = tree.branch(first, 115).await;
    assert_eq!(tree.reader(second).await.readable().0, Lsn::new(105));
    tree.timelines[0].fixture.manifest.gc_cutoff = Lsn::new(130);
    tree.timelines[0].fixture.manifest.lsn = Lsn::new(130);
    assert_eq!(tree.reader(second).await.readable().0, Lsn::new(110));
    tree.timelines[first].fixture.manifest.gc_cutoff = Lsn::new(120);
    assert_eq!(tree.reader(first).await.readable().0, Lsn::new(120));
    assert_eq!(tree.reader(second).await.readable().0, Lsn::new(115));
}

#[tokio::test]
async fn what_is_pinned_is_read_below_the_cutoff_also_of_a_branch() {
    let mut tree = Tree::new().await;
    for _ in 0..4 {
        tree.change(0, 1, 1);
    }
    tree.flush(0).await;
    let branch = tree.branch(0, 136).await;
    let before = tree.reader(0).await.layers();
    let manifest = &mut tree.timelines[0].fixture.manifest;
    assert!(!before.are_superseded_by(manifest));
    for (id, lsn) in [(1, 136), (2, 120)] {
        let pin = Pin {
            id,
            kind: PinKind::Lease,
            lsn: Lsn::new(lsn),
            expires_unix_ms: None,
        };
        manifest.add_pin(pin).unwrap();
    }
    assert!(before.are_superseded_by(manifest), "more can be read");
    manifest.gc_cutoff = Lsn::new(140);
    for timeline in [0, branch] {
        let reader = tree.reader(timeline).await;
        let settle = async |lsn| {
            let settled = reader.settle(Some(Lsn::new(lsn)), None, Duration::ZERO);
            settled.await.is_ok()
        };
        for (lsn, is_pinned) in [
            (112, false),
            (119, false),
            (120, true),
            (127, true),
            (128, false),
        ] {
            assert_eq!(settle(lsn).await, is_pinned, "{timeline}: {lsn}");
        }
        assert!(settle(136).await);
        let expected = tree.expected(timeline, 1, Lsn::new(120));
        assert_eq!(first_byte(&reader, 1, 120).await, expected);
    }
}

#[tokio::test]
async fn what_ends_at_an_lsn_was_written_by_the_cluster_of_its_timeline() {
    let mut tree = Tree::new().await;
    for _ in 0..4 {
        tree.change(0, 1, 1);
    }
    tree.flush(0).await;
    let main = tree.timelines[0].fixture.manifest.source;
    let branch = tree.branch(0, 120).await;
    let before = tree.reader(branch).await.layers();
    let manifest = &mut tree.timelines[branch].fixture.manifest;
    manifest.source.system_identifier = SystemIdentifier::new(4_711);
    manifest.pg_timeline_history.push(PgTimelineBegin {
        pg_timeline: 9,
        begin: Lsn::new(120),
    });
    assert!(before.are_superseded_by(manifest), "another writes it");
    let reader = tree.reader(branch).await;
    let left = (main.pg_timeline, Lsn::new(120));
    for (lsn, cluster, expected) in [
        (112, main.system_identifier, None),
        (120, main.system_identifier, None),
        (128, SystemIdentifier::new(4_711), Some(left)),
    ] {
        let lsn = Lsn::new(lsn);
        assert_eq!(reader.cluster_at(lsn), cluster, "{lsn}");
        let left = reader.left_pg_timelines(lsn);
        assert_eq!(left, expected.into_iter().collect::<Vec<_>>(), "{lsn}");
    }
}

fn steps() -> impl Strategy<Value = Step> {
    let at = 0..9_usize;
    prop_oneof![
        6 => (at.clone(), 0..2_u32, 1..9_u8).prop_map(|(at, block, by)| Step::Change(at, block, by)),
        2 => at.clone().prop_map(Step::Flush),
        1 => at.clone().prop_map(Step::Image),
        2 => (at, 0..40_u64).prop_map(|(at, below)| Step::Branch(at, below)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever is in which layer of which timeline of a tree, every read of all of them is right.
    #[test]
    fn a_tree_reads_as_its_model_says(steps in vec(steps(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut tree = Tree::new().await;
            for step in steps {
                tree.act(step).await;
            }
            for at in 0..tree.timelines.len() {
                let reader = tree.reader(at).await;
                let mut lsn = Lsn::new(105);
                while lsn <= tree.newest(at) {
                    for block in 0..2 {
                        let page = reader.page(REL, BlockNumber::new(block), lsn).await.unwrap();
                        let expected = tree.expected(at, block, lsn);
                        prop_assert_eq!(page[0], expected, "{} block {} at {}", at, block, lsn);
                    }
                    let relations = reader.relations(lsn).await.unwrap();
                    prop_assert_eq!(relations, [(REL, BlockNumber::new(2))]);
                    lsn = Lsn::new(lsn.get() + 5);
                }
            }
            Ok(())
        })?;
    }
}
