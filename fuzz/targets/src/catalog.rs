//! Names looked up in catalog pages that anyone may have written.

use std::{convert::Infallible, ops::Range};

use bytes::Bytes;
use futures::executor::block_on;
use palimpsest_catalog::{CatalogSource, QualifiedName, RelationName, resolve};
use palimpsest_codec::crc32c;
use palimpsest_types::{BlockNumber, Fork, Oid, PAGE_SIZE, RelTag, SlruKind};

/// A cluster of which every relation and SLRU area has one page, and all databases one map.
struct Pages {
    map: Bytes,
    databases: Bytes,
    others: Bytes,
    status: Bytes,
}

/// Bytes of a relation map before its checksum.
const MAP_CHECKED: usize = 504;
const MAP_LEN: usize = 512;
/// `pg_database`.
const DATABASES: Oid = 1262;

/// A quarter each: the relation map, the page of `pg_database`, the page that all other relations
/// have, and the page of the transaction status. The latter three have their first half at the
/// beginning of the page and the other at its end.
pub fn catalog(data: &[u8]) {
    let (first, second) = data.split_at(data.len() / 2);
    let [map, databases] = halves(first);
    let [others, status] = halves(second);
    let pages = Pages {
        map: sealed_map(map),
        databases: page(databases),
        others: page(others),
        status: page(status),
    };
    let name = "postgres.pg_catalog.pg_class".parse();
    let Ok(RelationName::Qualified(name)) = name else {
        unreachable!("this is a qualified name")
    };
    let shared = QualifiedName {
        table: "pg_database".to_owned(),
        fork: Fork::VisibilityMap,
        ..name.clone()
    };
    for name in [name, shared] {
        if let Ok(rel) = block_on(resolve(&pages, &name)) {
            assert_eq!(rel.fork, name.fork);
        }
    }
}

fn halves(data: &[u8]) -> [&[u8]; 2] {
    let (first, second) = data.split_at(data.len() / 2);
    [first, second]
}

fn sealed_map(bytes: &[u8]) -> Bytes {
    let mut map = bytes.to_vec();
    map.resize(MAP_LEN, 0);
    let crc = crc32c(&map[..MAP_CHECKED]);
    map[MAP_CHECKED..MAP_CHECKED + 4].copy_from_slice(&crc.to_le_bytes());
    map.into()
}

fn page(bytes: &[u8]) -> Bytes {
    let bytes = &bytes[..bytes.len().min(PAGE_SIZE)];
    let [head, tail] = halves(bytes);
    let mut page = vec![0; PAGE_SIZE];
    page[..head.len()].copy_from_slice(head);
    page[PAGE_SIZE - tail.len()..].copy_from_slice(tail);
    page.into()
}

impl CatalogSource for Pages {
    type Error = Infallible;

    async fn blocks(&self, _: RelTag) -> Result<Option<BlockNumber>, Infallible> {
        Ok(Some(BlockNumber::new(1)))
    }

    async fn pages(&self, rel: RelTag, blocks: Range<u32>) -> Result<Vec<Bytes>, Infallible> {
        let page = match rel.rel {
            DATABASES => &self.databases,
            _ => &self.others,
        };
        Ok(blocks.map(|_| page.clone()).collect())
    }

    async fn relation_map(&self, _: Oid, _: Oid) -> Result<Option<Bytes>, Infallible> {
        Ok(Some(self.map.clone()))
    }

    async fn slru_page(&self, _: SlruKind, _: u32) -> Result<Option<Bytes>, Infallible> {
        Ok(Some(self.status.clone()))
    }
}
