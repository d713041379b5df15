//! Steps that plain SQL in one session cannot express.

use std::fmt::Write as _;

use anyhow::Result;

use super::{DATABASE, Workload};
use crate::{Cluster, cluster::SUPERUSER};

/// Rows whose key-share lock of one session is joined by another: each makes a multixact, and
/// together they cross a page of both multixact areas (2,048 offsets, 1,636 members).
const JOINED_LOCKS: u32 = 2_500;

pub(super) fn create_database(_: &Workload, cluster: &Cluster) -> Result<()> {
    cluster.psql(
        SUPERUSER,
        &format!("DROP DATABASE IF EXISTS {DATABASE}; CREATE DATABASE {DATABASE}"),
    )?;
    let extensions = "CREATE EXTENSION pg_trgm; CREATE EXTENSION btree_gin; CREATE EXTENSION bloom";
    cluster.psql(DATABASE, extensions).map(drop)
}

/// COPY into an indexed table, and into one made in the same transaction, frozen from the start.
pub(super) fn copy(workload: &Workload, cluster: &Cluster) -> Result<()> {
    let rows = (1..=5_000 * workload.scale.get()).fold(String::new(), |mut rows, n| {
        // Writing to a string cannot fail.
        let _ = writeln!(
            rows,
            "{n}\trow {}",
            n.wrapping_mul(2_654_435_761) ^ workload.seed
        );
        rows
    });
    let sql = format!(
        "CREATE TABLE copy_t (id int PRIMARY KEY, v text);\n\
         COPY copy_t FROM stdin;\n{rows}\\.\n\
         BEGIN;\nCREATE TABLE copy_frozen (LIKE copy_t);\n\
         COPY copy_frozen FROM stdin (FREEZE);\n{rows}\\.\nCOMMIT;\n\
         UPDATE copy_frozen SET v = 'thawed' WHERE id % 500 = 0;\n"
    );
    cluster.psql(DATABASE, &sql).map(drop)
}

/// Two sessions that hold locks on the same rows at the same time.
pub(super) fn row_locks(_: &Workload, cluster: &Cluster) -> Result<()> {
    let (mut one, mut two) = (cluster.session(DATABASE)?, cluster.session(DATABASE)?);
    one.run("BEGIN; SELECT FROM lock_parent WHERE id <= 300 FOR SHARE")?;
    two.run("BEGIN; SELECT FROM lock_parent WHERE id <= 300 FOR SHARE")?;
    one.run("COMMIT")?;
    two.run("SELECT FROM lock_parent WHERE id <= 100 FOR UPDATE; COMMIT")?;

    // Key-share locks, as foreign keys take them, beside an update that leaves the key alone.
    one.run("BEGIN; INSERT INTO lock_child SELECT i, i FROM generate_series(301, 600) i")?;
    two.run("BEGIN; UPDATE lock_parent SET n = n + 1 WHERE id BETWEEN 301 AND 500")?;
    one.run("ROLLBACK")?;
    two.run("COMMIT")?;

    // The lock follows the update, which has not committed, to the new version of each row.
    one.run("BEGIN; UPDATE lock_parent SET n = n + 1 WHERE id BETWEEN 601 AND 700")?;
    two.run("BEGIN; SELECT FROM lock_parent WHERE id BETWEEN 601 AND 700 FOR KEY SHARE")?;
    one.run("COMMIT")?;
    two.run("COMMIT")?;

    one.run("BEGIN; SELECT FROM lock_parent FOR KEY SHARE")?;
    two.run(&format!("BEGIN; SELECT lock_one_by_one({JOINED_LOCKS})"))?;
    one.run("SAVEPOINT s; UPDATE lock_parent SET n = 5 WHERE id > 2800; ROLLBACK TO s; COMMIT")?;
    two.run("COMMIT")?;
    two.run("DELETE FROM lock_parent WHERE id BETWEEN 1 AND 200; VACUUM FREEZE lock_parent")?;
    Ok(())
}

/// Databases that come and go, and one that stays; their pages are logged one by one.
pub(super) fn databases(_: &Workload, cluster: &Cluster) -> Result<()> {
    cluster.psql(
        SUPERUSER,
        "DROP DATABASE IF EXISTS passing; CREATE DATABASE passing",
    )?;
    cluster.psql(
        "passing",
        "CREATE TABLE t AS SELECT generate_series(1, 5000) n; VACUUM t",
    )?;
    cluster.psql(
        SUPERUSER,
        "DROP DATABASE IF EXISTS staying;
         CREATE DATABASE staying TEMPLATE passing STRATEGY wal_log",
    )?;
    cluster.psql("staying", "DELETE FROM t WHERE n % 3 = 0; VACUUM t")?;
    cluster
        .psql(
            SUPERUSER,
            "ALTER DATABASE passing RENAME TO gone; DROP DATABASE gone",
        )
        .map(drop)
}

/// A database copied as files, from one that just changed.
pub(super) fn file_copy(_: &Workload, cluster: &Cluster) -> Result<()> {
    cluster.psql(
        SUPERUSER,
        "DROP DATABASE IF EXISTS origin; DROP DATABASE IF EXISTS copied; CREATE DATABASE origin",
    )?;
    cluster.psql(
        "origin",
        "CREATE TABLE t AS SELECT generate_series(1, 5000) n",
    )?;
    cluster.psql(
        SUPERUSER,
        "CREATE DATABASE copied TEMPLATE origin STRATEGY file_copy",
    )?;
    cluster.psql("copied", "UPDATE t SET n = n + 1 WHERE n % 3 = 0")?;
    cluster.psql("origin", "DELETE FROM t WHERE n % 5 = 0; VACUUM t")?;
    cluster.psql(SUPERUSER, "DROP DATABASE origin").map(drop)
}

/// TPC-B by several clients at once.
pub(super) fn pgbench(workload: &Workload, cluster: &Cluster) -> Result<()> {
    let scale = workload.scale.to_string();
    cluster.pgbench(&["--initialize", "--quiet", "--scale", &scale, DATABASE])?;
    let seed = format!("--random-seed={}", workload.seed);
    let transactions = (1_500 * workload.scale.get()).to_string();
    cluster
        .pgbench(&[
            "--client=4",
            "--jobs=2",
            "--transactions",
            &transactions,
            &seed,
            DATABASE,
        ])
        .map(drop)
}
