//! Databases that are copied and dropped, against a model in which a copy copies everything.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use palimpsest_types::{Key, Oid};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{lineage::Database, listing::relations_at};

/// Databases there are: two in one tablespace, and one of them in another.
const DATABASES: [Database; 3] = [
    Database { spc: 1663, db: 5 },
    Database { spc: 1663, db: 6 },
    Database { spc: 1700, db: 5 },
];
/// File numbers of relations there are.
const RELS: [Oid; 2] = [REL.rel, 16385];

/// What happens, in one of the databases.
#[derive(Debug, Clone)]
enum Event {
    /// A relation gets a page more, or is made.
    Extend {
        rel: usize,
        by: u8,
        image: bool,
    },
    /// A record changes a page.
    Change {
        rel: usize,
        block: usize,
        by: u8,
    },
    /// A relation gets shorter.
    Truncate {
        rel: usize,
    },
    DropRelation {
        rel: usize,
    },
    Map(u8),
    CopyFrom(usize),
    DropDatabase,
}

/// All that databases hold.
type Model = BTreeMap<Database, Content>;

/// Of one database: the first byte of each page, by relation, and of its relation map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    relations: BTreeMap<Oid, Vec<u8>>,
    map: Option<u8>,
}

/// "Replays" a record by adding its first byte; the others say whose page it changes.
#[derive(Debug, Default)]
struct NamedEngine {
    /// How often it was asked.
    applied: Arc<AtomicUsize>,
}

impl Engine for NamedEngine {
    async fn apply(&self, request: ApplyRequest) -> Result<Bytes, EngineError> {
        self.applied.fetch_add(1, Ordering::Relaxed);
        let mut page = request.base.map_or(vec![0; PAGE_SIZE], Vec::from);
        for record in request.records {
            let named = [request.rel.spc, request.rel.db].map(u32::to_le_bytes);
            assert_eq!(record.bytes[1..], named.concat(), "a record of another");
            let byte = page[0].wrapping_add(record.bytes[0]);
            page.fill(byte);
        }
        Ok(page.into())
    }
}

fn any_event() -> impl Strategy<Value = (usize, Event)> {
    let rel = || 0..RELS.len();
    let event = prop_oneof![
        4 => (rel(), any::<u8>(), any::<bool>())
            .prop_map(|(rel, by, image)| Event::Extend { rel, by, image }),
        8 => (rel(), 0..9usize, any::<u8>())
            .prop_map(|(rel, block, by)| Event::Change { rel, block, by }),
        1 => rel().prop_map(|rel| Event::Truncate { rel }),
        1 => rel().prop_map(|rel| Event::DropRelation { rel }),
        1 => any::<u8>().prop_map(Event::Map),
        4 => (0..DATABASES.len()).prop_map(Event::CopyFrom),
        2 => Just(Event::DropDatabase),
    ];
    (0..DATABASES.len(), event)
}

