//! What a PostgreSQL has written.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::PAGE_SIZE;

use crate::{Corpora, wal};

/// Makes records of many kinds, and several compressions of images.
const WORK: &str = "\
    CREATE TABLE t (id int PRIMARY KEY, body text); \
    INSERT INTO t SELECT i, repeat('x', i) FROM generate_series(1, 300) i; \
    CREATE INDEX ON t USING gin (to_tsvector('english', body)); \
    CREATE INDEX ON t USING hash (id); CREATE INDEX ON t USING brin (id); \
    UPDATE t SET body = 'y' WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0; \
    CREATE SEQUENCE s; SELECT nextval('s'); TRUNCATE t; DROP TABLE t; DROP SEQUENCE s";
/// Each in a transaction of its own.
const ALONE: [&str; 6] = [
    "VACUUM FREEZE pg_class",
    "CREATE DATABASE copied STRATEGY file_copy",
    "DROP DATABASE copied",
    "BEGIN; SAVEPOINT a; CREATE TABLE gone (i int); ROLLBACK TO a; CREATE TABLE kept (i int); \
     PREPARE TRANSACTION 'two'",
    "COMMIT PREPARED 'two'",
    "BEGIN; SELECT 1 FROM kept FOR SHARE; CREATE TABLE x (i int); COMMIT",
];
/// Bytes of each page in the corpus of `catalog`, from its beginning and from its end.
const PAGE_PART: usize = 1024;

pub(crate) fn write(corpora: &Corpora) -> Result<()> {
    let options = ClusterOptions {
        wal_segment_size_mib: 1,
        ..ClusterOptions::default()
    };
    let options = options
        .with("max_prepared_transactions", "5")
        .with("track_commit_timestamp", "on")
        .with("wal_keep_size", "64MB");
    let mut cluster = Cluster::temporary(options)?;
    cluster.start()?;
    // So that a segment begins with a record.
    cluster.switch_wal()?;
    for compression in ["off", "pglz", "lz4", "zstd"] {
        let set = format!("ALTER SYSTEM SET wal_compression = {compression}");
        cluster.psql("postgres", &set)?;
        cluster.psql("postgres", "SELECT pg_reload_conf()")?;
        cluster.checkpoint()?;
        for statement in WORK.split("; ") {
            cluster.psql("postgres", statement)?;
        }
    }
    for statements in ALONE {
        cluster.psql("postgres", statements)?;
    }
    let label = "SELECT pg_backup_start('seed', true); SELECT labelfile FROM pg_backup_stop(false)";
    let label = cluster.psql("postgres", label)?;
    let label: Vec<_> = label.lines().filter(|line| line.contains(": ")).collect();
    corpora.seed(
        "backup_label",
        "label",
        (label.join("\n") + "\n").as_bytes(),
    )?;
    let [databases, classes] = ["pg_database", "pg_class"].map(|catalog| {
        let path = format!("SELECT pg_relation_filepath('{catalog}')");
        cluster.psql("postgres", &path)
    });
    let (databases, classes) = (databases?, classes?);
    cluster.stop()?;

    let data = cluster.data_dir();
    corpora.seed(
        "control_file",
        "control",
        &first(data, "global/pg_control", 292)?,
    )?;
    write_catalog(corpora, data, databases.trim(), classes.trim())?;
    write_tar(corpora, data)?;
    wal::write(corpora, &data.join("pg_wal"))
}

fn write_catalog(corpora: &Corpora, data: &Path, databases: &str, classes: &str) -> Result<()> {
    let database = classes.rsplit_once('/').context("a path")?.0;
    let map = format!("{database}/pg_filenode.map");
    let mut input = first(data, &map, 512)?;
    input.resize(2 * PAGE_PART, 0);
    for file in [databases, classes, "pg_xact/0000"] {
        let page = first(data, file, PAGE_SIZE)?;
        input.extend(&page[..PAGE_PART]);
        input.extend(&page[PAGE_SIZE - PAGE_PART..]);
    }
    corpora.seed("catalog", "pages", &input)
}

/// A small archive in the form that PostgreSQL writes.
fn write_tar(corpora: &Corpora, data: &Path) -> Result<()> {
    let made = Command::new("tar")
        .args([
            "--format=ustar",
            "--blocking-factor=1",
            "--create",
            "--file=-",
        ])
        .args(["--directory"])
        .arg(data)
        .args([
            "PG_VERSION",
            "pg_tblspc",
            "pg_notify",
            "postgresql.auto.conf",
        ])
        .output()?;
    ensure!(made.status.success(), "tar failed");
    let mut input = vec![200];
    input.extend(made.stdout);
    corpora.seed("tar", "files", &input)
}

fn first(data: &Path, path: &str, len: usize) -> Result<Vec<u8>> {
    let mut bytes = fs::read(data.join(path)).with_context(|| path.to_owned())?;
    ensure!(bytes.len() >= len, "{path} is too short");
    bytes.truncate(len);
    Ok(bytes)
}
