//! P1 for databases that are copied as files, moved and dropped: at each LSN, before, between and
//! after the steps, every page and the list of relations are those of a PostgreSQL recovered to it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use palimpsest_api::{
    TimelineRef,
    page::{PageClient, TimelineAt},
};
use palimpsest_catalog::{QualifiedName, resolve};
use palimpsest_integration::{
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
    oracle::{Oracle, RecoveredTally, compare_at, read_wal},
    recovered::{BaseBackup, Recovery},
};
use palimpsest_runtime::TaskScope;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{Fork, Lsn, RelTag};
use palimpsest_wal::{RawRecord, ResourceManager, SegmentSize};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tokio::task::block_in_place;

use crate::support::engine;

const NAME: &str = "databases-at-lsn";
/// As fast as the server likes.
const UNHURRIED: u32 = 1 << 20;

/// What is there before anything is attached: the base has the first pages of `origin`.
const BASE: [(&str, &str); 2] = [
    (
        "postgres",
        "CREATE DATABASE origin OID = 50000 STRATEGY wal_log",
    ),
    (
        "origin",
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         INSERT INTO t SELECT i, repeat('base', 10) FROM generate_series(1, 4000) i;
         CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS id; VACUUM t",
    ),
];

/// Steps, each in a database.
const STEPS: [(&str, &str); 14] = [
    (
        "origin",
        "SET allow_in_place_tablespaces = on;
         CREATE TABLESPACE space LOCATION ''; CREATE TABLESPACE other LOCATION '';
         CREATE TABLE elsewhere (id int PRIMARY KEY USING INDEX TABLESPACE space, v text)
             TABLESPACE space;
         INSERT INTO elsewhere SELECT i, md5(i::text) FROM generate_series(1, 2000) i;
         CREATE INDEX by_value ON t USING gin (to_tsvector('simple', v));
         UPDATE t SET v = v || ' changed' WHERE id % 3 = 0",
    ),
    (
        "postgres",
        "CREATE DATABASE copy TEMPLATE origin STRATEGY file_copy",
    ),
    (
        "copy",
        "UPDATE t SET v = 'of the copy' WHERE id % 4 = 0; DELETE FROM t WHERE id > 3500; VACUUM t;
         INSERT INTO elsewhere SELECT i, 'copy' FROM generate_series(2001, 2500) i",
    ),
    (
        "origin",
        "DELETE FROM t WHERE id % 5 = 0; VACUUM t; UPDATE elsewhere SET v = 'origin';
         INSERT INTO t SELECT i, 'late' FROM generate_series(5001, 6000) i",
    ),
    // What has no tablespace of its own goes to the other one.
    (
        "postgres",
        "CREATE DATABASE again TEMPLATE copy STRATEGY file_copy TABLESPACE other",
    ),
    (
        "again",
        "UPDATE t SET v = 'again' WHERE id % 7 = 0; TRUNCATE elsewhere; VACUUM FULL pg_class;
         CREATE TABLE own AS SELECT i FROM generate_series(1, 1000) i",
    ),
    // After this one another writer goes on, from layers.
    (
        "copy",
        "INSERT INTO t SELECT i, 'more' FROM generate_series(4001, 4500) i; CHECKPOINT",
    ),
    (
        "copy",
        "UPDATE t SET v = v || '.' WHERE id < 300;
         INSERT INTO t SELECT i, 'later' FROM generate_series(7001, 8000) i",
    ),
    ("postgres", "ALTER DATABASE copy SET TABLESPACE other"),
    (
        "copy",
        "UPDATE t SET v = 'moved' WHERE id % 11 = 0; DELETE FROM t WHERE id > 7500; VACUUM t",
    ),
    (
        "postgres",
        "ALTER DATABASE copy SET TABLESPACE pg_default; DROP DATABASE origin",
    ),
    (
        "copy",
        "UPDATE t SET v = 'back' WHERE id % 13 = 0; CREATE TABLE last (id int)",
    ),
    // Files of the numbers that the dropped one had, logged page by page, then copied again.
    (
        "postgres",
        "CREATE DATABASE origin OID = 50000 STRATEGY wal_log;
         CREATE DATABASE passing OID = 50001 TEMPLATE again STRATEGY file_copy;
         DROP DATABASE passing;
         CREATE DATABASE passing OID = 50001 TEMPLATE copy STRATEGY file_copy",
    ),
    (
        "passing",
        "UPDATE t SET v = 'passing' WHERE id % 17 = 0; VACUUM FREEZE t",
    ),
];
/// The step after which wal-ingest is stopped and another one started.
const RESTART_AFTER: usize = 6;

