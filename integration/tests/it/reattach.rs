//! P1 over WAL that was lost.
//!
//! While nobody reads, somebody drops the slot, and the source removes WAL that nobody has: of drops, truncations, new
//! databases, prepared transactions, visibility bits. Then the timeline stops, and goes on from another base backup, which is
//! taken while the source works. What was there stays as it was, what comes after is as a PostgreSQL has it that
//! recovers the whole log, and in between nothing is read.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::{ClusterView, Lost, TimelineState, TimelineView},
    page::ReadAt,
};
use palimpsest_integration::{
    embedded::{Embedded, ServedTimeline},
    judge::{Judge, JudgeSize, seed},
    oracle::{DataFiles, Oracle, RecoveredTally, boundaries, compare_at},
    recovered::{BackupTap, Recovery},
};
use palimpsest_runtime::TaskScope;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{Lsn, Reason, RequestId};
use palimpsest_wal::SegmentSize;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tempfile::TempDir;
use tokio::{
    sync::watch,
    task::block_in_place,
    time::{sleep, timeout},
};

use crate::{
    exports::{Export, amcheck, difference, dump, request, trust},
    support::{compare_each, compare_with_recovered, engine},
};

mod steps;

const NAME: &str = "reattach";
const SET_BACK: &str = "set-back";
const SEGMENT_MIB: u32 = 1;
/// How long it may take until it goes on.
const PATIENCE: Duration = Duration::from_secs(120);

const MAKE: &str = "CREATE TABLE kept (id serial PRIMARY KEY, n int, tags int[], v text);
    CREATE INDEX kept_gin ON kept USING gin (tags);
    CREATE INDEX kept_hash ON kept USING hash (v);
    CREATE SEQUENCE counted;
    CREATE TABLE gone AS SELECT generate_series(1, 2000) n;
    CREATE INDEX ON gone (n);
    CREATE TABLE shrunk AS SELECT generate_series(1, 20000) n;
    CREATE TABLE emptied AS SELECT generate_series(1, 20000) n;
    CREATE TABLE same AS SELECT generate_series(1, 20000) n;
    VACUUM same;
    CREATE TABLE moved AS SELECT generate_series(1, 2000) n;
    CREATE TABLE awaited (n int);
    CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 2000) n;
    CREATE DATABASE dropped;
    CREATE DATABASE template;";

/// What the log has of it is the last that is known: that all may see it is lost. Before any transaction that is prepared,
/// as that would be in the way.
const SEEN: &str = "CREATE TABLE seen AS SELECT generate_series(1, 20000) n";

/// So that it is in a file when it is lost.
const BEFORE: &str = "BEGIN; INSERT INTO awaited VALUES (1); PREPARE TRANSACTION 'ends lost';
    BEGIN; INSERT INTO awaited VALUES (2); PREPARE TRANSACTION 'ends later';
    CHECKPOINT";

/// Of which no WAL is left.
const LOST: &[&str] = &[
    "DROP TABLE gone",
    "DELETE FROM shrunk WHERE n > 3000",
    "VACUUM shrunk",
    "INSERT INTO shrunk SELECT generate_series(1, 9000)",
    "TRUNCATE emptied",
    "VACUUM seen",
    "ALTER TABLE moved SET TABLESPACE elsewhere",
    "COMMIT PREPARED 'ends lost'",
    "BEGIN; INSERT INTO awaited VALUES (3); PREPARE TRANSACTION 'begins lost'",
    "DROP DATABASE dropped",
    "CREATE DATABASE copied TEMPLATE template STRATEGY file_copy",
    "CREATE DATABASE logged TEMPLATE template STRATEGY wal_log",
    "CREATE TABLE fresh AS SELECT generate_series(1, 5000) n",
    "CREATE INDEX ON fresh (n)",
    "BEGIN; SELECT * FROM kept ORDER BY id LIMIT 50 FOR SHARE; SAVEPOINT a; SELECT * FROM kept ORDER BY id LIMIT 50 FOR UPDATE; COMMIT",
    "REINDEX TABLE kept",
    "SELECT setval('counted', 100000)",
    "SELECT txid_current() FROM generate_series(1, 3)",
];

/// Until it is told to end.
const WORK: &str = "DO $$ BEGIN LOOP
        EXIT WHEN EXISTS (SELECT 1 FROM kept WHERE v = 'enough');
        INSERT INTO kept (n, tags, v)
            SELECT i, ARRAY[i % 7, i], md5(random()::text) FROM generate_series(1, 200) i;
        UPDATE kept SET n = n + 1 WHERE id % 11 = 0;
        DELETE FROM kept WHERE id % 17 = 3 AND id < (SELECT max(id) FROM kept) - 5000;
        PERFORM nextval('counted');
        COMMIT;
        PERFORM pg_sleep(0.02);
    END LOOP; END $$";