/// The changes of an event at an LSN, which also happens to the model.
fn happen(model: &mut Model, of: usize, event: Event, lsn: Lsn) -> Vec<Change> {
    let database = DATABASES[of];
    let Database { spc, db } = database;
    let tag = |rel: usize| RelTag {
        spc,
        db,
        rel: RELS[rel],
        fork: Fork::Main,
    };
    let record = |will_init, by: u8| {
        let named = [spc, db].map(u32::to_le_bytes).concat();
        let bytes = [vec![by], named].concat().into();
        let record = RawRecord {
            start_lsn: Lsn::new(lsn.get() - 8),
            end_lsn: lsn,
            bytes,
        };
        Value::Record { will_init, record }
    };
    let size = |rel, len: usize| {
        let blocks = Value::RelSize(BlockNumber::new(len as u32));
        (Key::RelSize(tag(rel)), blocks)
    };
    let block = |rel, at: usize| Key::RelBlock(tag(rel), BlockNumber::new(at as u32));
    let copied = match event {
        Event::CopyFrom(from) => model.get(&DATABASES[from]).cloned().unwrap_or_default(),
        _ => Content::default(),
    };
    let content = model.entry(database).or_default();
    let changes = match event {
        Event::Extend { rel, by, image } => {
            let pages = content.relations.entry(RELS[rel]).or_default();
            pages.push(by);
            let page = match image {
                true => Value::Image(vec![by; PAGE_SIZE].into()),
                false => record(true, by),
            };
            vec![size(rel, pages.len()), (block(rel, pages.len() - 1), page)]
        }
        Event::Change { rel, block: at, by } => match content.relations.get_mut(&RELS[rel]) {
            Some(pages) if !pages.is_empty() => {
                let at = at % pages.len();
                pages[at] = pages[at].wrapping_add(by);
                vec![(block(rel, at), record(false, by))]
            }
            _ => vec![],
        },
        Event::Truncate { rel } => match content.relations.get_mut(&RELS[rel]) {
            Some(pages) => {
                pages.truncate(1);
                vec![size(rel, pages.len())]
            }
            None => vec![],
        },
        Event::DropRelation { rel } => {
            content.relations.remove(&RELS[rel]);
            vec![(Key::RelSize(tag(rel)), Value::Dropped)]
        }
        Event::Map(byte) => {
            content.map = Some(byte);
            let file = Value::File(vec![byte].into());
            vec![(Key::RelMap { spc, db }, file)]
        }
        Event::CopyFrom(from) => {
            *content = copied;
            let Database { spc, db } = DATABASES[from];
            vec![(database_key(database), Value::CopyOf { spc, db })]
        }
        Event::DropDatabase => {
            *content = Content::default();
            vec![(database_key(database), Value::Dropped)]
        }
    };
    let change = |(key, value)| Change { key, value };
    changes.into_iter().map(change).collect()
}

const fn database_key(Database { spc, db }: Database) -> Key {
    Key::Database { spc, db }
}

/// What the base of [`Fixture`] holds.
fn model_of_base() -> Model {
    let relations = BTreeMap::from([(REL.rel, vec![10, 10])]);
    let content = Content {
        relations,
        map: None,
    };
    BTreeMap::from([(DATABASES[0], content)])
}

/// All forks with their sizes.
fn listing(model: &Model) -> Vec<(RelTag, BlockNumber)> {
    let of_database = |(database, content): (&Database, &Content)| {
        let Database { spc, db } = *database;
        let size = |(rel, pages): (&Oid, &Vec<u8>)| {
            let fork = Fork::Main;
            let rel = RelTag {
                spc,
                db,
                rel: *rel,
                fork,
            };
            (rel, BlockNumber::new(pages.len() as u32))
        };
        content.relations.iter().map(size).collect::<Vec<_>>()
    };
    model.iter().flat_map(of_database).collect()
}

async fn check(reader: &TimelineReader<NamedEngine>, model: &Model, lsn: Lsn) {
    let relations = reader.relations(lsn).await.unwrap();
    assert_eq!(relations, listing(model), "at {lsn}");
    for Database { db, .. } in DATABASES {
        let its = relations.iter().filter(|(rel, _)| rel.db == db);
        let blocks = its.map(|(_, blocks)| u64::from(blocks.get()));
        let size = reader.database_size(db, lsn).await.unwrap();
        assert_eq!(
            size,
            blocks.reduce(|sum, blocks| sum + blocks),
            "{db} at {lsn}"
        );
    }
    for (rel, blocks) in relations {
        let size = reader.relation_size(rel, lsn).await.unwrap();
        assert_eq!(size, Some(blocks), "{rel} at {lsn}");
        let pages = &model[&Database::of(rel)].relations[&rel.rel];
        // One by one, or all at once: what was read before decides what is cached.
        let one_by_one = (lsn.get() / 10).is_multiple_of(2);
        let numbers: Vec<_> = (0..blocks.get()).map(BlockNumber::new).collect();
        let chunk = if one_by_one { 1 } else { numbers.len().max(1) };
        let mut found = Vec::new();
        for some in numbers.chunks(chunk) {
            let read = reader.pages(rel, some, lsn).await;
            found.extend(read.unwrap_or_else(|error| panic!("{rel} at {lsn}: {error}")));
        }
        let expected = pages.iter().map(|byte| vec![*byte; PAGE_SIZE]);
        assert_eq!(found, expected.collect::<Vec<_>>(), "{rel} at {lsn}");
    }
    for Database { spc, db } in DATABASES {
        let expected = model.get(&Database { spc, db }).and_then(|it| it.map);
        let map = reader.relation_map(spc, db, lsn).await;
        assert_eq!(map.ok().map(|map| map[0]), expected, "{spc}/{db} at {lsn}");
    }
}