/// Relations whose names are looked up.
const TABLES: [&str; 4] = ["t", "elsewhere", "t_pkey", "by_value"];

/// What PostgreSQL said after a step.
struct Moment {
    lsn: Lsn,
    /// Where relations are, by database and name.
    files: BTreeMap<(String, String), RelTag>,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_copied_moved_and_dropped_databases_are_what_postgres_recovers_to() {
    judge().await.unwrap();
}

async fn judge() -> Result<()> {
    let size = JudgeSize::from_env();
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let options = ClusterOptions {
        data_checksums: random.random(),
        ..ClusterOptions::default()
    };
    eprintln!("{NAME}: {size:?}, seed {seed}, {options:?}");
    let mut cluster = Cluster::temporary(options.clone())?;
    let backup = block_in_place(|| -> Result<BaseBackup> {
        cluster.start()?;
        run(&cluster, BASE)?;
        BaseBackup::take(&cluster, UNHURRIED)
    })?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
    let (timeline, moments) = history(&cluster, &mut services).await?;
    let oldest = services.status(timeline)?.oldest_readable;
    block_in_place(|| cluster.stop())?;

    let mut judge = Judge::new(NAME, "P1");
    let served = services.served(timeline).await?;
    for moment in &moments {
        check_names(served.client(), timeline, moment, &mut judge).await?;
    }
    let pg_wal = cluster.data_dir().join("pg_wal");
    let end = moments.last().context("no steps")?.lsn;
    let records = records(&pg_wal, backup.start(), oldest, end)?;
    let lsns = lsns(&records, &moments, size.pick(8, usize::MAX), &mut random);
    let engine = engine(options.data_checksums).await?;
    let oracle = Oracle::new(engine.clone());
    // The same from layers alone: a page-serve that starts now has nothing else.
    services
        .wait_for(timeline, |view| view.status.remote_consistent >= end)
        .await?;
    let address = services.start_page_serve(services.scope()).await?;
    let from_layers = services.served_by(&address, timeline).await?;
    let recovery = Recovery {
        base: &backup.data_dir(),
        archive: &pg_wal,
        options: &options,
    };
    for lsn in lsns {
        let reference = block_in_place(|| recovery.to(lsn))?;
        for source in [&served, &from_layers] {
            let mut tally = RecoveredTally::default();
            let files = reference.files();
            compare_at(source, files, lsn, &oracle, &mut judge, &mut tally).await?;
            eprintln!("{NAME}: at {lsn}: {tally:?}");
        }
    }
    engine.stop().await;
    services.stop().await;
    judge.close();
    Ok(())
}

fn run<'a>(cluster: &Cluster, steps: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
    steps.into_iter().try_for_each(|(database, sql)| {
        let outcome = cluster.psql(database, sql).map(drop);
        outcome.with_context(|| format!("in {database}: {sql}"))
    })
}

/// Attaches the cluster and lets the steps happen.
async fn history(cluster: &Cluster, services: &mut Embedded) -> Result<(TimelineRef, Vec<Moment>)> {
    let first_writer = TaskScope::default();
    services.start_wal_ingest(&first_writer).await?;
    let conninfo = cluster.conninfo("postgres");
    let timeline = services.attach("judged", &conninfo).await?;
    let (before, after) = STEPS.split_at(RESTART_AFTER + 1);
    let mut moments = moments(cluster, before)?;
    let reached = moments.last().context("no steps")?.lsn;
    services
        .wait_for(timeline, |view| view.status.remote_consistent >= reached)
        .await?;
    // Another writer must know what copies hold from layers.
    first_writer.stop().await;
    services.start_wal_ingest(services.scope()).await?;
    moments.extend(self::moments(cluster, after)?);
    let end = moments.last().context("no steps")?.lsn;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    Ok((timeline, moments))
}

