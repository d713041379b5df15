//! P1 outside relations: status, commit times and multixacts of transactions are, at each LSN, page
//! for page what PostgreSQL has in its files, and so is what it keeps of prepared ones.
//!
//! No page is excepted. What a server does to these files without logging it (`TrimCLOG`,
//! `TrimMultiXact`: zeros after the newest entry, at each start) is invisible here, because nothing
//! was ever written there. Only one thing comes later with us: the first page of `pg_commit_ts`
//! after that was turned on, which PostgreSQL makes at once, begins with the first commit. All LSNs
//! but the last are before that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    os::unix::{fs::chown, process::CommandExt as _},
    path::Path,
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use palimpsest_api::{
    TimelineRef,
    page::{PageClient, ReadAt},
};
use palimpsest_integration::{
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
    oracle::read_wal,
    recovered::{BaseBackup, Recovery},
};
use palimpsest_manifest::TimelineManifests;
use palimpsest_read::{BlockCache, LayerFiles, Layers, PageCache, Tail, TimelineReader};
use palimpsest_redo_postgres::{Engine, RunAs};
use palimpsest_runtime::TaskScope;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_testkit::{Cluster, ClusterOptions, cluster::pg_bin};
use palimpsest_types::{ByteCount, ErrorKind, Lsn, PAGE_SIZE, SlruKind};
use palimpsest_wal::{SegmentSize, clog_page_of, member_place, offset_place, segment_of};
use rand::{SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tokio::task::block_in_place;

use crate::support::engine;

const NAME: &str = "slru-at-lsn";
const WRAPPING: &str = "slru-wrapping";
/// As fast as the server likes.
const UNHURRIED: u32 = 1 << 20;

/// Rows that two sessions lock together: each becomes a multixact. More than a segment of offsets
/// has, so that truncation removes one.
const ROWS: u32 = 70_000;

/// Every row is locked by a subtransaction of its own, some of which fail.
const LOCK_EACH: &str = "DO $$ BEGIN FOR row IN 1..70000 LOOP BEGIN \
    PERFORM 1 FROM locked WHERE id = row FOR KEY SHARE; \
    IF row % 7 = 0 THEN RAISE division_by_zero; END IF; \
    EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$";

/// Locks of all strengths on few rows, by several at once, with updates that some of them undo.
const CONTEND: &str = "\\set row random(1, 5)
\\set other random(6, 9)
BEGIN;
SELECT 1 FROM locked WHERE id = :row FOR SHARE;
SAVEPOINT s;
SELECT 1 FROM locked WHERE id = :other FOR KEY SHARE;
UPDATE locked SET n = n + 1 WHERE id = :other + 10;
ROLLBACK TO s;
UPDATE locked SET n = n + 1 WHERE id = :other + 20;
COMMIT;
";

/// Numbers shortly before they wrap around: the next transaction's is in the last page of a segment
/// of status, the next multixact's and member's are near the end of 32 bits.
const NEXT_XID: u32 = 32 * 32768 - 20_000;
const NEXT_MULTIXACT: u32 = u32::MAX - 30_000;
const NEXT_MEMBER: u32 = u32::MAX - 60_000;

#[tokio::test(flavor = "multi_thread")]
async fn p1_what_is_kept_of_transactions_is_that_of_postgres() {
    let mut judge = Judge::new(NAME, "P1");
    judge_cell(false, &mut judge).await.unwrap();
    judge.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_what_is_kept_of_transactions_wraps_around_as_in_postgres() {
    let mut judge = Judge::new(WRAPPING, "P1");
    judge_cell(true, &mut judge).await.unwrap();
    judge.close();
}

async fn judge_cell(wraps: bool, judge: &mut Judge) -> Result<()> {
    let options = ClusterOptions {
        autovacuum: false,
        ..ClusterOptions::default()
    }
    .with("track_commit_timestamp", "on")
    .with("max_prepared_transactions", "10");
    let mut cluster = Cluster::temporary(options.clone())?;
    block_in_place(|| -> Result<()> {
        if wraps {
            set_counters(cluster.data_dir())?;
        }
        cluster.start()?;
        let fill = format!("INSERT INTO locked SELECT i, 0 FROM generate_series(1, {ROWS}) i");
        sql(&cluster, "CREATE TABLE locked (id int PRIMARY KEY, n int)")?;
        sql(&cluster, &fill)?;
        prepare(&cluster, "before")
    })?;
    let backup = block_in_place(|| BaseBackup::take(&cluster, UNHURRIED))?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
    let first_writer = TaskScope::default();
    services.start_wal_ingest(&first_writer).await?;
    let timeline = services
        .attach("judged", &cluster.conninfo("postgres"))
        .await?;
    let oldest = services.status(timeline)?.oldest_readable;
    let frozen_from = block_in_place(|| change_and_freeze(&cluster))?;
    // Another writer must know what exists, and the settings, from layers and local WAL.
    first_writer.stop().await;
    services.start_wal_ingest(services.scope()).await?;
    block_in_place(|| change_again(&cluster))?;
    let toggled_from = block_in_place(|| cluster.flush_lsn())?;
    block_in_place(|| toggle_commit_timestamps(&mut cluster))?;
    let end = block_in_place(|| cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.remote_consistent >= end)
        .await?;
    block_in_place(|| cluster.stop())?;

    let served = services.served(timeline).await?;
    let engine = engine(false).await?;
    let reader = reader_of_layers(&services, timeline, engine.clone()).await?;
    let mut sides = Sides {
        judge,
        client: served.client(),
        reader: &reader,
        timeline,
    };
    sides.prepared(oldest, &backup.data_dir()).await?;
    sides.compare(end, cluster.data_dir()).await?;
    let pg_wal = cluster.data_dir().join("pg_wal");
    let ranges = [oldest..frozen_from, frozen_from..toggled_from];
    for lsn in some_boundaries(&pg_wal, backup.start(), ranges)? {
        let recovery = Recovery {
            base: &backup.data_dir(),
            archive: &pg_wal,
            options: &options,
        };
        let reference = block_in_place(|| recovery.to(lsn));
        let reference = reference.with_context(|| format!("recovering to {lsn}"))?;
        sides.compare(lsn, &reference.data_dir()).await?;
    }
    engine.stop().await;
    services.stop().await;
    Ok(())
}

fn sql(cluster: &Cluster, text: &str) -> Result<()> {
    cluster.psql("postgres", text).map(drop)
}

fn prepare(cluster: &Cluster, name: &str) -> Result<()> {
    let table = format!("CREATE TABLE by_{name} (i int); SAVEPOINT s");
    let rows = format!("INSERT INTO by_{name} SELECT generate_series(1, 100)");
    sql(
        cluster,
        &format!("BEGIN; {table}; {rows}; PREPARE TRANSACTION '{name}'"),
    )
}

/// Has the first transaction, multixact and member these numbers, with pages for them, as a server
/// expects that has come so far.
fn set_counters(data_dir: &Path) -> Result<()> {
    let mut command = Command::new(pg_bin().join("pg_resetwal"));
    let multixact = NEXT_MULTIXACT;
    command
        .arg(format!("--next-transaction-id={NEXT_XID}"))
        .arg(format!("--multixact-ids={multixact},{multixact}"))
        .arg(format!("--multixact-offset={NEXT_MEMBER}"))
        .arg(data_dir);
    let owner = RunAs::unprivileged()?;
    if let Some(RunAs { uid, gid }) = owner {
        command.uid(uid).gid(gid).current_dir(data_dir);
    }
    ensure!(command.status()?.success(), "pg_resetwal failed");
    for (kind, page) in [
        (SlruKind::Clog, clog_page_of(NEXT_XID)),
        (SlruKind::MultiXactOffsets, offset_place(NEXT_MULTIXACT).0),
        (SlruKind::MultiXactMembers, member_place(NEXT_MEMBER).page),
    ] {
        let name = format!("{:04X}", segment_of(page));
        let path = data_dir.join(kind.directory()).join(name);
        let file = fs::File::options().create(true).append(true).open(&path)?;
        let pages = u64::from(page % SlruKind::PAGES_PER_SEGMENT + 1);
        file.set_len(pages * PAGE_SIZE as u64)?;
        if let Some(RunAs { uid, gid }) = owner {
            chown(&path, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

/// Multixacts, subtransactions, prepared transactions; then everything is frozen, so that old pages
/// go. Says from where on.
fn change_and_freeze(cluster: &Cluster) -> Result<Lsn> {
    let mut holder = cluster.session("postgres")?;
    holder.run("BEGIN; SELECT count(*) FROM (SELECT 1 FROM locked FOR KEY SHARE) held")?;
    sql(cluster, LOCK_EACH)?;
    sql(cluster, "UPDATE locked SET n = 1 WHERE id % 100 = 0")?;
    sql(
        cluster,
        "BEGIN; UPDATE locked SET n = 2 WHERE id % 100 = 1; ROLLBACK",
    )?;
    holder.run("COMMIT")?;
    prepare(cluster, "committed")?;
    prepare(cluster, "rolled_back")?;
    cluster.checkpoint()?;
    contend(cluster)?;
    sql(cluster, "COMMIT PREPARED 'committed'")?;
    sql(cluster, "ROLLBACK PREPARED 'rolled_back'")?;
    sql(cluster, "COMMIT PREPARED 'before'")?;
    let from = cluster.flush_lsn()?;
    freeze(cluster)?;
    Ok(from)
}

/// More of the same; some prepared transactions never end.
fn change_again(cluster: &Cluster) -> Result<()> {
    prepare(cluster, "kept")?;
    contend(cluster)?;
    cluster.checkpoint()?;
    prepare(cluster, "kept_in_the_log")
}

fn contend(cluster: &Cluster) -> Result<()> {
    let script = tempfile::NamedTempFile::new()?;
    fs::write(script.path(), CONTEND)?;
    let script = script.path().to_str().context("an odd path")?;
    let clients = ["--client=4", "--transactions=300", "--no-vacuum", "--file"];
    let arguments = [clients.as_slice(), &[script, "postgres"]].concat();
    cluster.pgbench(&arguments).map(drop)
}

/// Old pages go when no database needs them, `template0` included.
fn freeze(cluster: &Cluster) -> Result<()> {
    sql(cluster, "UPDATE pg_database SET datallowconn = true")?;
    for database in ["template0", "template1", "postgres"] {
        let freeze = "SET vacuum_multixact_freeze_min_age = 0; VACUUM (FREEZE)";
        for one in freeze.split("; ") {
            cluster.psql(database, one)?;
        }
    }
    Ok(())
}

/// Turned off, all commit times go; on again, new ones begin.
fn toggle_commit_timestamps(cluster: &mut Cluster) -> Result<()> {
    for value in ["off", "on"] {
        let set = format!("ALTER SYSTEM SET track_commit_timestamp = {value}");
        sql(cluster, &set)?;
        cluster.stop()?;
        cluster.start()?;
        sql(cluster, "INSERT INTO locked SELECT max(id) + 1 FROM locked")?;
    }
    Ok(())
}

/// Ends of records, as many drawn from each range.
fn some_boundaries(pg_wal: &Path, start: Lsn, ranges: [Range<Lsn>; 2]) -> Result<Vec<Lsn>> {
    let mut boundaries = [Vec::new(), Vec::new()];
    read_wal(pg_wal, start, SegmentSize::DEFAULT, |record| {
        for (range, boundaries) in ranges.iter().zip(&mut boundaries) {
            if range.contains(&record.end_lsn) {
                boundaries.push(record.end_lsn);
            }
        }
        Ok(())
    })?;
    let count = JudgeSize::from_env().pick(2, 5);
    let mut random = StdRng::seed_from_u64(seed());
    let drawn = boundaries
        .into_iter()
        .flat_map(|some| some.into_iter().sample(&mut random, count));
    Ok(BTreeSet::from_iter(drawn).into_iter().collect())
}

/// What is in the object store, read without services.
async fn reader_of_layers(
    services: &Embedded,
    timeline: TimelineRef,
    engine: Engine,
) -> Result<TimelineReader<Engine>> {
    let TimelineRef { tenant, timeline } = timeline;
    let store = ObjectStore::open(&services.store()).await?;
    let manifests = TimelineManifests::new(store.clone(), tenant, timeline);
    let manifest = manifests.newest().await?.context("no manifest")?.state;
    let directory = StorePath::timeline(tenant, timeline).child("layers");
    let blocks = Arc::new(BlockCache::new(ByteCount::mib(16)));
    let files = LayerFiles::new(store, directory, blocks);
    let layers = Layers::open(files, &manifest, None).await?;
    let tail = Arc::new(Tail::new(manifest.writer_epoch, manifest.lsn));
    let cache = Arc::new(PageCache::new(ByteCount::mib(16)));
    Ok(TimelineReader::new(timeline, layers, tail, (cache, engine)))
}

/// Ours, of which pages are compared with the files of PostgreSQL.
struct Sides<'a> {
    judge: &'a mut Judge,
    client: &'a PageClient,
    reader: &'a TimelineReader<Engine>,
    timeline: TimelineRef,
}

impl Sides<'_> {
    async fn compare(&mut self, lsn: Lsn, data_dir: &Path) -> Result<()> {
        for kind in SlruKind::ALL {
            self.area(kind, lsn, &data_dir.join(kind.directory()))
                .await?;
        }
        self.prepared(lsn, data_dir).await
    }

    async fn area(&mut self, kind: SlruKind, lsn: Lsn, directory: &Path) -> Result<()> {
        let files = numbered_files(directory)?;
        // Theirs, and some that they may not have any more or not yet.
        let around = |segment: &u32| segment.saturating_sub(2)..=segment.saturating_add(1);
        let segments: BTreeSet<_> = files.keys().chain([&0]).flat_map(around).collect();
        eprintln!(
            "{NAME}: {} at {lsn}: segments {:?}",
            kind.directory(),
            files.keys()
        );
        for segment in segments {
            let at = ReadAt {
                lsn: Some(lsn),
                ..ReadAt::default()
            };
            let served = self.client.slru_segment(self.timeline, at, kind, segment);
            let served = match served.await {
                Ok(served) => served.pages,
                Err(error) if error.kind == ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error.into()),
            };
            let file = files.get(&segment).cloned().unwrap_or_default();
            ensure!(file.len() % PAGE_SIZE == 0, "a torn page");
            let name = format!("{} segment {segment:04X} at {lsn}", kind.directory());
            let (found, expected) = (served.len(), file.len() / PAGE_SIZE);
            let other_len = format!("{name}: {found} pages instead of {expected}");
            self.judge.check((found != expected).then_some(other_len));
            for (expected, (page, found)) in file.chunks(PAGE_SIZE).zip(served) {
                let differs = || {
                    format!(
                        "{name}: page {page} differs at {:?}",
                        first_difference(expected, &found)
                    )
                };
                self.judge.check((found != expected).then(differs));
            }
        }
        Ok(())
    }

    async fn prepared(&mut self, lsn: Lsn, data_dir: &Path) -> Result<()> {
        let files = numbered_files(&data_dir.join("pg_twophase"))?;
        let found: BTreeMap<_, _> = self
            .reader
            .prepared_transactions(lsn)
            .await?
            .into_iter()
            .collect();
        eprintln!("{NAME}: prepared at {lsn}: {:?}", files.keys());
        let differ = || {
            format!(
                "prepared transactions at {lsn}: {:?} instead of {:?}",
                found.keys(),
                files.keys()
            )
        };
        self.judge.check((found != files).then(differ));
        Ok(())
    }
}

/// Files whose names are hexadecimal numbers, by number.
fn numbered_files(directory: &Path) -> Result<BTreeMap<u32, Bytes>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = u32::from_str_radix(name.context("an odd name")?, 16)?;
        files.insert(number, fs::read(&path)?.into());
    }
    Ok(files)
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}