/// What is done with what has happened.
#[derive(Debug, Clone)]
enum Upkeep {
    Nothing,
    Flush,
    /// An image is made of these keys, after a flush.
    Image(KeySpan),
}

fn any_upkeep() -> impl Strategy<Value = Upkeep> {
    prop_oneof![
        8 => Just(Upkeep::Nothing),
        1 => Just(Upkeep::Flush),
        1 => any_span().prop_map(Upkeep::Image),
    ]
}

/// Keys from one to another of those there may be, or all.
fn any_span() -> impl Strategy<Value = KeySpan> {
    let databases = || 0..DATABASES.len();
    let tag = |(of, rel): (usize, usize)| {
        let Database { spc, db } = DATABASES[of];
        let fork = Fork::Main;
        let rel = RELS[rel];
        RelTag { spc, db, rel, fork }
    };
    let rel = move || (databases(), 0..RELS.len()).prop_map(tag);
    let key = || {
        prop_oneof![
            rel().prop_map(Key::RelSize),
            (rel(), 0..4u32).prop_map(|(rel, at)| Key::RelBlock(rel, BlockNumber::new(at))),
            databases().prop_map(|of| {
                let Database { spc, db } = DATABASES[of];
                Key::RelMap { spc, db }
            }),
        ]
    };
    prop_oneof![
        Just(KeySpan::IMAGED[0]),
        (key(), key()).prop_map(|(one, other)| KeySpan {
            first: one.min(other),
            last: one.max(other),
        }),
    ]
}

/// Lets all events happen, some of them in layers in the end, and reads in some order, so that the
/// cache is filled by other reads.
async fn against_the_model(events: Vec<(usize, Event)>, upkeep: Vec<Upkeep>, order: Vec<usize>) {
    let mut fixture = Fixture::new().await;
    let mut model = model_of_base();
    let mut moments = vec![(Lsn::new(105), model.clone())];
    for (at, (of, event)) in events.into_iter().enumerate() {
        let lsn = Lsn::new(110 + 10 * at as u64);
        let changes = happen(&mut model, of, event, lsn);
        let upkeep = upkeep.get(at).filter(|_| !changes.is_empty());
        let record = LogRecord { lsn, changes };
        let tail = &fixture.tail;
        tail.extend(vec![record], lsn, ByteCount::mib(1)).unwrap();
        moments.push((lsn, model.clone()));
        match upkeep {
            None | Some(Upkeep::Nothing) => {}
            Some(Upkeep::Flush) => fixture.flush().await,
            Some(Upkeep::Image(keys)) => {
                fixture.flush().await;
                fixture.image(*keys, NamedEngine::default()).await;
            }
        }
    }
    let reader = fixture.reader_with(NamedEngine::default()).await;
    fixture.tail.drop_until(fixture.manifest.lsn);
    for at in order {
        let (lsn, model) = &moments[at % moments.len()];
        check(&reader, model, *lsn).await;
    }
    for (lsn, model) in &moments {
        check(&reader, model, *lsn).await;
        // As wal-ingest does when it takes a timeline over.
        if *lsn <= reader.layers().lsn() {
            let relations = relations_at(&*reader.layers(), *lsn).await.unwrap();
            let relations: Vec<_> = relations.into_iter().collect();
            assert_eq!(relations, listing(model), "in layers at {lsn}");
        }
    }
}

