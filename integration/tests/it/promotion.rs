//! P1 over promotions of the source's standbys.
//!
//! A primary dies and a standby goes on with its history, under another PostgreSQL timeline. Here that happens twice
//! while the services read from "whichever of the three hosts is the primary": the first time they are behind what the
//! standby has, and whom they read from comes back as if nothing had happened; the second time in good order. And once the
//! standby that is promoted lacks what the services have: then nothing is mixed.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::chown,
    path::Path,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    TimelineRef,
    broker::{MAIN, TimelineState, TimelineView},
};
use palimpsest_integration::{
    cable::Cable,
    embedded::{Embedded, ServedTimeline},
    judge::{Judge, JudgeSize, seed},
    oracle::boundaries,
    recovered::{BackupTap, BaseBackup, Recovery},
};
use palimpsest_postgres::TimelineHistory;
use palimpsest_redo_postgres::RunAs;
use palimpsest_runtime::TaskScope;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::Lsn;
use palimpsest_wal::SegmentSize;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tokio::{
    task::block_in_place,
    time::{sleep, timeout},
};

use crate::{
    exports::{Export, amcheck, request, trust},
    support::compare_with_recovered,
};

mod steps;

const NAME: &str = "promotion";
const LEFT: &str = "promotion-behind";
const SEGMENT_MIB: u32 = 2;
/// As fast as it goes.
const KIB_PER_SECOND: u32 = 1 << 20;
/// How long whoever follows another one may take.
const PATIENCE: Duration = Duration::from_secs(60);

const MAKE: &str = "CREATE TABLE kept (id serial PRIMARY KEY, n int, tags int[], v text);
    CREATE INDEX kept_gin ON kept USING gin (tags);
    CREATE INDEX kept_hash ON kept USING hash (v);
    CREATE SEQUENCE counted;";

/// Goes on until the server dies, with some megabytes a second.
const WORK: &str = "DO $$ BEGIN LOOP
        INSERT INTO kept (n, tags, v)
            SELECT i, ARRAY[i % 7, i], md5(random()::text) FROM generate_series(1, 200) i;
        UPDATE kept SET n = n + 1 WHERE id % 11 = 0;
        DELETE FROM kept WHERE id % 17 = 3 AND id < (SELECT max(id) FROM kept) - 5000;
        PERFORM nextval('counted');
        COMMIT;
        PERFORM pg_sleep(0.02);
    END LOOP; END $$";

/// A primary and what follows it.
pub(crate) struct Standby {
    pub(crate) cluster: Cluster,
    /// Where its files are.
    _backup: BaseBackup,
}

impl Standby {
    /// A standby, made from `primary`, which reads what comes from the server of a connection string.
    pub(crate) fn of(primary: &Cluster, conninfo: &str, options: &ClusterOptions) -> Result<Self> {
        let backup = BaseBackup::take(primary, KIB_PER_SECOND)?;
        let data = backup.data_dir();
        let signal = data.join("standby.signal");
        fs::write(&signal, "")?;
        if let Some(RunAs { uid, gid }) = RunAs::unprivileged()? {
            chown(&signal, Some(uid), Some(gid))?;
        }
        let options = options.clone().with("primary_conninfo", conninfo);
        let directory = data.parent().context("a directory of its own")?;
        let mut cluster = Cluster::open(directory, options)?;
        cluster.start()?;
        Ok(Self {
            cluster,
            _backup: backup,
        })
    }

    /// Makes it the primary; says where its own history begins.
    pub(crate) fn promote(&self, timeline: u32) -> Result<Lsn> {
        // Not with one that waits: its snapshot is in the way of what is still to be replayed, until it is cancelled.
        let promoted = self
            .cluster
            .psql("postgres", "SELECT pg_promote(wait => false)")?;
        ensure!(promoted.trim() == "t", "it was not promoted");
        self.wait_until("NOT pg_is_in_recovery()")?;
        let history = self.cluster.data_dir().join("pg_wal");
        let history = fs::read_to_string(history.join(format!("{timeline:08X}.history")))?;
        let line = history.lines().rfind(|line| !line.trim().is_empty());
        let at = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(at.context("the history has no switch")?.parse()?)
    }

