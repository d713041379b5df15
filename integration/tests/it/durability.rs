//! What survives: of a power cut on the local disk, of the loss of that disk, of an object store
//! that fails.

use std::{
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{TimelineRef, broker::TimelineState};
use palimpsest_disk::{LossyDisk, OsDisk, Survival};
use palimpsest_integration::{
    cable::Cable,
    embedded::{Embedded, ServedTimeline},
    judge::{Judge, JudgeSize, seed},
    oracle::{Oracle, PageSource as _, RecoveredTally, compare_at},
    recovered::{BaseBackup, Recovery},
};
use palimpsest_runtime::TaskScope;
use palimpsest_store::{
    ObjectStore,
    faulty::{Fault, FaultyStore},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{ByteCount, Lsn};
use palimpsest_wal_ingest::{Backing, Settings, run_on};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::block_in_place;

use crate::support::engine;

const UNHURRIED: u32 = 1 << 20;
/// A power cut comes within so many durable operations, at the latest after this time.
const OPERATIONS: u64 = 60;
const LATEST: Duration = Duration::from_secs(6);
/// A source that is told to stop must not wait for us.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A primary with a backup of its beginning, which the cable leads to.
pub(crate) struct Source {
    pub(crate) cluster: Cluster,
    options: ClusterOptions,
    backup: BaseBackup,
    pub(crate) cable: Cable,
}

impl Source {
    pub(crate) fn start() -> Result<Self> {
        let options = ClusterOptions::default();
        let mut cluster = Cluster::temporary(options.clone())?;
        cluster.start()?;
        cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"])?;
        let backup = BaseBackup::take(&cluster, UNHURRIED)?;
        let cable = Cable::to(cluster.socket_dir(), cluster.port())?;
        Ok(Self {
            cluster,
            options,
            backup,
            cable,
        })
    }

    /// Writes, so that a power cut always has something to hit.
    pub(crate) fn write(&self, seconds: u32) -> Result<()> {
        let time = format!("--time={seconds}");
        self.cluster
            .pgbench(&["--client=2", "--no-vacuum", &time, "postgres"])
            .map(drop)
    }

    /// Compares every page at some LSNs; the last of them is the end.
    pub(crate) async fn judge(
        &mut self,
        services: &Embedded,
        timeline: TimelineRef,
        lsns: &[Lsn],
        judge: &mut Judge,
    ) -> Result<()> {
        let served = services.served(timeline).await?;
        self.judge_served(&[served], lsns, judge).await
    }

    /// The same, of several page-serves.
    pub(crate) async fn judge_served(
        &mut self,
        served: &[ServedTimeline],
        lsns: &[Lsn],
        judge: &mut Judge,
    ) -> Result<()> {
        // The archive must hold WAL beyond the last LSN; the shutdown writes some.
        block_in_place(|| self.cluster.stop())?;
        let pg_wal = self.cluster.data_dir().join("pg_wal");
        let engine = engine(self.options.data_checksums).await?;
        let oracle = Oracle::new(engine.clone());
        for lsn in lsns {
            let recovery = Recovery {
                base: &self.backup.data_dir(),
                archive: &pg_wal,
                options: &self.options,
            };
            let reference = block_in_place(|| recovery.to(*lsn))
                .with_context(|| format!("recovering to {lsn}"))?;
            let mut tally = RecoveredTally::default();
            let files = reference.files();
            for served in served {
                compare_at(served, files, *lsn, &oracle, judge, &mut tally).await?;
            }
        }
        engine.stop().await;
        Ok(())
    }
}

/// A wal-ingest that can be ended alone.
pub(crate) async fn start_ingest(
    services: &Embedded,
    backing: Backing,
    settings: Settings,
) -> Result<TaskScope> {
    let scope = services.scope().child();
    run_on(backing, settings, &scope).await?;
    Ok(scope)
}

async fn backing_of(services: &Embedded) -> Result<Backing> {
    Ok(Backing {
        disk: Arc::new(OsDisk),
        store: ObjectStore::open(&services.store()).await?,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_what_was_flushed_survives_a_power_cut() {
    power_cuts().await.unwrap();
}

async fn power_cuts() -> Result<()> {
    const NAME: &str = "power-cut";
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
    let local = files.path().join("local");
    std::fs::create_dir(&local)?;
    let disk = LossyDisk::new(&local)?;
    let backing = Backing {
        disk: Arc::new(disk.clone()),
        ..backing_of(&services).await?
    };
    let settings = Settings {
        data: local,
        // Layers all the time, so that cuts fall into every step of them.
        layer_size: ByteCount::kib(512),
        layer_age: Duration::from_secs(1),
        ..services.wal_ingest_settings()
    };
    let mut ingest = start_ingest(&services, backing.clone(), settings.clone()).await?;
    let conninfo = source.cable.conninfo("postgres");
    let timeline = services.attach("cut", &conninfo).await?;

    let mut judge = Judge::new(NAME, "P2");
    let mut middle = Lsn::ZERO;
    let done = AtomicBool::new(false);
    let rounds = size.pick(6, 60);
    let cutting = async {
        for round in 0..rounds {
            disk.crash_at(disk.durable_operations() + random.random_range(1..=OPERATIONS));
            let begun = Instant::now();
            while !disk.is_crashed() && begun.elapsed() < LATEST {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            disk.crash();
            source.cable.unplug();
            ingest.stop().await;
            let before = services.status(timeline)?;
            let survival = match round % 2 {
                0 => Survival::Nothing,
                _ => Survival::Some(random.random()),
            };
            disk.recover(survival)?;
            ingest = start_ingest(&services, backing.clone(), settings.clone()).await?;
            // The source is out of reach: what is here now has survived here.
            let resumed = services.wait_for(timeline, |view| {
                view.status.epoch > before.epoch && view.status.state == TimelineState::Disconnected
            });
            let after = resumed.await?.status;
            judge.check((after.last_record < before.last_record).then(|| {
                format!(
                    "{survival:?}: {} was there, {} is",
                    before.last_record, after.last_record
                )
            }));
            judge.check(
                (after.remote_consistent < before.remote_consistent)
                    .then(|| format!("the object store went back to {}", after.remote_consistent)),
            );
            eprintln!(
                "{NAME}: cut at operation {}, {} is there",
                disk.durable_operations(),
                after.last_record
            );
            middle = after.last_record;
            source.cable.plug_in();
            services
                .wait_for(timeline, |view| {
                    view.status.state == TimelineState::Streaming
                        && view.status.last_record > after.last_record
                })
                .await?;
        }
        done.store(true, Ordering::SeqCst);
        Ok::<_, anyhow::Error>(())
    };
    let writing = async {
        while !done.load(Ordering::SeqCst) {
            block_in_place(|| source.write(1))?;
            tokio::task::yield_now().await;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::try_join!(cutting, writing)?;

    let end = block_in_place(|| source.cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    source
        .judge(&services, timeline, &[middle, end], &mut judge)
        .await?;
    judge.close();
    services.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_local_wal_is_the_sources_own_bytes() {
    local_wal().await.unwrap();
}

/// Right after the attach, and after the local disk was lost: both begin within a segment.
async fn local_wal() -> Result<()> {
    let mut source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
    let settings = Settings {
        layer_age: Duration::from_secs(3600),
        ..services.wal_ingest_settings()
    };
    let local = settings.data.clone();
    let backing = backing_of(&services).await?;
    let mut ingest = start_ingest(&services, backing.clone(), settings.clone()).await?;
    let conninfo = source.cable.conninfo("postgres");
    let timeline = services.attach("same", &conninfo).await?;
    for _ in 0..2 {
        block_in_place(|| source.write(1))?;
        let end = block_in_place(|| source.cluster.flush_lsn())?;
        services
            .wait_for(timeline, |view| view.status.last_record >= end)
            .await?;
        ingest.stop().await;
        let compared = compare_segments(&local, &source.cluster.data_dir().join("pg_wal"))?;
        ensure!(compared > 0, "there is no local WAL");
        std::fs::remove_dir_all(&local)?;
        ingest = start_ingest(&services, backing.clone(), settings.clone()).await?;
    }

    // A power cut may leave zeros where bytes were not fsynced.
    block_in_place(|| source.write(1))?;
    let end = block_in_place(|| source.cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    ingest.stop().await;
    append_zeros(&local)?;
    start_ingest(&services, backing, settings).await?;
    block_in_place(|| source.write(1))?;
    let later = block_in_place(|| source.cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.last_record >= later)
        .await?;
    let mut judge = Judge::new("local-wal", "P2");
    source
        .judge(&services, timeline, &[end, later], &mut judge)
        .await?;
    judge.close();
    services.stop().await;
    Ok(())
}

/// Puts zeros behind the newest segment file below a directory.
fn append_zeros(local: &Path) -> Result<()> {
    let mut newest = None;
    let mut directories = vec![local.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.metadata()?.is_dir() {
                directories.push(entry.path());
            } else if directory.ends_with("pg_wal") {
                newest = newest.max(Some(entry.path()));
            }
        }
    }
    let path = newest.context("there is no local WAL")?;
    let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
    Ok(file.write_all(&[0; 40_000])?)
}

/// Compares all segment files below a directory with those of the source; returns how many.
fn compare_segments(local: &Path, pg_wal: &Path) -> Result<usize> {
    let mut compared = 0;
    for entry in std::fs::read_dir(local)? {
        let entry = entry?;
        if entry.metadata()?.is_dir() {
            compared += compare_segments(&entry.path(), pg_wal)?;
        } else if local.ends_with("pg_wal") {
            let ours = std::fs::read(entry.path())?;
            let theirs = std::fs::read(pg_wal.join(entry.file_name()))?;
            ensure!(theirs.starts_with(&ours), "{:?} differs", entry.file_name());
            compared += 1;
        }
    }
    Ok(compared)
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_wal_that_changes_nothing_is_history_too() {
    idle().await.unwrap();
}

/// A layer without changes must not stand in the way of anybody who opens the timeline.
async fn idle() -> Result<()> {
    let source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let conninfo = source.cable.conninfo("postgres");
    let timeline = services.attach("idle", &conninfo).await?;
    let mut end = Lsn::ZERO;
    for _ in 0..2 {
        let message = "SELECT pg_logical_emit_message(false, 'idle', 'nothing')";
        block_in_place(|| source.cluster.psql("postgres", message))?;
        end = block_in_place(|| source.cluster.flush_lsn())?;
        services
            .wait_for(timeline, |view| view.status.remote_consistent >= end)
            .await?;
    }
    services.stop().await;

    let services = Embedded::start(files.path()).await?;
    services
        .wait_for(timeline, |view| {
            view.status.state == TimelineState::Streaming
        })
        .await?;
    let relations = services.served(timeline).await?.relations(end).await?;
    ensure!(!relations.is_empty(), "nothing can be read");
    services.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_what_the_object_store_has_survives_the_loss_of_the_local_disk() {
    disk_loss().await.unwrap();
}

async fn disk_loss() -> Result<()> {
    let mut source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let conninfo = source.cable.conninfo("postgres");
    let timeline = services.attach("lost", &conninfo).await?;
    block_in_place(|| source.write(3))?;
    let end = block_in_place(|| source.cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.remote_consistent >= end)
        .await?;
    services.stop().await;
    std::fs::remove_dir_all(files.path().join("wal-ingest"))?;

    // Without any wal-ingest, and without the source.
    source.cable.unplug();
    let services = Embedded::start_without_wal_ingest(files.path()).await?;
    let mut judge = Judge::new("disk-loss", "P3");
    source
        .judge(&services, timeline, &[end], &mut judge)
        .await?;
    judge.close();

    // With both it goes on, from what the slot has kept.
    block_in_place(|| source.cluster.start())?;
    source.cable.plug_in();
    services.start_wal_ingest(services.scope()).await?;
    block_in_place(|| source.write(1))?;
    let end = block_in_place(|| source.cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.remote_consistent >= end)
        .await?;
    services.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_with_the_object_store_away_ingest_pauses_and_goes_on_by_itself() {
    store_faults().await.unwrap();
}

async fn store_faults() -> Result<()> {
    let mut source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
    let (faulty, store) = FaultyStore::in_directory(&services.store()).await?;
    let disk = Arc::new(OsDisk);
    let backing = Backing { disk, store };
    let settings = Settings {
        memory: ByteCount::mib(16),
        local_disk: ByteCount::mib(64),
        layer_size: ByteCount::mib(1),
        layer_age: Duration::from_secs(1),
        ..services.wal_ingest_settings()
    };
    start_ingest(&services, backing, settings).await?;
    let conninfo = source.cable.conninfo("postgres");
    let timeline = services.attach("faulty", &conninfo).await?;

    // A lost answer is no lost layer, and a slow store is only slow.
    for fault in [Fault::LoseAnswers, Fault::Slow] {
        faulty.set(fault);
        let begin = services.status(timeline)?.remote_consistent;
        block_in_place(|| source.write(2))?;
        services
            .wait_for(timeline, |view| view.status.remote_consistent > begin)
            .await?;
    }

    faulty.set(Fault::Refuse);
    let mut written = 0;
    // For memory it may pause for a moment, until a local layer is written.
    loop {
        let status = services.status(timeline)?;
        if status.state == TimelineState::Paused && status.reason.contains("local disk") {
            break;
        }
        ensure!(written < 100, "it never pauses: {status:?}");
        block_in_place(|| source.write(1))?;
        written += 1;
    }
    let held = size_below(&files.path().join("wal-ingest"))?;
    ensure!(held < ByteCount::mib(80), "{held} are held");
    let begun = Instant::now();
    block_in_place(|| source.cluster.stop())?;
    let stopped = begun.elapsed();
    eprintln!("paused after {written} s, holding {held}; the source stops in {stopped:?}");
    ensure!(stopped < STOP_LIMIT, "the source took {stopped:?} to stop");
    block_in_place(|| source.cluster.start())?;

    faulty.set(Fault::None);
    let end = block_in_place(|| source.cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| {
            view.status.state == TimelineState::Streaming && view.status.remote_consistent >= end
        })
        .await?;
    let mut judge = Judge::new("store-faults", "P9");
    source
        .judge(&services, timeline, &[end], &mut judge)
        .await?;
    judge.close();
    services.stop().await;
    Ok(())
}

fn size_below(path: &Path) -> Result<ByteCount> {
    let mut size = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        size += match metadata.is_dir() {
            true => size_below(&entry.path())?.get(),
            false => metadata.len(),
        };
    }
    Ok(ByteCount::new(size))
}
