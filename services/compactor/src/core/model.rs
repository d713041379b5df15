//! Relations, relation maps, SLRU pages and prepared transactions as they are read of a timeline, against a
//! model that keeps all of them in memory, whatever writers, compactors and their crashes have made of its
//! layers.

use std::cell::Cell;

use palimpsest_read::{ReadError, Versions as _};
use palimpsest_types::{BlockNumber, Key, Lsn, SlruKind};
use palimpsest_wal::Value;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{Policy, fixture::policy};

mod site;
mod world;

use site::{Reader, Seen, Site, Trouble};
use world::{DATABASES, Event, RELS, World, XIDS, any_event, tag};

/// What is done.
#[derive(Debug, Clone)]
enum Step {
    Write(Event),
    Pass,
    Freeze,
    Flush,
    /// The live reader takes the newest manifest.
    Follow,
    /// A reader of the newest manifest stays with that.
    Keep,
    /// Layers are put together, or images made.
    Compact(Option<(usize, Trouble)>),
    /// A compactor that stood still goes on.
    Resume,
    Restart,
    /// Another writer takes over; what is in no layer may never have happened then.
    TakeOver(bool),
    /// One of the readers reads everything at one of the LSNs.
    Read(usize, usize),
}

/// Rounds in which all is compacted that is worth it, at most.
const ROUNDS: usize = 50;
/// With fewer cases something may not have happened.
const ENOUGH: u32 = 64;

fn any_step() -> impl Strategy<Value = Step> {
    let trouble = prop_oneof![
        4 => Just(Trouble::Crash),
        4 => Just(Trouble::Halt),
        1 => Just(Trouble::Refuse),
        1 => Just(Trouble::LoseAnswers),
    ];
    prop_oneof![
        24 => any_event().prop_map(Step::Write),
        2 => Just(Step::Pass),
        2 => Just(Step::Freeze),
        8 => Just(Step::Flush),
        3 => Just(Step::Follow),
        1 => Just(Step::Keep),
        6 => Just(Step::Compact(None)),
        4 => (0..40usize, trouble).prop_map(|it| Step::Compact(Some(it))),
        2 => Just(Step::Resume),
        1 => Just(Step::Restart),
        1 => any::<bool>().prop_map(Step::TakeOver),
        3 => (any::<usize>(), any::<usize>()).prop_map(|(who, at)| Step::Read(who, at)),
    ]
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let target = prop_oneof![1 => 100..2_000u64, 3 => 2_000..60_000u64];
    let policies = (2..4usize, 2..6usize, 1..4usize, target);
    policies.prop_map(|(threshold, at_once, images, target)| Policy {
        images,
        ..policy(threshold, at_once.max(threshold), target)
    })
}

async fn against_the_model(policy: Policy, steps: Vec<Step>) -> Seen {
    let mut site = Site::new(policy).await;
    let mut seen = Seen::default();
    for step in steps {
        match step {
            Step::Write(event) => site.write(&event),
            Step::Pass => site.pass(),
            Step::Freeze => site.freeze(),
            Step::Flush => site.flush().await,
            Step::Follow => site.follow().await,
            Step::Keep => site.keep().await,
            Step::Compact(trouble) => site.compact(trouble, &mut seen).await,
            Step::Resume => site.resume(&mut seen).await,
            Step::Restart => site.restart().await,
            Step::TakeOver(never_happened) => {
                // What is forgotten had been read before.
                read_something(&site, 0, site.moments().count() - 1).await;
                site.take_over(never_happened).await;
            }
            Step::Read(who, at) => read_something(&site, who, at).await,
        }
    }
    read_everything(&site).await;
    // Then all that is worth it is done.
    site.flush().await;
    let mut before = seen;
    let mut rounds = 0;
    loop {
        site.compact(None, &mut seen).await;
        if std::mem::replace(&mut before, seen) == seen {
            break;
        }
        rounds += 1;
        assert!(rounds < ROUNDS, "there is always something to compact");
    }
    site.resume(&mut seen).await;
    site.follow().await;
    read_everything(&site).await;
    site.stop().await;
    seen
}

async fn read_something(site: &Site, who: usize, at: usize) {
    let readers: Vec<_> = site.readers().collect();
    let reader = readers[who % readers.len()];
    let newest = reader.readable().1;
    let moments = site.moments().filter(|(lsns, _)| *lsns.start() <= newest);
    let moments: Vec<_> = moments.collect();
    let (lsns, world) = &moments[at % moments.len()];
    check(reader, world, *lsns.start()).await;
}

/// All readers at all LSNs, or at one of those between which nothing happened.
async fn read_everything(site: &Site) {
    let stranger = site.stranger().await;
    for (lsns, world) in site.moments() {
        for reader in site.readers() {
            if *lsns.start() <= reader.readable().1 {
                check(reader, world, *lsns.start()).await;
            }
        }
        check(&stranger, world, *lsns.end()).await;
    }
}