fn moments(cluster: &Cluster, steps: &[(&str, &str)]) -> Result<Vec<Moment>> {
    let moment = |step: &(&str, &str)| {
        block_in_place(|| {
            run(cluster, [*step])?;
            let files = files(cluster)?;
            let lsn = cluster.flush_lsn()?;
            Ok(Moment { lsn, files })
        })
    };
    steps.iter().map(moment).collect()
}

/// Where the relations are, as PostgreSQL says.
fn files(cluster: &Cluster) -> Result<BTreeMap<(String, String), RelTag>> {
    let mut files = BTreeMap::new();
    let databases = "SELECT datname FROM pg_database WHERE NOT datistemplate";
    for database in cluster.psql("postgres", databases)?.lines() {
        let list = format!(
            "SELECT relname, coalesce(nullif(reltablespace, 0), dattablespace) || '/' || d.oid \
             || '/' || pg_relation_filenode(c.oid) FROM pg_class c, pg_database d \
             WHERE datname = current_database() AND relname IN ('pg_class', '{}')",
            TABLES.join("', '")
        );
        for row in cluster.psql(database, &list)?.lines() {
            let (table, place) = row.split_once('|').context("two columns")?;
            files.insert((database.to_owned(), table.to_owned()), place.parse()?);
        }
    }
    Ok(files)
}

async fn check_names(
    client: &PageClient,
    timeline: TimelineRef,
    moment: &Moment,
    judge: &mut Judge,
) -> Result<()> {
    let Moment { lsn, files } = moment;
    let source = TimelineAt::new(client, timeline, *lsn);
    for ((database, table), expected) in files {
        let schema = match table.as_str() {
            "pg_class" => "pg_catalog",
            _ => "public",
        };
        let name = QualifiedName {
            database: database.clone(),
            schema: schema.to_owned(),
            table: table.clone(),
            fork: Fork::Main,
        };
        let finding = match resolve(&source, &name).await {
            Ok(found) if found == *expected => None,
            other => Some(format!("{name} at {lsn}: {other:?}, not {expected}")),
        };
        judge.check(finding);
    }
    Ok(())
}

/// Where a record ends, and whether it is about a database.
fn records(pg_wal: &std::path::Path, from: Lsn, oldest: Lsn, end: Lsn) -> Result<Vec<(Lsn, bool)>> {
    let mut records = Vec::new();
    read_wal(pg_wal, from, SegmentSize::DEFAULT, |record: RawRecord| {
        if (oldest..=end).contains(&record.end_lsn) {
            let rmid = record.header().context("a record without a header")?.rmid;
            records.push((record.end_lsn, rmid == ResourceManager::Database.number()));
        }
        Ok(())
    })?;
    Ok(records)
}

/// Some of the LSNs at which something may go wrong: ends of steps, ends of records about databases
/// and of those before; and the last of all.
fn lsns(
    records: &[(Lsn, bool)],
    moments: &[Moment],
    count: usize,
    random: &mut StdRng,
) -> Vec<Lsn> {
    let about = records.windows(2).filter(|pair| pair[1].1);
    let mut chosen: Vec<_> = about.flat_map(|pair| [pair[0].0, pair[1].0]).collect();
    let ended = |moment: &Moment| {
        let by_then = records.partition_point(|(lsn, _)| *lsn <= moment.lsn);
        Some(records.get(by_then.checked_sub(1)?)?.0)
    };
    let ends: Vec<_> = moments.iter().filter_map(ended).collect();
    chosen.extend(&ends);
    chosen.extend(records.iter().map(|(lsn, _)| *lsn).sample(random, 2));
    let mut lsns = chosen.into_iter().sample(random, count);
    lsns.extend(ends.last());
    lsns.sort();
    lsns.dedup();
    lsns
}
