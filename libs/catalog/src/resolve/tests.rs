use std::{collections::HashMap, convert::Infallible, ops::Range};

use bytes::Bytes;
use futures::executor::block_on;
use palimpsest_types::{BlockNumber, PAGE_SIZE, SlruKind};
use palimpsest_wal::{TransactionEnd, Xid, member_place, offset_place, set_transaction_end};
use proptest::prelude::*;

use super::*;
use crate::{
    heap::{TupleHeader, page_of},
    relation_map,
    v15::NAME,
};

/// A cluster in memory.
#[derive(Default)]
struct Fake {
    relations: HashMap<RelTag, Vec<Bytes>>,
    maps: HashMap<(Oid, Oid), Bytes>,
    slru: HashMap<(SlruKind, u32), Bytes>,
}

impl CatalogSource for Fake {
    type Error = Infallible;

    async fn blocks(&self, rel: RelTag) -> Result<Option<BlockNumber>, Infallible> {
        let pages = self.relations.get(&rel);
        Ok(pages.map(|pages| BlockNumber::new(pages.len() as u32)))
    }

    async fn pages(&self, rel: RelTag, blocks: Range<u32>) -> Result<Vec<Bytes>, Infallible> {
        let blocks = blocks.start as usize..blocks.end as usize;
        Ok(self.relations[&rel][blocks].to_vec())
    }

    async fn relation_map(&self, spc: Oid, db: Oid) -> Result<Option<Bytes>, Infallible> {
        Ok(self.maps.get(&(spc, db)).cloned())
    }

    async fn slru_page(&self, kind: SlruKind, page: u32) -> Result<Option<Bytes>, Infallible> {
        Ok(self.slru.get(&(kind, page)).cloned())
    }
}

const COMMITTED: Xid = 700;
const ABORTED: Xid = 701;
const RUNNING: Xid = 702;

const LIVE: TupleHeader = TupleHeader {
    xmin: COMMITTED,
    xmax: 0,
    infomask: 0,
};

fn row(catalog: crate::v15::Catalog, oid: Oid, name: &str, columns: &[(usize, u32)]) -> Vec<u8> {
    let mut row = vec![0; catalog.row_len];
    row[..4].copy_from_slice(&oid.to_le_bytes());
    row[NAME..NAME + name.len()].copy_from_slice(name.as_bytes());
    for (at, value) in columns {
        match *at {
            RELATION_KIND | RELATION_IS_SHARED => row[*at] = *value as u8,
            at if catalog == ROLES => row[at] = *value as u8,
            at => row[at..at + 4].copy_from_slice(&value.to_le_bytes()),
        }
    }
    row
}

fn relation(oid: Oid, name: &str, columns: &[(usize, u32)]) -> Vec<u8> {
    let kind = (RELATION_KIND, u32::from(b'r'));
    row(RELATIONS, oid, name, &[&[kind], columns].concat())
}

/// Database `shop` (oid 5) in tablespace 99, with schemas `public` (2200) and `s` (20000).
fn cluster(tables: Vec<(TupleHeader, Vec<u8>)>) -> Fake {
    let mut fake = Fake::default();
    let mut clog = vec![0; PAGE_SIZE];
    set_transaction_end(&mut clog, &[COMMITTED], TransactionEnd::Committed);
    set_transaction_end(&mut clog, &[ABORTED], TransactionEnd::Aborted);
    fake.slru.insert((SlruKind::Clog, 0), clog.into());
    let shared = relation_map::made_of(&[(1262, 1262), (1260, 1300)]);
    fake.maps.insert((GLOBAL_TABLESPACE, 0), shared);
    let own = relation_map::made_of(&[(1259, 16500)]);
    fake.maps.insert((99, 5), own);

    let shop = row(DATABASES, 5, "shop", &[(DATABASE_TABLESPACE, 99)]);
    let databases = main_fork(GLOBAL_TABLESPACE, 0, 1262);
    // The first page was never used.
    let pages = vec![vec![0; PAGE_SIZE].into(), page_of(&[(LIVE, shop)])];
    fake.relations.insert(databases, pages);

    let schemas = vec![
        (LIVE, row(SCHEMAS, 2200, "public", &[])),
        (LIVE, row(SCHEMAS, 20000, "s", &[])),
    ];
    let pages = vec![page_of(&schemas)];
    fake.relations.insert(main_fork(99, 5, 2615), pages);

    let catalogs = vec![
        (
            LIVE,
            relation(2615, "pg_namespace", &[(RELATION_FILE, 2615)]),
        ),
        (LIVE, relation(1259, "pg_class", &[(RELATION_SCHEMA, 2200)])),
    ];
    let pages = vec![page_of(&catalogs), page_of(&tables)];
    fake.relations.insert(main_fork(99, 5, 16500), pages);
    fake
}

