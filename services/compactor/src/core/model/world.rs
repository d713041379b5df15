//! What a timeline is at an LSN: all of it in memory, and nothing clever.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use palimpsest_redo::{ApplyRequest, Engine, EngineError};
use palimpsest_types::{BlockNumber, Fork, Key, Lsn, Oid, PAGE_SIZE, RelTag, SlruKind};
use palimpsest_wal::{Change, PagePatches, RawRecord, Value};
use proptest::{collection::vec, prelude::*};

/// A database in a tablespace.
pub(super) type Database = (Oid, Oid);
/// A segment of an SLRU area.
pub(super) type Segment = (SlruKind, u32);

/// Databases there may be …
pub(super) const DATABASES: [Database; 2] = [(1663, 5), (1663, 6)];
/// … and relations in each of them.
pub(super) const RELS: [Oid; 2] = [16384, 16385];
/// Segments there may be; areas lie next to each other.
pub(super) const SEGMENTS: [Segment; 3] = [
    (SlruKind::Clog, 0),
    (SlruKind::Clog, 1),
    (SlruKind::MultiXactOffsets, 0),
];
/// Transactions that may be prepared.
pub(super) const XIDS: [u32; 2] = [3, 900];

/// All that there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct World {
    pub(super) databases: BTreeMap<Database, Content>,
    pub(super) segments: BTreeMap<Segment, Vec<Bytes>>,
    pub(super) prepared: BTreeMap<u32, Bytes>,
}

/// All that a database has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) relations: BTreeMap<Oid, Vec<Bytes>>,
    pub(super) map: Option<Bytes>,
}

/// What a record of the log does.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Of(usize, InDatabase),
    /// A segment gets a page more, or is made.
    ExtendSegment(usize, u8),
    /// A byte of a page changes.
    Patch(usize, usize, u8),
    DropSegment(usize),
    Prepare(usize, u8),
    Finish(usize),
}

#[derive(Debug, Clone)]
pub(super) enum InDatabase {
    /// A relation gets a page more, or is made.
    Extend(usize, Begin, u8),
    /// One record changes some pages. It is so long.
    Change(usize, Vec<usize>, u8, usize),
    Truncate(usize, usize),
    DropRelation(usize),
    Map(u8),
    CopyFrom(usize),
    Drop,
}

/// How a page begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begin {
    Zero,
    Image,
    Record,
}

/// "Replays" records: see [`replayed`]. What it gives depends on each of them, and on their order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixing;

impl Engine for Mixing {
    async fn apply(&self, request: ApplyRequest) -> Result<Bytes, EngineError> {
        let mut page = request.base.unwrap_or_else(|| page_of(0));
        for record in request.records {
            let named = [request.rel.spc, request.rel.db, request.rel.rel].map(u32::to_le_bytes);
            assert_eq!(record.bytes[1..13], named.concat(), "a record of another");
            page = replayed(&page, record.bytes[0]);
        }
        Ok(page)
    }
}

impl World {
    /// What a base backup has of it: a relation of two pages and a segment of one.
    pub(super) fn of_base() -> Self {
        let mut world = Self::default();
        let content = world.databases.entry(DATABASES[0]).or_default();
        content
            .relations
            .insert(RELS[0], vec![page_of(10), page_of(11)]);
        world.segments.insert(SEGMENTS[0], vec![page_of(12)]);
        world
    }

    /// All forks with their pages.
    pub(super) fn relations(&self) -> BTreeMap<RelTag, &Vec<Bytes>> {
        let mut relations = BTreeMap::new();
        for (database, content) in &self.databases {
            let tagged = content.relations.iter();
            relations.extend(tagged.map(|(rel, pages)| (tag(*database, *rel), pages)));
        }
        relations
    }

