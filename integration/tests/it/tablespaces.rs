//! P1 in tablespaces that lie outside the data directory, by absolute paths.
//!
//! The recovered instance runs in a mount namespace of its own, because its log and its links name
//! the source's directories: it finds its own there. The judge also sees that nothing of the source
//! was touched.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_integration::{
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
    oracle::{Oracle, RecoveredTally, boundaries, compare_at},
    recovered::{BackupTap, BaseBackup, Recovery},
};
use palimpsest_redo_postgres::RunAs;
use palimpsest_testkit::{Cluster, ClusterOptions, cluster::PrivateMount};
use palimpsest_types::{Lsn, Oid};
use palimpsest_wal::SegmentSize;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::support::engine;

const NAME: &str = "absolute-tablespaces";

/// Each is in a directory of this name: one that the backup has, one that only the log knows, one
/// that the log removes again.
const SPACES: [&str; 3] = ["backed_up", "logged", "dropped"];

#[tokio::test(flavor = "multi_thread")]
async fn p1_pages_in_tablespaces_elsewhere_are_what_postgres_recovers_to() {
    if let Some(obstacle) = block_in_place(PrivateMount::obstacle) {
        eprintln!("judge {NAME}: skipped, because {obstacle}");
        return;
    }
    let seed = seed();
    eprintln!("{NAME}: seed {seed}");
    let mut judge = Judge::new(NAME, "P1");
    judge_with(StdRng::seed_from_u64(seed), &mut judge)
        .await
        .unwrap();
    judge.close();
}