    /// Until it has what its primary wrote before `end`, which tells also that it follows whatever timeline that is of.
    ///
    /// A primary that is stopped waits for standbys that are connected, and one that looks for the next timeline is not: it
    /// comes back after `wal_retrieve_retry_interval`, to nobody.
    fn wait_for(&self, end: Lsn) -> Result<()> {
        self.wait_until(&format!("pg_last_wal_receive_lsn() >= '{end}'"))
    }

    fn wait_until(&self, condition: &str) -> Result<()> {
        let begun = Instant::now();
        let condition = format!("SELECT {condition}");
        while self.cluster.psql("postgres", &condition)?.trim() != "t" {
            ensure!(begun.elapsed() < PATIENCE, "in vain: {condition}");
            #[expect(clippy::disallowed_methods, reason = "whoever calls this is not async")]
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Work that ends with the server.
fn work_on(cluster: &Cluster) -> Result<JoinHandle<Result<String>>> {
    let mut session = cluster.session("postgres")?;
    Ok(std::thread::spawn(move || session.run(WORK)))
}

fn ended(work: JoinHandle<Result<String>>) -> Result<()> {
    let outcome = block_in_place(|| work.join());
    ensure!(
        outcome.is_ok_and(|outcome| outcome.is_err()),
        "the work ended before the server"
    );
    Ok(())
}

fn options(random: &mut StdRng) -> ClusterOptions {
    ClusterOptions {
        data_checksums: random.random(),
        wal_segment_size_mib: SEGMENT_MIB,
        autovacuum: false,
        ..ClusterOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_timeline_goes_on_with_the_standby_that_is_promoted() {
    let size = JudgeSize::from_env();
    let seed = seed();
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(NAME, "P1");
    for _ in 0..size.pick(1, 6) {
        follow_twice(&mut random, size, &mut judge).await.unwrap();
    }
    judge.close();
}

async fn follow_twice(random: &mut StdRng, size: JudgeSize, judge: &mut Judge) -> Result<()> {
    let options = options(random);
    let mut first = Cluster::temporary(options.clone())?;
    block_in_place(|| {
        first.start()?;
        first.psql("postgres", MAKE)
    })?;
    let at_first = first.conninfo("postgres");
    let mut second = block_in_place(|| Standby::of(&first, &at_first, &options))?;
    // From the second alone, so that it is never ahead of that.
    let at_second = second.cluster.conninfo("postgres");
    let third = block_in_place(|| Standby::of(&first, &at_second, &options))?;

    let tap = BackupTap::to(first.socket_dir(), first.port())?;
    let to_first = Cable::to(tap.socket_dir(), first.port())?;
    let to_second = Cable::to(second.cluster.socket_dir(), first.port())?;
    let directories = [
        to_first.directory(),
        to_second.directory(),
        third.cluster.socket_dir(),
    ];
    let hosts = hosts_of(directories, &first);
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
    let ingest = TaskScope::default();
    services.start_wal_ingest(&ingest).await?;
    let work = work_on(&first)?;
    let timeline = services.attach("judged", &hosts).await?;
    let backup = block_in_place(|| tap.take_backup())?;
    some_time(random).await;

    // What the second has and the services don't is of the first's timeline.
    to_first.unplug();
    some_time(random).await;
    block_in_place(|| first.kill9())?;
    ended(work)?;
    let begins_second = block_in_place(|| second.promote(2))?;
    let had = services.status(timeline)?.flushed;
    eprintln!("{NAME}: the second is promoted at {begins_second}, and we have all before {had}");
    ensure!(
        had < begins_second,
        "nothing of the first's was left to read"
    );
    let work = work_on(&second.cluster)?;
    // Whoever goes on finds it at any step.
    sleep(Duration::from_millis(random.random_range(0..1500))).await;
    ingest.stop().await;
    let ingest = TaskScope::default();
    let mut settings = services.wal_ingest_settings();
    if random.random() {
        // With its disk, but for what the servers still have.
        settings.data = files.path().join("another");
    }
    palimpsest_wal_ingest::run(settings, &ingest).await?;
    some_time(random).await;
    let end = block_in_place(|| second.cluster.flush_lsn())?;
    wait_for(&services, timeline, end).await?;

    // The first comes back, and does not know.
    block_in_place(|| {
        first.start()?;
        first.psql(
            "postgres",
            "INSERT INTO kept (n) SELECT generate_series(1, 1000)",
        )
    })?;
    to_first.plug_in();
    to_second.unplug();
    some_time(random).await;
    to_second.plug_in();
    some_time(random).await;

    block_in_place(|| {
        third.wait_for(second.cluster.flush_lsn()?)?;
        second.cluster.stop()
    })?;
    ended(work)?;
    let begins_third = block_in_place(|| third.promote(3))?;
    eprintln!("{NAME}: the third is promoted at {begins_third}");
    let work = work_on(&third.cluster)?;
    some_time(random).await;
    let mut third = third.cluster;
    block_in_place(|| third.kill9())?;
    ended(work)?;
    block_in_place(|| third.start())?;
    let end = block_in_place(|| third.flush_lsn())?;
    wait_for(&services, timeline, end).await?;
    expect_slot(&third).await?;
    block_in_place(|| third.stop())?;
    block_in_place(|| first.stop())?;

    let pg_wal = third.data_dir().join("pg_wal");
    let switches = [begins_second, begins_third];
    let lsns = some_lsns(&pg_wal, (&backup, end), &switches, size.pick(1, 6), random)?;
    let served = services.served(timeline).await?;
    let recovery = Recovery {
        base: &backup.data_dir(),
        archive: &pg_wal,
        options: &options,
    };
    compare_with_recovered(NAME, &served, recovery, lsns, judge).await?;
    let history = [(1, begins_second), (2, begins_third), (3, end)];
    let finding = is_left_by(&served, (timeline, &options), &history, judge).await?;
    judge.check(finding);
    ingest.stop().await;
    services.stop().await;
    Ok(())
}

/// A standby that lacks what is here is promoted: what it has since is read under the same name, and what it never had
/// stays as it was.
#[tokio::test(flavor = "multi_thread")]
async fn p1_a_promotion_from_before_our_end_is_not_mixed_with_what_we_have() {
    let seed = seed();
    eprintln!("{LEFT}: seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(LEFT, "P1");
    left_behind(&mut random, &mut judge).await.unwrap();
    judge.close();
}

async fn left_behind(random: &mut StdRng, judge: &mut Judge) -> Result<()> {
    let options = options(random);
    let mut first = Cluster::temporary(options.clone())?;
    block_in_place(|| {
        first.start()?;
        first.psql("postgres", MAKE)
    })?;
    let between = Cable::to(first.socket_dir(), first.port())?;
    let primary = between.conninfo("postgres");
    let mut second = block_in_place(|| Standby::of(&first, &primary, &options))?;
    let tap = BackupTap::to(first.socket_dir(), first.port())?;
    let hosts = hosts_of([tap.socket_dir(), second.cluster.socket_dir()], &first);
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let work = work_on(&first)?;
    let old = services.attach("judged", &hosts).await?;
    let backup = block_in_place(|| tap.take_backup())?;
    some_time(random).await;
    between.unplug();
    some_time(random).await;
    // Or it lives on, is read on, and somebody finds out.
    let is_dead: bool = random.random();
    if is_dead {
        block_in_place(|| first.kill9())?;
    }
    let begins = block_in_place(|| second.promote(2))?;
    let work_on_second = work_on(&second.cluster)?;

    let goes_on = |view: &TimelineView| {
        let timeline = view.timeline;
        (view.timeline_name == MAIN && timeline != old).then_some(timeline)
    };
    let mut cluster = services.cluster().clone();
    let found = cluster.wait_for(|view| view.timelines.iter().any(|view| goes_on(view).is_some()));
    let found = timeout(PATIENCE, found).await.context("nobody goes on")??;
    let new = found.timelines.iter().find_map(goes_on);
    let new = new.context("it went away")?;
    drop(found);
    if !is_dead {
        block_in_place(|| first.kill9())?;
    }
    ended(work)?;
    some_time(random).await;
    block_in_place(|| second.cluster.kill9())?;
    ended(work_on_second)?;
    block_in_place(|| second.cluster.start())?;
    let end = block_in_place(|| second.cluster.flush_lsn())?;
    wait_for(&services, new, end).await?;
    expect_slot(&second.cluster).await?;
    block_in_place(|| second.cluster.stop())?;

    let left = services
        .wait_for(old, |view| view.status.state == TimelineState::Idle)
        .await?;
    let kept = left.status.last_record;
    eprintln!("{LEFT}: promoted at {begins}, and we had all before {kept}; dead {is_dead}");
    ensure!(kept > begins, "the standby had all");
    ensure!(
        left.timeline_name == format!("{MAIN}@{begins}"),
        "what was left is called {}",
        left.timeline_name
    );
    for (timeline, cluster, end) in [(old, &first, kept), (new, &second.cluster, end)] {
        let pg_wal = cluster.data_dir().join("pg_wal");
        let lsns = some_lsns(&pg_wal, (&backup, end), &[begins], 1, random)?;
        let served = services.served(timeline).await?;
        let recovery = Recovery {
            base: &backup.data_dir(),
            archive: &pg_wal,
            options: &options,
        };
        compare_with_recovered(LEFT, &served, recovery, lsns, judge).await?;
    }
    // Nothing is left of it at the source either.
    block_in_place(|| second.cluster.start())?;
    services.delete("judged").await?;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    let slots = block_in_place(|| second.cluster.psql("postgres", slots))?;
    ensure!(slots.trim() == "0", "a slot is left");
    services.stop().await;
    Ok(())
}

/// A stock PostgreSQL starts from what is there at the end of a history, and knows all of that.
async fn is_left_by(
    served: &ServedTimeline,
    (timeline, options): (TimelineRef, &ClusterOptions),
    history: &[(u32, Lsn)],
    judge: &mut Judge,
) -> Result<Option<String>> {
    let end = history.last().map_or(Lsn::ZERO, |(_, end)| *end);
    let request = request(timeline, end);
    let export = Export::of(served, request).await?;
    export.verify(options.data_checksums, end, judge)?;
    let name = format!(
        "{:08X}.history",
        request.postgres_timeline.unwrap_or_default()
    );
    let text = fs::read_to_string(export.data_dir().join("pg_wal").join(&name))?;
    let told = TimelineHistory::parse(&name, &text)?;
    let told = told.ancestors.iter();
    let told: Vec<_> = told.map(|left| (left.timeline, left.end)).collect();
    if told != history {
        return Ok(Some(format!("{told:?} is told of {history:?}")));
    }
    let data = export.data_dir();
    let directory = data.parent().context("a directory of its own")?;
    block_in_place(|| {
        trust(&data)?;
        let mut cluster = Cluster::open(directory, options.clone())?;
        cluster.start()?;
        amcheck(&cluster)
    })
}

/// Around promotions, at random, and the end.
fn some_lsns(
    pg_wal: &Path,
    (backup, end): (&BaseBackup, Lsn),
    switches: &[Lsn],
    count: usize,
    random: &mut StdRng,
) -> Result<BTreeSet<Lsn>> {
    let segment = SegmentSize::new(u64::from(SEGMENT_MIB) << 20)?;
    let all = boundaries(pg_wal, backup.start(), segment, backup.end()..=end)?;
    // The last one is of no use: nothing comes after it that tells recovery that it was reached.
    let all: BTreeSet<Lsn> = all.into_iter().rev().skip(1).collect();
    ensure!(
        switches.iter().all(|at| all.contains(at)),
        "a timeline begins where no record ends"
    );
    let around = switches.iter().flat_map(|at| all.range(at..).take(2));
    let mut lsns: BTreeSet<Lsn> = around.copied().collect();
    lsns.extend(all.iter().sample(random, count));
    lsns.extend(all.last());
    Ok(lsns)
}

/// How whichever of several hosts is the primary is reached.
pub(crate) fn hosts_of<const N: usize>(directories: [&Path; N], any: &Cluster) -> String {
    let directories = directories.map(|directory| directory.display().to_string());
    let (hosts, port) = (directories.join(","), any.port());
    format!("host={hosts} port={port} user=postgres")
}

async fn some_time(random: &mut StdRng) {
    sleep(Duration::from_millis(random.random_range(500..2000))).await;
}

async fn wait_for(services: &Embedded, timeline: TimelineRef, end: Lsn) -> Result<()> {
    let arrived = |view: &TimelineView| view.status.last_record >= end;
    services.wait_for(timeline, arrived).await.map(drop)
}

/// The slot is at the server that was promoted.
async fn expect_slot(cluster: &Cluster) -> Result<()> {
    let begun = Instant::now();
    loop {
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE restart_lsn IS NOT NULL";
        if block_in_place(|| cluster.psql("postgres", slots))?.trim() == "1" {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "there is no slot at the new primary"
        );
        sleep(Duration::from_millis(200)).await;
    }
}