/// A source whose whole log is kept, wherever nobody of ours finds it.
struct Source {
    cluster: Cluster,
    options: ClusterOptions,
    log: TempDir,
}

impl Source {
    fn new(random: &mut StdRng) -> Result<Self> {
        let log = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o777))
            .tempdir_in("/var/tmp")?;
        // The umask has a say in the above.
        fs::set_permissions(log.path(), fs::Permissions::from_mode(0o777))?;
        let options = ClusterOptions {
            data_checksums: random.random(),
            wal_segment_size_mib: SEGMENT_MIB,
            autovacuum: false,
            ..ClusterOptions::default()
        };
        let options = options
            .with("max_prepared_transactions", "10")
            .with("allow_in_place_tablespaces", "on")
            .with("min_wal_size", "2MB")
            .with("wal_keep_size", "0");
        let archive = format!("cp %p {}/%f", log.path().display());
        let archiving = options.clone().with("archive_mode", "on");
        let mut cluster = Cluster::temporary(archiving.with("archive_command", &archive))?;
        cluster.start()?;
        cluster.psql("postgres", "CREATE TABLESPACE elsewhere LOCATION ''")?;
        for statement in MAKE.split_inclusive(';') {
            cluster.psql("postgres", statement)?;
        }
        cluster.psql(
            "template",
            "CREATE TABLE there AS SELECT generate_series(1, 3000) n",
        )?;
        cluster.psql(
            "dropped",
            "CREATE TABLE there AS SELECT generate_series(1, 3000) n",
        )?;
        Ok(Self {
            cluster,
            options,
            log,
        })
    }

    fn work(&self) -> Result<JoinHandle<Result<String>>> {
        let mut session = self.cluster.session("postgres")?;
        Ok(std::thread::spawn(move || session.run(WORK)))
    }

    fn end(&self, work: JoinHandle<Result<String>>) -> Result<()> {
        let told = "INSERT INTO kept (v) VALUES ('enough')";
        self.cluster.psql("postgres", told)?;
        let ended = work.join();
        ended.map_err(|_| anyhow::anyhow!("the work panicked"))??;
        self.cluster
            .psql("postgres", "DELETE FROM kept WHERE v = 'enough'")?;
        Ok(())
    }

    /// Has it remove the WAL around an LSN, and do what nobody will read.
    fn lose(&self, at: Lsn) -> Result<()> {
        let slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
        self.cluster.psql("postgres", slots)?;
        for statement in LOST {
            self.cluster
                .psql("postgres", statement)
                .with_context(|| (*statement).to_owned())?;
        }
        let segment = u64::from(SEGMENT_MIB) << 20;
        let number = at.get() / segment;
        let name = format!("00000001{:08X}{:08X}", number >> 12, number & 0xFFF);
        for _ in 0..100 {
            if !self.cluster.data_dir().join("pg_wal").join(&name).exists() {
                return Ok(());
            }
            let fill = "INSERT INTO awaited SELECT generate_series(1, 20000)";
            self.cluster.psql("postgres", fill)?;
            self.cluster.psql("postgres", "SELECT pg_switch_wal()")?;
            self.cluster.psql("postgres", "CHECKPOINT")?;
        }
        bail!("the source does not remove its WAL")
    }

    /// All of the log, once it is stopped.
    fn whole_log(&self) -> Result<&Path> {
        for file in fs::read_dir(self.cluster.data_dir().join("pg_wal"))? {
            let file = file?;
            let kept = self.log.path().join(file.file_name());
            if file.file_type()?.is_file() && !kept.exists() {
                fs::copy(file.path(), &kept)?;
                fs::set_permissions(&kept, fs::Permissions::from_mode(0o644))?;
            }
        }
        Ok(self.log.path())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_timeline_goes_on_from_a_base_backup_where_wal_was_lost() {
    let size = JudgeSize::from_env();
    let seed = seed();
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(NAME, "P1");
    for _ in 0..size.pick(1, 6) {
        lose_and_go_on(&mut random, size, &mut judge).await.unwrap();
    }
    judge.close();
}

async fn lose_and_go_on(random: &mut StdRng, size: JudgeSize, judge: &mut Judge) -> Result<()> {
    let mut source = block_in_place(|| Source::new(random))?;
    let checksums = source.options.data_checksums;
    eprintln!("{NAME}: data checksums {checksums}");
    let tap = BackupTap::to(source.cluster.socket_dir(), source.cluster.port())?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
    let ingest = TaskScope::default();
    services.start_wal_ingest(&ingest).await?;
    let work = source.work()?;
    let timeline = services.attach("judged", &tap.conninfo("postgres")).await?;
    let backup = block_in_place(|| tap.take_backup())?;
    some_time(random).await;
    block_in_place(|| source.end(work))?;
    let before = SystemTime::now();
    block_in_place(|| source.cluster.psql("postgres", SEEN))?;
    block_in_place(|| source.cluster.psql("postgres", BEFORE))?;
    let had = block_in_place(|| source.cluster.flush_lsn())?;
    let arrived = |view: &TimelineView| view.status.last_record >= had;
    services.wait_for(timeline, arrived).await?;
    let settings = services.wal_ingest_settings();
    ingest.stop().await;

    sleep(Duration::from_secs(2)).await;
    let during = SystemTime::now();
    block_in_place(|| source.lose(had))?;
    // Of the last second the hole may have more, as files tell their time in seconds.
    sleep(Duration::from_secs(2)).await;
    let ingest = TaskScope::default();
    palimpsest_wal_ingest::run(settings.clone(), &ingest).await?;
    let stopped = |view: &TimelineView| view.status.state == TimelineState::Stopped;
    let stopped = wait_for(services.cluster(), timeline, stopped).await?;
    ensure!(
        stopped.status.reason.contains("pal reattach"),
        "no way out is told: {}",
        stopped.status.reason
    );

    // Taken while the source works, and begun anew if whoever does it goes away.
    let work = source.work()?;
    let after = services.broker().reattach(timeline, another()).await?;
    let ingest = match random.random() {
        true => ingest,
        false => {
            sleep(Duration::from_millis(random.random_range(0..1500))).await;
            ingest.stop().await;
            let ingest = TaskScope::default();
            palimpsest_wal_ingest::run(settings, &ingest).await?;
            ingest
        }
    };
    let view = wait_for(services.cluster(), timeline, goes_on).await?;
    let lost = *view.status.lost.last().context("nothing was lost")?;
    eprintln!("{NAME}: lost after {} up to {}", lost.after, lost.up_to);
    ensure!(lost.after >= after && lost.after >= had, "{lost:?}");
    some_time(random).await;
    block_in_place(|| source.end(work))?;
    let later = "COMMIT PREPARED 'ends later'";
    block_in_place(|| source.cluster.psql("postgres", later))?;
    let rollback = "ROLLBACK PREPARED 'begins lost'";
    block_in_place(|| source.cluster.psql("postgres", rollback))?;
    let end = block_in_place(|| source.cluster.flush_lsn())?;
    let arrived = |view: &TimelineView| view.status.last_record >= end;
    services.wait_for(timeline, arrived).await?;
    let served = services.served(timeline).await?;
    refuses(&services, &served, (timeline, lost), judge).await?;
    for (time, is_lost) in [(before, false), (during, true), (SystemTime::now(), false)] {
        let found = served.client().lsn_at_time(timeline, time).await;
        judge.check(match (found, is_lost) {
            (Ok(_), false) => None,
            (Err(error), true) if error.reason == Some(Reason::Lost) => None,
            (found, _) => Some(format!("at {time:?} is {found:?}, lost {is_lost}")),
        });
    }

    block_in_place(|| source.cluster.stop())?;
    let log = source.whole_log()?;
    let segment = SegmentSize::new(u64::from(SEGMENT_MIB) << 20)?;
    let all = boundaries(log, backup.start(), segment, backup.end()..=end)?;
    // The last one is of no use: nothing comes after it that tells recovery that it was reached.
    let all: BTreeSet<Lsn> = all.into_iter().rev().skip(1).collect();
    let end_of_before = all.range(..=lost.after).next_back().copied();
    let later = all.range(lost.up_to..);
    let mut lsns: BTreeSet<Lsn> = later.clone().take(2).copied().collect();
    lsns.extend(later.sample(random, size.pick(1, 6)));
    lsns.extend(all.last());
    let recovery = Recovery {
        base: &backup.data_dir(),
        archive: log,
        options: &source.options,
    };
    compare_with_recovered(NAME, &served, recovery, end_of_before, judge).await?;
    let later = (&served, RecoveredTally::of_primary());
    compare_each(NAME, later, recovery, lsns, judge).await?;
    block_in_place(|| source.cluster.start())?;
    let expected = block_in_place(|| logged(&source.cluster))?;
    judge.check(is_whole(&served, (timeline, end), &source.options, &expected).await?);

    // Nothing is left at the source either.
    services.delete("judged").await?;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    let slots = block_in_place(|| source.cluster.psql("postgres", slots))?;
    ensure!(slots.trim() == "0", "a slot is left");
    ingest.stop().await;
    services.stop().await;
    Ok(())
}

/// A source goes back to a copy of its files and does something else, of which the log is as long: pages are not the same
/// because their LSNs are.
#[tokio::test(flavor = "multi_thread")]
async fn p1_a_source_that_was_set_back_is_not_mixed_with_what_was_there() {
    let seed = seed();
    eprintln!("{SET_BACK}: seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(SET_BACK, "P1");
    set_back(&mut random, &mut judge).await.unwrap();
    judge.close();
}

async fn set_back(random: &mut StdRng, judge: &mut Judge) -> Result<()> {
    let options = ClusterOptions {
        data_checksums: random.random(),
        wal_segment_size_mib: SEGMENT_MIB,
        autovacuum: false,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::temporary(options.clone())?;
    block_in_place(|| {
        cluster.start()?;
        cluster.psql(
            "postgres",
            "CREATE TABLE done (id int PRIMARY KEY, what text)",
        )
    })?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let conninfo = cluster.conninfo("postgres");
    let timeline = services.attach("judged", &conninfo).await?;
    let copy = files.path().join("copy");
    block_in_place(|| {
        cluster.psql(
            "postgres",
            "INSERT INTO done SELECT i, 'before' FROM generate_series(1, 3000) i",
        )?;
        cluster.stop()?;
        cluster.copy_data_dir(&copy)?;
        cluster.start()?;
        cluster.psql("postgres", &batch("one"))
    })?;
    let had = block_in_place(|| cluster.flush_lsn())?;
    let arrived = |view: &TimelineView| view.status.last_record >= had;
    wait_for(services.cluster(), timeline, arrived).await?;
    block_in_place(|| {
        cluster.stop()?;
        let data = cluster.data_dir();
        fs::remove_dir_all(data)?;
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(&copy)
            .arg(data)
            .status()?;
        ensure!(copied.success(), "the copy could not be put back");
        cluster.start()
    })?;
    let is_stopped = |view: &TimelineView| view.status.state == TimelineState::Stopped;
    let stopped = wait_for(services.cluster(), timeline, is_stopped)
        .await?
        .status;
    ensure!(stopped.reason.contains("set back"), "{}", stopped.reason);

    // Not before it has passed the end of what is here.
    services.broker().reattach(timeline, another()).await?;
    let again = |view: &TimelineView| is_stopped(view) && view.status.epoch != stopped.epoch;
    let early = wait_for(services.cluster(), timeline, again).await?.status;
    ensure!(early.reason.contains("set back"), "{}", early.reason);
    block_in_place(|| {
        cluster.psql("postgres", &batch("two"))?;
        while cluster.flush_lsn()? <= had {
            cluster.psql(
                "postgres",
                "INSERT INTO done SELECT max(id) + 1, 'more' FROM done",
            )?;
            cluster.psql("postgres", "SELECT pg_switch_wal()")?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    services.broker().reattach(timeline, another()).await?;
    wait_for(services.cluster(), timeline, goes_on).await?;
    let (expected, end) = block_in_place(|| {
        // Who reads sets hint bits, and logs pages for that.
        let dump = logged(&cluster)?;
        cluster.psql("postgres", "CHECKPOINT")?;
        Ok::<_, anyhow::Error>((dump, cluster.flush_lsn()?))
    })?;
    let arrived = |view: &TimelineView| view.status.last_record >= end;
    services.wait_for(timeline, arrived).await?;
    let served = services.served(timeline).await?;
    block_in_place(|| cluster.stop())?;
    let reference = DataFiles::read(cluster.data_dir())?;
    let engine = engine(options.data_checksums).await?;
    let oracle = Oracle::new(engine.clone());
    let mut tally = RecoveredTally::of_primary();
    compare_at(&served, &reference, end, &oracle, judge, &mut tally).await?;
    eprintln!("{SET_BACK}: at {end}: {tally:?}");
    engine.stop().await;
    judge.check(is_whole(&served, (timeline, end), &options, &expected).await?);
    services.stop().await;
    Ok(())
}

/// As long whatever it says.
fn batch(what: &str) -> String {
    format!(
        "INSERT INTO done SELECT i, '{what}' || i FROM generate_series(10001, 13000) i;
         UPDATE done SET what = '{what}' || id WHERE id < 1000;"
    )
}

/// It reads WAL again, and has come to the end of the base backup.
fn goes_on(view: &TimelineView) -> bool {
    let status = &view.status;
    let lost = status.lost.last();
    status.state == TimelineState::Streaming
        && lost.is_some_and(|lost| lost.up_to <= status.last_record)
}

/// Between the two ends nobody reads or branches.
async fn refuses(
    services: &Embedded,
    served: &ServedTimeline,
    (timeline, lost): (TimelineRef, Lost),
    judge: &mut Judge,
) -> Result<()> {
    let inside = [lost.after.get() + 8, lost.up_to.get() - 8].map(Lsn::new);
    let middle = Lsn::new(lost.after.get().midpoint(lost.up_to.get()) / 8 * 8);
    for lsn in inside.into_iter().chain([middle]) {
        let at = ReadAt {
            lsn: Some(lsn),
            ..ReadAt::default()
        };
        let read = served.client().relation_map(timeline, at, 1664, 0).await;
        judge.check(is_refused("read", lsn, read));
        let name = format!("at-{:x}", lsn.get());
        let mut broker = services.broker();
        let branch = broker.create_branch(timeline, &name, Some(lsn)).await;
        judge.check(is_refused("branch", lsn, branch));
    }
    Ok(())
}

fn is_refused<T>(what: &str, lsn: Lsn, answer: Result<T, RemoteError>) -> Option<String> {
    match answer {
        Err(error) if error.reason == Some(Reason::Lost) => None,
        Err(error) => Some(format!("{what} at {lsn}, which is lost: {error}")),
        Ok(_) => Some(format!("{what} at {lsn}, which is lost")),
    }
}

/// A stock PostgreSQL starts from what is there, has what is expected, and finds nothing wrong.
async fn is_whole(
    served: &ServedTimeline,
    (timeline, end): (TimelineRef, Lsn),
    options: &ClusterOptions,
    expected: &str,
) -> Result<Option<String>> {
    let export = Export::of(served, request(timeline, end)).await?;
    let data = export.data_dir();
    let directory = data.parent().context("a directory of its own")?;
    block_in_place(|| {
        trust(&data)?;
        let mut cluster = Cluster::open(directory, options.clone())?;
        cluster.start()?;
        let dumped = logged(&cluster)?;
        if dumped != expected {
            return Ok(Some(difference(expected, Some(&dumped))));
        }
        // Bits of the map, of pages that don't say so themselves: PostgreSQL would forget to clear them.
        cluster.psql("postgres", "CREATE EXTENSION pg_visibility")?;
        let invisible =
            "SELECT string_agg(oid::regclass::text, ' ') FROM pg_class, pg_check_visible(oid)
            WHERE relkind IN ('r', 'm', 't') AND relpersistence <> 'u'";
        let invisible = cluster.psql("postgres", invisible)?;
        let unmarked = "SELECT string_agg(oid::regclass::text || ' ' || blkno, ', ')
            FROM pg_class, pg_visibility(oid)
            WHERE relkind IN ('r', 'm', 't') AND relpersistence <> 'u' AND all_visible AND NOT pd_all_visible";
        let unmarked = cluster.psql("postgres", unmarked)?;
        if let Some(wrong) = [invisible, unmarked]
            .iter()
            .find(|found| !found.trim().is_empty())
        {
            return Ok(Some(format!("the visibility map is wrong about {wrong}")));
        }
        amcheck(&cluster)
    })
}

/// Waits also while it is stopped.
async fn wait_for(
    cluster: &watch::Receiver<ClusterView>,
    timeline: TimelineRef,
    arrived: impl Fn(&TimelineView) -> bool,
) -> Result<TimelineView> {
    let mut waiting = cluster.clone();
    let arrived = waiting.wait_for(|view| view.timeline(timeline).is_some_and(&arrived));
    let Ok(view) = timeout(PATIENCE, arrived).await else {
        bail!(
            "it does not come: {:?}",
            cluster.borrow().timeline(timeline)
        );
    };
    let view = view?.timeline(timeline).cloned();
    view.context("the timeline is gone")
}

/// What the log has of a cluster's content. Of sequences that is values ahead, as after a crash.
fn logged(cluster: &Cluster) -> Result<String> {
    let dump = dump(cluster, &["--no-unlogged-table-data"])?;
    let lines = dump.lines().filter(|line| !line.contains("setval("));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

async fn some_time(random: &mut StdRng) {
    sleep(Duration::from_millis(random.random_range(500..2000))).await;
}

/// A request that is not another's repetition.
fn another() -> RequestId {
    RequestId::from_bytes(rand::random())
}