/// Compares all that can be read at an LSN.
async fn check(reader: &Reader, world: &World, lsn: Lsn) {
    let relations = world.relations();
    let listed = reader.relations(lsn).await.unwrap();
    let sizes = relations
        .iter()
        .map(|(rel, pages)| (*rel, BlockNumber::new(pages.len() as u32)));
    assert_eq!(listed, sizes.collect::<Vec<_>>(), "at {lsn}");
    for (_, db) in DATABASES {
        let its = relations.iter().filter(|(rel, _)| rel.db == db);
        let blocks = its.map(|(_, pages)| pages.len() as u64);
        let blocks = blocks.reduce(|sum, blocks| sum + blocks);
        let size = reader.database_size(db, lsn).await.unwrap();
        assert_eq!(size, blocks, "{db} at {lsn}");
    }
    for (database, rel) in DATABASES.iter().flat_map(|it| RELS.map(|rel| (*it, rel))) {
        let rel = tag(database, rel);
        let expected = relations.get(&rel);
        let size = reader.relation_size(rel, lsn).await.unwrap();
        let len = expected.map(|pages| BlockNumber::new(pages.len() as u32));
        assert_eq!(size, len, "{rel} at {lsn}");
        let Some(expected) = expected else {
            let page = reader.page(rel, BlockNumber::ZERO, lsn).await;
            assert!(
                matches!(page, Err(ReadError::NoRelation { .. })),
                "{rel} at {lsn}"
            );
            continue;
        };
        let blocks: Vec<_> = (0..expected.len() as u32).map(BlockNumber::new).collect();
        let pages = reader.pages(rel, &blocks, lsn).await;
        let pages = pages.unwrap_or_else(|error| panic!("{rel} at {lsn}: {error:?}"));
        assert_eq!(pages.len(), expected.len(), "{rel} at {lsn}");
        let wrong = pages
            .iter()
            .zip(*expected)
            .position(|(page, expected)| page != expected);
        assert_eq!(wrong, None, "the block of {rel} at {lsn}");
    }
    for (spc, db) in DATABASES {
        let content = world.databases.get(&(spc, db));
        let expected = content.and_then(|content| content.map.clone());
        match reader.relation_map(spc, db, lsn).await {
            Err(ReadError::NoRelationMap { .. }) => assert_eq!(expected, None, "{db} at {lsn}"),
            map => assert_eq!(Some(map.unwrap()), expected, "{db} at {lsn}"),
        }
    }
    check_outside_relations(reader, world, lsn).await;
}

async fn check_outside_relations(reader: &Reader, world: &World, lsn: Lsn) {
    for kind in SlruKind::ALL {
        let segments = reader.slru_segments(kind, lsn).await.unwrap();
        let expected = world.segments.iter().filter(|((of, _), _)| *of == kind);
        let expected = expected.map(|((_, segment), pages)| (*segment, pages.len() as u32));
        assert_eq!(segments, expected.collect::<Vec<_>>(), "{kind:?} at {lsn}");
    }
    for ((kind, segment), expected) in &world.segments {
        let pages = reader.slru_segment(*kind, *segment, lsn).await;
        let pages = pages.unwrap_or_else(|error| panic!("{kind:?} at {lsn}: {error:?}"));
        let first = segment * SlruKind::PAGES_PER_SEGMENT;
        let numbers: Vec<_> = pages.iter().map(|(number, _)| number - first).collect();
        let all: Vec<_> = (0..expected.len() as u32).collect();
        assert_eq!(numbers, all, "{kind:?} {segment} at {lsn}");
        let wrong = pages
            .iter()
            .zip(expected)
            .position(|((_, page), expected)| page != expected);
        assert_eq!(wrong, None, "the page of {kind:?} {segment} at {lsn}");
    }
    for xid in XIDS {
        let newest = reader
            .newest(Key::TwoPhase(xid), Lsn::ZERO..=lsn)
            .await
            .unwrap();
        let file = match newest {
            Some((_, Value::File(file))) => Some(file),
            _ => None,
        };
        assert_eq!(file.as_ref(), world.prepared.get(&xid), "{xid} at {lsn}");
    }
}

/// `PROPTEST_CASES=10000 cargo test -p palimpsest-compactor model` is the full run.
#[test]
fn p1_every_read_is_as_the_model_says_whatever_became_of_the_layers() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let config = Config::default();
    let cases = config.cases;
    let total = Cell::new(Seen::default());
    let input = (any_policy(), vec(any_step(), 1..120));
    let tested = TestRunner::new(config).run(&input, |(policy, steps)| {
        let seen = runtime.block_on(Box::pin(against_the_model(policy, steps)));
        total.set(total.get().and(seen));
        Ok(())
    });
    tested.unwrap();
    let Seen {
        merges,
        images,
        crashes,
        superseded,
        late,
        failures,
    } = total.get();
    let has_seen = [merges, images, crashes, superseded, late, failures].map(|times| times > 0);
    assert!(cases < ENOUGH || has_seen == [true; 6], "{:?}", total.get());
}
