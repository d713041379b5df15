//! The WAL and the final pages of one workload, made once for all tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::FileExt,
    sync::OnceLock,
};

use bytes::Bytes;
use palimpsest_redo_postgres::{ApplyRequest, RedoRecord};
use palimpsest_types::{BlockNumber, Fork, Lsn, PAGE_SIZE, RelTag};

use crate::{
    cluster::Cluster,
    wal::{self, Record},
};

/// Everything that happened to one page, from a record that needs no older version of it.
pub(crate) struct Chain {
    pub(crate) rel: RelTag,
    pub(crate) block: BlockNumber,
    pub(crate) records: Vec<Record>,
}

pub(crate) struct Corpus {
    pub(crate) records: Vec<Record>,
    pub(crate) chains: Vec<Chain>,
    /// The pages of the chains and of the maps, as the cluster left them.
    pages: BTreeMap<(RelTag, BlockNumber), Bytes>,
    /// File numbers by relation name, as the workload left them.
    pub(crate) relations: BTreeMap<String, RelTag>,
}

const WORKLOAD: &[&str] = &[
    "CREATE TABLE plain (id int PRIMARY KEY, payload text, words int[], place point, span int4range)",
    "CREATE INDEX plain_hash ON plain USING hash (payload)",
    "CREATE INDEX plain_gin ON plain USING gin (words)",
    "CREATE INDEX plain_gin_direct ON plain USING gin (words) WITH (fastupdate = off)",
    "CREATE INDEX plain_gist ON plain USING gist (place)",
    "CREATE INDEX plain_spgist ON plain USING spgist (payload)",
    "CREATE INDEX plain_brin ON plain USING brin (id) WITH (pages_per_range = 2)",
    "CREATE SEQUENCE counter",
    "INSERT INTO plain SELECT i, md5(i::text), ARRAY[i % 7, i % 31, i], point(i % 50, i / 50.0),
        int4range(i, i + 9) FROM generate_series(1, 600) i",
    "UPDATE plain SET payload = payload || 'x' WHERE id % 3 = 0",
    "DELETE FROM plain WHERE id % 5 = 0",
    "SELECT id FROM plain WHERE id < 50 FOR UPDATE",
    "SELECT sum(nextval('counter')) FROM generate_series(1, 100)",
    "VACUUM (FREEZE, INDEX_CLEANUP on) plain",
    "INSERT INTO plain SELECT i, md5(i::text), ARRAY[i % 7, i], point(i % 9, i % 11),
        int4range(i, i + 2) FROM generate_series(601, 900) i",
    "CREATE TABLE hot (id int PRIMARY KEY, n int) WITH (fillfactor = 50)",
    "INSERT INTO hot SELECT i, 0 FROM generate_series(1, 40) i",
    "DO $$ BEGIN FOR i IN 1..20 LOOP UPDATE hot SET n = n + 1; END LOOP; END $$",
    "CREATE TABLE mapped (id int)",
    "INSERT INTO mapped SELECT generate_series(1, 1000)",
    "VACUUM mapped",
    "DELETE FROM mapped WHERE id = 5",
    "CREATE TABLE appended (id int)",
    "INSERT INTO appended SELECT generate_series(1, 300)",
    "CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY, payload text)",
    "CREATE INDEX fleeting_hash ON fleeting USING hash (payload)",
];

const RELATIONS: &str = "SELECT relname || ' 1663/' || d.oid || '/' || relfilenode
    FROM pg_class, pg_database d WHERE datname = current_database() AND relfilenode <> 0";

impl Corpus {
    pub(crate) fn get() -> &'static Self {
        static CORPUS: OnceLock<Corpus> = OnceLock::new();
        CORPUS.get_or_init(Self::make)
    }

    fn make() -> Self {
        let cluster = Cluster::start();
        // Every first change of a page after a checkpoint carries the whole page.
        cluster.sql("CHECKPOINT");
        let position = || {
            cluster
                .sql("SELECT pg_current_wal_insert_lsn()")
                .parse::<Lsn>()
                .unwrap()
        };
        let start = position();
        for statement in WORKLOAD {
            cluster.sql(statement);
        }
        let relations = cluster
            .sql(RELATIONS)
            .lines()
            .map(|line| {
                let (name, tag) = line.split_once(' ').unwrap();
                (name.to_owned(), tag.parse().unwrap())
            })
            .collect();
        let end = position();
        cluster.shut_down();
        let records = wal::read(cluster.data_dir().join("pg_wal"), start, end);
        let chains = chains(&records);
        let pages = pages(&cluster, &records);
        Self {
            records,
            chains,
            pages,
            relations,
        }
    }

    /// A page as the cluster left it; none if it no longer exists.
    pub(crate) fn page(&self, rel: RelTag, block: BlockNumber) -> Option<Bytes> {
        self.pages.get(&(rel, block)).cloned()
    }

    /// The chain of a page of a named relation.
    pub(crate) fn chain(&self, relation: &str, block: u32) -> &Chain {
        let rel = self.relations[relation];
        let wanted = |chain: &&Chain| chain.rel == rel && chain.block.get() == block;
        self.chains
            .iter()
            .find(wanted)
            .expect("the workload changed this page")
    }
}

impl Chain {
    pub(crate) fn request(&self) -> ApplyRequest {
        self.part(None, &self.records)
    }

    pub(crate) fn part(&self, base: Option<Bytes>, records: &[Record]) -> ApplyRequest {
        let records: Vec<RedoRecord> = records.iter().map(|record| record.redo.clone()).collect();
        ApplyRequest {
            rel: self.rel,
            block: self.block,
            base,
            records,
        }
    }
}

fn chains(records: &[Record]) -> Vec<Chain> {
    let mut chains: BTreeMap<(RelTag, BlockNumber), Vec<Record>> = BTreeMap::new();
    for record in records {
        for reference in &record.blocks {
            let chain = chains.entry((reference.rel, reference.block)).or_default();
            if chain.is_empty() && !reference.starts_chain {
                // Only the maps may start without; they are not rebuilt here.
                assert_ne!(
                    reference.rel.fork,
                    Fork::Main,
                    "{} needs a base",
                    reference.rel
                );
                continue;
            }
            chain.push(record.clone());
        }
    }
    chains
        .into_iter()
        .filter(|(_, records)| !records.is_empty())
        .map(|((rel, block), records)| Chain {
            rel,
            block,
            records,
        })
        .collect()
}

/// Every page that a record names, if its file still has it.
fn pages(cluster: &Cluster, records: &[Record]) -> BTreeMap<(RelTag, BlockNumber), Bytes> {
    let references = records.iter().flat_map(|record| &record.blocks);
    let addresses: BTreeSet<_> = references.map(|block| (block.rel, block.block)).collect();
    addresses
        .into_iter()
        .filter_map(|(rel, block)| Some(((rel, block), read_page(cluster, rel, block)?)))
        .collect()
}

fn read_page(cluster: &Cluster, rel: RelTag, block: BlockNumber) -> Option<Bytes> {
    let suffix = match rel.fork {
        Fork::Main => String::new(),
        fork => format!("_{}", fork.name()),
    };
    let directory = match rel.spc {
        1664 => "global".to_owned(),
        _ => format!("base/{}", rel.db),
    };
    let path = cluster
        .data_dir()
        .join(format!("{directory}/{}{suffix}", rel.rel));
    let mut page = vec![0; PAGE_SIZE];
    let file = std::fs::File::open(path).ok()?;
    let offset = u64::from(block.get()) * PAGE_SIZE as u64;
    file.read_exact_at(&mut page, offset).ok()?;
    Some(page.into())
}
