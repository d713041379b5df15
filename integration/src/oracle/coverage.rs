use anyhow::{Context as _, Result, ensure};
use palimpsest_testkit::{Cluster, workload::DATABASE};
use palimpsest_types::{BlockNumber, Fork, Lsn, RelTag};

use super::{DataFiles, data_files::relation_of};

/// What the whole workload left in a cluster, by kind: a judge that has not seen one of them has not
/// judged it.
#[derive(Debug)]
pub struct Coverage {
    relations: Vec<(&'static str, Vec<RelTag>)>,
}

/// Records that must be in the log, in the words of `pg_waldump`. A name without a slash is a
/// resource manager.
const RECORDS: [&str; 34] = [
    "CLOG",
    "Standby",
    "Heap/INSERT",
    "Heap/HOT_UPDATE",
    "Heap/LOCK",
    "Heap/INPLACE",
    "Heap2/MULTI_INSERT",
    "Heap2/FREEZE_PAGE",
    "Heap2/PRUNE",
    "Heap2/VACUUM",
    "Heap2/VISIBLE",
    "Heap2/LOCK_UPDATED",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "SPGist",
    "BRIN",
    "Generic",
    "LogicalMessage",
    "Sequence/LOG",
    "Storage/CREATE",
    "Storage/TRUNCATE",
    "RelMap/UPDATE",
    "MultiXact/CREATE_ID",
    "MultiXact/ZERO_MEM_PAGE",
    "Transaction/ASSIGNMENT",
    "Transaction/PREPARE",
    "Transaction/COMMIT_PREPARED",
    "Transaction/ABORT_PREPARED",
    "Database/CREATE_WAL_LOG",
    "Database/DROP",
    "Tablespace/CREATE",
    "Tablespace/DROP",
];

/// Kinds of relations, and which rows of `pg_class` they are.
const RELATIONS: [(&str, &str); 19] = [
    ("table", "relkind = 'r' AND relpersistence = 'p'"),
    ("partition", "relkind = 'r' AND relispartition"),
    ("index of a partition", "relkind = 'i' AND relispartition"),
    ("materialised view", "relkind = 'm'"),
    ("sequence", "relkind = 'S' AND relpersistence = 'p'"),
    ("TOAST table", "relkind = 't' AND pg_relation_size(oid) > 0"),
    (
        "large objects",
        "relname = 'pg_largeobject' AND pg_relation_size(oid) > 0",
    ),
    ("unlogged table", "relkind = 'r' AND relpersistence = 'u'"),
    ("unlogged index", "relkind = 'i' AND relpersistence = 'u'"),
    (
        "unlogged sequence",
        "relkind = 'S' AND relpersistence = 'u'",
    ),
    (
        "table in a tablespace",
        "relkind = 'r' AND reltablespace > 1664",
    ),
    (
        "index in a tablespace",
        "relkind = 'i' AND reltablespace > 1664",
    ),
    ("btree index", "relkind = 'i' AND relam = 403"),
    ("hash index", "relkind = 'i' AND relam = 405"),
    ("GiST index", "relkind = 'i' AND relam = 783"),
    ("GIN index", "relkind = 'i' AND relam = 2742"),
    ("SP-GiST index", "relkind = 'i' AND relam = 4000"),
    ("BRIN index", "relkind = 'i' AND relam = 3580"),
    ("shared catalog", "relkind = 'r' AND relisshared"),
];

impl Coverage {
    /// Asks a running cluster, in which the workload has run, for the files of each kind.
    pub fn ask(cluster: &Cluster) -> Result<Self> {
        let ask = |(kind, rows): (&'static str, &str)| -> Result<_> {
            let sql = format!("SELECT pg_relation_filepath(oid) FROM pg_class WHERE {rows}");
            let paths = cluster.psql(DATABASE, &sql)?;
            let relations: Result<Vec<_>> = paths.lines().map(relation_of).collect();
            Ok((kind, relations?))
        };
        let relations = RELATIONS.into_iter().map(ask).collect::<Result<_>>()?;
        Ok(Self { relations })
    }

    /// That the files which were compared include some of each kind, with something in them.
    pub fn expect_in(&self, reference: &DataFiles) -> Result<()> {
        for (kind, relations) in &self.relations {
            let mut there = false;
            for rel in relations {
                // Of an empty unlogged table there is no more than an init fork of no length.
                there |= reference.blocks(*rel)? > BlockNumber::ZERO
                    || reference.get(rel.with_fork(Fork::Init)).is_some();
            }
            ensure!(there, "no {kind} was compared, of {relations:?}");
        }
        Ok(())
    }

    /// That the log of a cluster has records of all kinds in this range.
    pub fn expect_records(cluster: &Cluster, start: Lsn, end: Lsn) -> Result<()> {
        let stats = cluster.wal_stats(start, Some(end));
        let stats = stats.with_context(|| format!("counting records from {start} to {end}"))?;
        for wanted in RECORDS {
            let is_it = |kind: &str| kind == wanted || kind.split('/').next() == Some(wanted);
            let there = stats.iter().any(|(kind, count)| is_it(kind) && *count > 0);
            ensure!(there, "no record {wanted} from {start} to {end}");
        }
        Ok(())
    }
}