#[test]
fn the_first_superuser_who_may_log_in_is_found() {
    let mut fake = cluster(Vec::new());
    let role = |oid, name, columns: &[(usize, u32)]| (LIVE, row(ROLES, oid, name, columns));
    let (is_super, may) = ((ROLE_IS_SUPERUSER, 1), (ROLE_CAN_LOGIN, 1));
    let roles = [
        role(3, "pg_monitor", &[]),
        role(20, "later", &[is_super, may]),
        role(4, "may_not", &[is_super]),
        role(5, "is_none", &[may]),
        role(10, "owner", &[is_super, may]),
    ];
    let rel = main_fork(GLOBAL_TABLESPACE, 0, 1300);
    fake.relations.insert(rel, vec![page_of(&roles)]);
    let found = block_on(superuser(&fake)).unwrap();
    assert_eq!(found.as_deref(), Some("owner"));
    fake.relations.insert(rel, vec![page_of(&roles[..1])]);
    assert_eq!(block_on(superuser(&fake)).unwrap(), None);
}

fn found(fake: &Fake, schema: &str, table: &str) -> Result<String, String> {
    let name = QualifiedName {
        database: "shop".into(),
        schema: schema.into(),
        table: table.into(),
        fork: Fork::Main,
    };
    match block_on(resolve(fake, &name)) {
        Ok(rel) => Ok(rel.to_string()),
        Err(ResolveError::Damaged(damage)) => Err(damage.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn in_public(file: u32) -> [(usize, u32); 2] {
    [(RELATION_SCHEMA, 2200), (RELATION_FILE, file)]
}

#[test]
fn a_relation_is_where_its_row_says() {
    let elsewhere = [
        (RELATION_SCHEMA, 20000),
        (RELATION_FILE, 9),
        (RELATION_TABLESPACE, 77),
    ];
    let shared = [
        (RELATION_SCHEMA, 2200),
        (RELATION_TABLESPACE, GLOBAL_TABLESPACE),
        (RELATION_IS_SHARED, 1),
    ];
    let fake = cluster(vec![
        (LIVE, relation(8, "t", &in_public(8))),
        (LIVE, relation(9, "t", &elsewhere)),
        (LIVE, relation(1260, "pg_authid", &shared)),
    ]);
    assert_eq!(found(&fake, "public", "t"), Ok("99/5/8".into()));
    assert_eq!(found(&fake, "s", "t"), Ok("77/5/9".into()));
    assert_eq!(found(&fake, "public", "pg_class"), Ok("99/5/16500".into()));
    assert_eq!(
        found(&fake, "public", "pg_authid"),
        Ok("1664/0/1300".into())
    );
}

#[test]
fn only_what_has_committed_is_there() {
    let by = |xmin, xmax| TupleHeader {
        xmin,
        xmax,
        infomask: 0,
    };
    let fake = cluster(vec![
        (by(ABORTED, 0), relation(8, "aborted", &in_public(8))),
        (by(RUNNING, 0), relation(8, "running", &in_public(8))),
        (
            by(COMMITTED, COMMITTED),
            relation(8, "moved", &in_public(8)),
        ),
        (LIVE, relation(8, "moved", &in_public(80))),
        (by(COMMITTED, RUNNING), relation(9, "t", &in_public(9))),
        (by(RUNNING, 0), relation(9, "t", &in_public(90))),
    ]);
    for name in ["aborted", "running", "mov", "moved_"] {
        let error = found(&fake, "public", name).unwrap_err();
        assert!(error.contains("no relation"), "{error}");
    }
    assert_eq!(found(&fake, "public", "moved"), Ok("99/5/80".into()));
    assert_eq!(found(&fake, "public", "t"), Ok("99/5/9".into()));
}

/// Three multixacts with two members each: the first only locks, of the others one member updates.
fn add_multixacts(fake: &mut Fake) {
    let mut offsets = vec![0; PAGE_SIZE];
    let mut members = vec![0; PAGE_SIZE];
    let of = [
        [(RUNNING, 0), (COMMITTED, 3)],
        [(RUNNING, 1), (ABORTED, 4)],
        [(RUNNING, 0), (COMMITTED, 5)],
    ];
    for (id, pair) in (1..).zip(of) {
        for (offset, (xid, status)) in (id * 2..).zip(pair) {
            let place = member_place(offset);
            members[place.status] = status;
            members[place.xid..place.xid + 4].copy_from_slice(&xid.to_le_bytes());
        }
    }
    for id in 1..=4u32 {
        let (_, at) = offset_place(id);
        offsets[at..at + 4].copy_from_slice(&(id * 2).to_le_bytes());
    }
    let (of_offsets, of_members) = (SlruKind::MultiXactOffsets, SlruKind::MultiXactMembers);
    fake.slru.insert((of_offsets, 0), offsets.into());
    fake.slru.insert((of_members, 0), members.into());
}

#[test]
fn the_member_that_changed_a_row_decides() {
    const IS_MULTI: u16 = 0x1000;
    let held_by = |xmax| TupleHeader {
        xmin: COMMITTED,
        xmax,
        infomask: IS_MULTI,
    };
    let mut fake = cluster(vec![
        (held_by(1), relation(8, "locked", &in_public(8))),
        (held_by(2), relation(9, "undone", &in_public(9))),
        (held_by(3), relation(10, "gone", &in_public(10))),
        (held_by(4), relation(11, "newest", &in_public(11))),
    ]);
    let error = found(&fake, "public", "locked").unwrap_err();
    assert!(error.contains("multixact 1 "), "{error}");
    add_multixacts(&mut fake);
    assert_eq!(found(&fake, "public", "locked"), Ok("99/5/8".into()));
    assert_eq!(found(&fake, "public", "undone"), Ok("99/5/9".into()));
    let error = found(&fake, "public", "gone").unwrap_err();
    assert!(error.contains("no relation"), "{error}");
    // Where the members of the last one end is not kept.
    let error = found(&fake, "public", "newest").unwrap_err();
    assert!(error.contains("multixact 4 "), "{error}");
}

#[test]
fn what_is_missing_is_named() {
    let view = [(RELATION_SCHEMA, 2200), (RELATION_KIND, u32::from(b'v'))];
    let mut fake = cluster(vec![
        (LIVE, relation(8, "v", &view)),
        (LIVE, relation(9, "unmapped", &in_public(0))),
    ]);
    let error = |fake: &Fake, schema, table| found(fake, schema, table).unwrap_err();
    assert!(error(&fake, "x", "t").contains("no schema \"x\""));
    assert!(error(&fake, "public", "v").contains("a view"));
    assert!(error(&fake, "public", "unmapped").contains("unmapped"));
    fake.slru.clear();
    assert!(error(&fake, "public", "t").contains("transaction 700"));
    fake.maps.clear();
    assert!(error(&fake, "public", "t").contains("pg_database"));
}

proptest! {
    #[test]
    fn damaged_pages_are_an_answer_or_an_error(
        rel in 0usize..3,
        at in 0..PAGE_SIZE,
        to in proptest::collection::vec(any::<u8>(), 1..8),
    ) {
        let mut fake = cluster(vec![(LIVE, relation(8, "t", &in_public(8)))]);
        let rels = [
            main_fork(GLOBAL_TABLESPACE, 0, 1262),
            main_fork(99, 5, 2615),
            main_fork(99, 5, 16500),
        ];
        for page in fake.relations.get_mut(&rels[rel]).unwrap() {
            let mut bytes = page.to_vec();
            let end = PAGE_SIZE.min(at + to.len());
            bytes[at..end].copy_from_slice(&to[..end - at]);
            *page = bytes.into();
        }
        let _ = found(&fake, "public", "t");
    }
}