    /// Lets an event happen at an LSN. The changes of its record.
    pub(super) fn happen(&mut self, event: &Event, lsn: Lsn) -> Vec<Change> {
        let changes = match *event {
            Event::Of(database, ref event) => self.happen_in(DATABASES[database], event, lsn),
            Event::ExtendSegment(at, byte) => {
                let (kind, segment) = SEGMENTS[at];
                let pages = self.segments.entry((kind, segment)).or_default();
                let (key, value) = (slru_key((kind, segment), pages.len()), beginning(byte));
                pages.push(page_of(byte));
                vec![
                    (Key::SlruSegment(kind, segment), len_of(pages)),
                    (key, value),
                ]
            }
            Event::Patch(at, page, byte) => match self.segments.get_mut(&SEGMENTS[at]) {
                Some(pages) => {
                    let number = page % pages.len();
                    let patch = [16, 0, 1, 0, byte].to_vec();
                    let patches = PagePatches::decode(patch.into()).unwrap();
                    let mut page = pages[number].to_vec();
                    page[16] = byte;
                    pages[number] = page.into();
                    vec![(slru_key(SEGMENTS[at], number), Value::Patched(patches))]
                }
                None => vec![],
            },
            Event::DropSegment(at) => {
                self.segments.remove(&SEGMENTS[at]);
                let (kind, segment) = SEGMENTS[at];
                vec![(Key::SlruSegment(kind, segment), Value::Dropped)]
            }
            Event::Prepare(at, byte) => {
                let file = Bytes::from(vec![byte; 3]);
                self.prepared.insert(XIDS[at], file.clone());
                vec![(Key::TwoPhase(XIDS[at]), Value::File(file))]
            }
            Event::Finish(at) => {
                self.prepared.remove(&XIDS[at]);
                vec![(Key::TwoPhase(XIDS[at]), Value::Dropped)]
            }
        };
        let change = |(key, value)| Change { key, value };
        changes.into_iter().map(change).collect()
    }

    fn happen_in(&mut self, database: Database, event: &InDatabase, lsn: Lsn) -> Vec<(Key, Value)> {
        let (spc, db) = database;
        let copied = match *event {
            InDatabase::CopyFrom(from) => self.databases.get(&DATABASES[from]).cloned(),
            _ => None,
        };
        let content = self.databases.entry(database).or_default();
        match *event {
            InDatabase::Extend(rel, begin, byte) => {
                let rel = tag(database, RELS[rel]);
                let pages = content.relations.entry(rel.rel).or_default();
                let (page, value) = match begin {
                    Begin::Zero => (page_of(0), Value::ZeroPage),
                    Begin::Image => (page_of(byte), Value::Image(page_of(byte))),
                    Begin::Record => (
                        replayed(&page_of(0), byte),
                        record(rel, lsn, (true, byte, 0)),
                    ),
                };
                let block = Key::RelBlock(rel, BlockNumber::new(pages.len() as u32));
                pages.push(page);
                vec![(Key::RelSize(rel), len_of(pages)), (block, value)]
            }
            InDatabase::Change(rel, ref blocks, byte, len) => {
                let rel = tag(database, RELS[rel]);
                let pages = content.relations.get_mut(&rel.rel);
                let Some(pages) = pages.filter(|pages| !pages.is_empty()) else {
                    return vec![];
                };
                let blocks: BTreeSet<_> = blocks.iter().map(|block| block % pages.len()).collect();
                let change = |block: usize| {
                    pages[block] = replayed(&pages[block], byte);
                    let key = Key::RelBlock(rel, BlockNumber::new(block as u32));
                    (key, record(rel, lsn, (false, byte, len)))
                };
                blocks.into_iter().map(change).collect()
            }
            InDatabase::Truncate(rel, len) => match content.relations.get_mut(&RELS[rel]) {
                Some(pages) => {
                    pages.truncate(len);
                    vec![(Key::RelSize(tag(database, RELS[rel])), len_of(pages))]
                }
                None => vec![],
            },
            InDatabase::DropRelation(rel) => {
                content.relations.remove(&RELS[rel]);
                vec![(Key::RelSize(tag(database, RELS[rel])), Value::Dropped)]
            }
            InDatabase::Map(byte) => {
                let file = Bytes::from(vec![byte; 5]);
                content.map = Some(file.clone());
                vec![(Key::RelMap { spc, db }, Value::File(file))]
            }
            InDatabase::CopyFrom(from) => {
                *content = copied.unwrap_or_default();
                let whole = Key::Database { spc, db };
                let (spc, db) = DATABASES[from];
                vec![(whole, Value::CopyOf { spc, db })]
            }
            InDatabase::Drop => {
                *content = Content::default();
                vec![(Key::Database { spc, db }, Value::Dropped)]
            }
        }
    }
}