async fn judge_with(mut random: StdRng, judge: &mut Judge) -> Result<()> {
    let options = ClusterOptions {
        data_checksums: random.random(),
        autovacuum: false,
        ..ClusterOptions::default()
    };
    let place = place_of_tablespaces()?;
    let mut cluster = Cluster::temporary(options.clone())?;
    block_in_place(|| -> Result<()> {
        cluster.start()?;
        before_backup(&cluster, place.path())
    })?;
    let tap = BackupTap::to(cluster.socket_dir(), cluster.port())?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let timeline = services.attach("judged", &tap.conninfo("postgres")).await?;
    let backup = block_in_place(|| tap.take_backup())?;
    let oids = block_in_place(|| after_backup(&cluster, place.path()))?;
    let end = block_in_place(|| cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    block_in_place(|| cluster.stop())?;
    expect_tablespaces(&backup, &oids)?;

    let pg_wal = cluster.data_dir().join("pg_wal");
    let judged = backup.end()..=end;
    let boundaries = boundaries(&pg_wal, backup.start(), SegmentSize::DEFAULT, judged)?;
    let end = *boundaries.last().context("no record since the backup")?;
    let count = JudgeSize::from_env().pick(2, 12);
    let mut lsns: Vec<Lsn> = boundaries.into_iter().sample(&mut random, count);
    lsns.push(end);

    let served = services.served(timeline).await?;
    let engine = engine(options.data_checksums).await?;
    let oracle = Oracle::new(engine.clone());
    let recovery = Recovery {
        base: &backup.data_dir(),
        archive: &pg_wal,
        options: &options,
    };
    let untouched = fingerprint(place.path())?;
    for lsn in lsns {
        let reference = block_in_place(|| recovery.apart_from(place.path(), &backup, lsn));
        let reference = reference.with_context(|| format!("recovering to {lsn}"))?;
        let mut tally = RecoveredTally::default();
        compare_at(&served, reference.files(), lsn, &oracle, judge, &mut tally).await?;
        eprintln!("{NAME}: at {lsn}: {tally:?}");
        ensure!(
            fingerprint(place.path())? == untouched,
            "the reference touched the source's files"
        );
        if lsn == end {
            let outside = reference.files().iter();
            let spaces: Vec<Oid> = outside.map(|(rel, _)| rel.spc).collect();
            for oid in &oids {
                ensure!(spaces.contains(oid), "nothing was compared in {oid}");
            }
        }
    }
    engine.stop().await;
    services.stop().await;
    Ok(())
}

/// A directory for the source's tablespaces, each in one of its own as PostgreSQL wants it.
fn place_of_tablespaces() -> Result<TempDir> {
    let place = tempfile::Builder::new().prefix("pal-").tempdir_in("/tmp")?;
    let directories = SPACES.map(|name| place.path().join(name));
    for directory in &directories {
        fs::create_dir(directory)?;
    }
    if let Some(RunAs { uid, gid }) = RunAs::unprivileged()? {
        for directory in directories
            .iter()
            .map(PathBuf::as_path)
            .chain([place.path()])
        {
            chown(directory, Some(uid), Some(gid))?;
        }
    }
    Ok(place)
}

fn create(place: &Path, name: &str) -> String {
    let location = place.join(name);
    format!(
        "CREATE TABLESPACE {name} LOCATION '{}';",
        location.display()
    )
}

/// A tablespace with a table, indexes, TOAST and a database in it.
fn before_backup(cluster: &Cluster, place: &Path) -> Result<()> {
    let sql = create(place, "backed_up")
        + "CREATE TABLE there (id int PRIMARY KEY USING INDEX TABLESPACE backed_up, v text)
               TABLESPACE backed_up;
           ALTER TABLE there ALTER v SET STORAGE EXTERNAL;
           INSERT INTO there SELECT i, repeat(md5(i::text), i % 200) FROM generate_series(1, 2000) i;
           CREATE UNLOGGED TABLE forgotten (id int PRIMARY KEY) TABLESPACE backed_up;
           INSERT INTO forgotten SELECT generate_series(1, 500);
           CREATE TABLE staying AS SELECT generate_series(1, 3000) n;
           CREATE DATABASE resident TABLESPACE backed_up;";
    cluster.psql("postgres", &sql).map(drop)
}

/// Changes there, moves to and from it, a tablespace more, and one that comes and goes. Gives the
/// numbers of those that stay.
fn after_backup(cluster: &Cluster, place: &Path) -> Result<Vec<Oid>> {
    let sql = "UPDATE there SET v = reverse(v) WHERE id % 3 = 0;
               DELETE FROM there WHERE id % 7 = 0;
               VACUUM there;
               INSERT INTO forgotten SELECT generate_series(501, 900);"
        .to_owned()
        + &create(place, "logged")
        + "CREATE TABLE new_there (id int, p point) TABLESPACE logged;
           INSERT INTO new_there SELECT i, point(i, i % 91) FROM generate_series(1, 4000) i;
           CREATE INDEX ON new_there USING gist (p) TABLESPACE backed_up;
           ALTER TABLE staying SET TABLESPACE logged;
           ALTER TABLE there SET TABLESPACE pg_default;
           ALTER TABLE there SET TABLESPACE logged;
           ALTER INDEX there_pkey SET TABLESPACE logged;
           CREATE DATABASE later TEMPLATE resident STRATEGY wal_log TABLESPACE logged;"
        + &create(place, "dropped")
        + "CREATE TABLE passing AS SELECT generate_series(1, 1000) n;
           ALTER TABLE passing SET TABLESPACE dropped;
           CHECKPOINT;
           DROP TABLE passing;
           DROP TABLESPACE dropped;
           DELETE FROM new_there WHERE id % 5 = 0;
           VACUUM new_there;";
    cluster.psql("postgres", &sql)?;
    let resident =
        "CREATE TABLE t AS SELECT generate_series(1, 2000) n; DELETE FROM t WHERE n < 99";
    cluster.psql("resident", resident)?;
    cluster.psql("later", resident)?;
    let oids = "SELECT oid FROM pg_tablespace WHERE spcname IN ('backed_up', 'logged')";
    let oids = cluster.psql("postgres", oids)?;
    let oids = oids.lines().map(|oid| Ok(oid.parse()?));
    oids.collect()
}

/// One of the two came with the backup, the other by the log.
fn expect_tablespaces(backup: &BaseBackup, oids: &[Oid]) -> Result<()> {
    let streamed: Vec<Oid> = backup
        .outside()
        .map(|(tablespace, _)| tablespace.oid)
        .collect();
    ensure!(
        oids.len() == 2 && streamed.len() == 1 && oids.contains(&streamed[0]),
        "the backup has the tablespaces {streamed:?} of {oids:?}"
    );
    Ok(())
}

/// All files below a directory, with what changes when they are written: length, time, inode.
fn fingerprint(directory: &Path) -> Result<BTreeMap<PathBuf, [i64; 4]>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let of = fs::symlink_metadata(&path)?;
        if of.is_dir() {
            found.extend(fingerprint(&path)?);
        }
        let len = i64::try_from(of.len())?;
        let inode = of.ino().cast_signed();
        found.insert(path, [len, of.mtime(), of.mtime_nsec(), inode]);
    }
    Ok(found)
}