fn block_on(future: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_copy_is_all_that_the_other_was(
        events in vec(any_event(), 1..40),
        upkeep in vec(any_upkeep(), 40),
        order in vec(any::<usize>(), 0..20),
    ) {
        block_on(against_the_model(events, upkeep, order));
    }
}

/// Page 0 of [`REL`], which is 10, changes by 1 at 110; its database is copied at 120; the page
/// changes by 2 at 130, and in the copy by 4 at 140.
fn copied_and_changed() -> Vec<(usize, Event)> {
    let change = |by| Event::Change {
        rel: 0,
        block: 0,
        by,
    };
    vec![
        (0, change(1)),
        (1, Event::CopyFrom(0)),
        (0, change(2)),
        (1, change(4)),
    ]
}

/// The database that the copy is in.
const COPY: RelTag = RelTag { db: 6, ..REL };

async fn reader_of(
    events: Vec<(usize, Event)>,
) -> (Fixture, TimelineReader<NamedEngine>, Arc<AtomicUsize>) {
    let fixture = Fixture::new().await;
    let mut model = model_of_base();
    for (at, (of, event)) in (0u64..).zip(events) {
        let lsn = Lsn::new(110 + 10 * at);
        let changes = happen(&mut model, of, event, lsn);
        let record = LogRecord { lsn, changes };
        let tail = &fixture.tail;
        tail.extend(vec![record], lsn, ByteCount::mib(1)).unwrap();
    }
    let engine = NamedEngine::default();
    let applied = Arc::clone(&engine.applied);
    let reader = fixture.reader_with(engine).await;
    (fixture, reader, applied)
}

#[tokio::test]
async fn a_page_that_did_not_change_since_the_copy_is_made_once() {
    let (_fixture, reader, applied) = reader_of(copied_and_changed()).await;
    let first = async |rel, lsn| {
        let page = reader.page(rel, BlockNumber::ZERO, Lsn::new(lsn)).await;
        (page.unwrap()[0], applied.load(Ordering::Relaxed))
    };
    assert_eq!(first(COPY, 120).await, (11, 1));
    assert_eq!(first(REL, 110).await, (11, 1));
    assert_eq!(first(COPY, 139).await, (11, 1));
    // The page copied is the base for what came after it.
    assert_eq!(first(COPY, 140).await, (15, 2));
    assert_eq!(first(REL, 140).await, (13, 3));
    assert_eq!(first(COPY, 140).await, (15, 3));
}

#[tokio::test]
async fn what_a_dropped_database_held_is_not_seen_in_one_made_anew() {
    let mut events = copied_and_changed();
    let extend = Event::Extend {
        rel: 1,
        by: 7,
        image: true,
    };
    events.extend([(1, Event::DropDatabase), (1, extend)]);
    let (_fixture, reader, _) = reader_of(events).await;
    let anew = RelTag {
        rel: RELS[1],
        ..COPY
    };
    for lsn in [150, 160].map(Lsn::new) {
        assert_eq!(reader.relation_size(COPY, lsn).await.unwrap(), None);
        let page = reader.page(COPY, BlockNumber::ZERO, lsn).await;
        assert!(matches!(page, Err(ReadError::NoRelation { .. })));
        let map = reader.relation_map(COPY.spc, COPY.db, lsn).await;
        assert!(matches!(map, Err(ReadError::NoRelationMap { .. })));
    }
    let one = BlockNumber::new(1);
    let two = BlockNumber::new(2);
    let before = reader.relations(Lsn::new(149)).await.unwrap();
    assert_eq!(before, [(REL, two), (COPY, two)]);
    let after = reader.relations(Lsn::new(160)).await.unwrap();
    assert_eq!(after, [(REL, two), (anew, one)]);
}