/// A fork of a relation.
pub(super) fn tag((spc, db): Database, rel: Oid) -> RelTag {
    let fork = Fork::Main;
    RelTag { spc, db, rel, fork }
}

/// A page of a segment.
pub(super) fn slru_key((kind, segment): Segment, page: usize) -> Key {
    let first = segment * SlruKind::PAGES_PER_SEGMENT;
    Key::SlruBlock(kind, first + page as u32)
}

fn page_of(byte: u8) -> Bytes {
    vec![byte; PAGE_SIZE].into()
}

fn beginning(byte: u8) -> Value {
    match byte {
        0 => Value::ZeroPage,
        byte => Value::Image(page_of(byte)),
    }
}

fn len_of(pages: &[Bytes]) -> Value {
    Value::RelSize(BlockNumber::new(pages.len() as u32))
}

/// What replaying a record with this first byte makes of a page.
fn replayed(page: &[u8], byte: u8) -> Bytes {
    let mixed = page.iter().map(|it| it.wrapping_mul(3).wrapping_add(byte));
    mixed.collect()
}

/// A record that ends at this LSN and says whose page it changes, and then something that can't be
/// compressed.
fn record(rel: RelTag, lsn: Lsn, (will_init, byte, len): (bool, u8, usize)) -> Value {
    let mut bytes = vec![byte];
    bytes.extend([rel.spc, rel.db, rel.rel].map(u32::to_le_bytes).concat());
    let mut noise = lsn.get();
    bytes.extend(
        std::iter::repeat_with(|| {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (noise >> 56) as u8
        })
        .take(len),
    );
    let record = RawRecord {
        start_lsn: Lsn::new(lsn.get() - 8),
        end_lsn: lsn,
        bytes: bytes.into(),
    };
    Value::Record { will_init, record }
}

pub(super) fn any_event() -> impl Strategy<Value = Event> {
    let segment = || 0..SEGMENTS.len();
    prop_oneof![
        12 => (0..DATABASES.len(), any_in_database()).prop_map(|(of, event)| Event::Of(of, event)),
        2 => (segment(), 0..9u8).prop_map(|(at, byte)| Event::ExtendSegment(at, byte)),
        3 => (segment(), 0..4usize, any::<u8>())
            .prop_map(|(at, page, byte)| Event::Patch(at, page, byte)),
        1 => segment().prop_map(Event::DropSegment),
        1 => (0..XIDS.len(), any::<u8>()).prop_map(|(at, byte)| Event::Prepare(at, byte)),
        1 => (0..XIDS.len()).prop_map(Event::Finish),
    ]
}

fn any_in_database() -> impl Strategy<Value = InDatabase> {
    let rel = || 0..RELS.len();
    let begin = prop_oneof![Just(Begin::Zero), Just(Begin::Image), Just(Begin::Record)];
    // Some fill a block of a layer, so that layers are also cut between LSNs of a key.
    let len = prop_oneof![12 => 0..200usize, 3 => 200..6_000usize, 1 => 20_000..40_000usize];
    prop_oneof![
        5 => (rel(), begin, any::<u8>())
            .prop_map(|(rel, begin, byte)| InDatabase::Extend(rel, begin, byte)),
        12 => (rel(), vec(0..6usize, 1..4), any::<u8>(), len)
            .prop_map(|(rel, blocks, byte, len)| InDatabase::Change(rel, blocks, byte, len)),
        1 => (rel(), 0..3usize).prop_map(|(rel, len)| InDatabase::Truncate(rel, len)),
        1 => rel().prop_map(InDatabase::DropRelation),
        1 => any::<u8>().prop_map(InDatabase::Map),
        1 => (0..DATABASES.len()).prop_map(InDatabase::CopyFrom),
        1 => Just(InDatabase::Drop),
    ]
}
