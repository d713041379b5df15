//! P9: a disk that is full, before our own allowance for it is used up or anywhere in a write, costs
//! no byte and does not hold the source back; with room again all goes on without a hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    TimelineRef,
    broker::{TimelineState, TimelineStatus},
};
use palimpsest_disk::{Disk, DiskStep, FullDisk, OsDisk};
use palimpsest_integration::{embedded::Embedded, judge::Judge, processes::Layers};
use palimpsest_store::{
    ObjectStore,
    faulty::{Fault, FaultyStore},
};
use palimpsest_types::{ByteCount, Lsn};
use palimpsest_wal_ingest::{Backing, Settings, run_on};
use tokio::task::block_in_place;

use crate::durability::Source;

const NAME: &str = "disk-full";
const STEPS: &str = "disk-full-steps";
const STORE: &str = "disk-full-store";
/// A source that is told to stop must not wait for us.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// What any of the disks here has room for, in a number of statements.
const STATEMENTS: usize = 150;
/// For whole segments, and what an attach brings.
const ROOM_BESIDE: ByteCount = ByteCount::mib(48);
/// Some MB of WAL.
const FILL: &str =
    "INSERT INTO bulk SELECT repeat(md5(i::text), 20) FROM generate_series(1, 5000) i";

/// A file system of its own, in memory. It takes root.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Why there is none goes into the judge's line, which is counted.
    fn mount(judge: &str, at: &Path, size: ByteCount) -> Option<Self> {
        fs::create_dir_all(at).ok()?;
        let options = format!("size={}", size.get());
        match mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], at) {
            Ok(()) => Some(Self(at.to_owned())),
            Err(error) => {
                eprintln!("judge {judge}: skipped, because nothing can be mounted: {error:#}");
                None
            }
        }
    }

    fn grow(&self, size: ByteCount) -> Result<()> {
        let options = format!("remount,size={}", size.get());
        mount(&["-o", &options], &self.0)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Files that are still open go with their owners.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(options: &[&str], at: &Path) -> Result<()> {
    let output = Command::new("mount").args(options).arg(at).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", said.trim());
    Ok(())
}

/// Everything but wal-ingest, and a store that can be away.
struct Scene {
    source: Source,
    services: Embedded,
    faulty: Arc<FaultyStore>,
    store: ObjectStore,
}

impl Scene {
    async fn set(files: &Path) -> Result<Self> {
        let source = block_in_place(Source::start)?;
        let services = Embedded::start_without_wal_ingest(files).await?;
        let (faulty, store) = FaultyStore::in_directory(&services.store()).await?;
        Ok(Self {
            source,
            services,
            faulty,
            store,
        })
    }

    async fn attach(&mut self, disk: Arc<dyn Disk>, settings: Settings) -> Result<TimelineRef> {
        let backing = Backing {
            disk,
            store: self.store.clone(),
        };
        run_on(backing, settings, self.services.scope()).await?;
        let conninfo = self.source.cluster.conninfo("postgres");
        let timeline = self.services.attach("full", &conninfo).await?;
        // What was read after it was written has hints that no WAL tells of.
        block_in_place(|| {
            let sql = "CREATE TABLE bulk (t text)";
            self.source.cluster.psql("postgres", sql)
        })?;
        Ok(timeline)
    }

    fn fill(&self) -> Result<()> {
        block_in_place(|| self.source.cluster.psql("postgres", FILL)).map(drop)
    }

    /// Writes until the timeline pauses because of the disk itself.
    async fn fill_up(&self, timeline: TimelineRef) -> Result<TimelineStatus> {
        for _ in 0..STATEMENTS {
            let status = self.services.status(timeline)?;
            if is_disk_full(&status) {
                return Ok(status);
            }
            self.fill()?;
        }
        let paused = self
            .services
            .wait_for(timeline, |view| is_disk_full(&view.status));
        Ok(paused.await?.status)
    }

    /// The source ends in time, and comes back.
    fn restart_source(&mut self, judge: &mut Judge) -> Result<()> {
        let begun = Instant::now();
        block_in_place(|| self.source.cluster.stop())?;
        let stopped = begun.elapsed();
        eprintln!("{NAME}: the source stops in {stopped:?}");
        judge
            .check((stopped >= STOP_LIMIT).then(|| format!("the source took {stopped:?} to stop")));
        block_in_place(|| self.source.cluster.start())
    }

    fn written(&self) -> Result<Lsn> {
        block_in_place(|| self.source.cluster.flush_lsn())
    }

    /// All that was written arrives, without a hand.
    async fn arrives(&self, timeline: TimelineRef, in_store: bool) -> Result<Lsn> {
        let end = self.written()?;
        let arrived = self.services.wait_for(timeline, |view| {
            let status = &view.status;
            status.state == TimelineState::Streaming
                && status.last_record >= end
                && (!in_store || status.remote_consistent >= end)
        });
        arrived.await.context("it does not go on by itself")?;
        Ok(end)
    }

    async fn finish(
        mut self,
        timeline: TimelineRef,
        lsns: &[Lsn],
        judge: &mut Judge,
    ) -> Result<()> {
        self.source
            .judge(&self.services, timeline, lsns, judge)
            .await?;
        self.services.stop().await;
        Ok(())
    }
}

pub(crate) fn is_disk_full(status: &TimelineStatus) -> bool {
    status.state == TimelineState::Paused && status.reason.contains("when there is room")
}

/// Layers small and often: the disk fills with both kinds of files.
fn small_layers(services: &Embedded, data: &Path) -> Settings {
    Settings {
        data: data.to_owned(),
        layer_size: ByteCount::mib(1),
        layer_age: Duration::from_secs(1),
        ..services.wal_ingest_settings()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_full_disk_pauses_ingest_and_room_lets_it_go_on() {
    let mut judge = Judge::new(NAME, "P9");
    // Once with layers beside the WAL; once the WAL alone fills the disk, and no layer would fit.
    let run = full_disk(Layers::Often, &mut judge).await.unwrap();
    if run && full_disk(Layers::Rarely, &mut judge).await.unwrap() {
        judge.close();
    }
}

/// False if the machine can't mount.
async fn full_disk(layers: Layers, judge: &mut Judge) -> Result<bool> {
    let files = tempfile::tempdir()?;
    let local = files.path().join("local");
    let Some(tmpfs) = Tmpfs::mount(NAME, &local, ByteCount::mib(80)) else {
        return Ok(false);
    };
    let mut scene = Scene::set(files.path()).await?;
    let (layer_size, layer_age) = match layers {
        Layers::Often => (ByteCount::mib(1), Duration::from_secs(1)),
        Layers::Rarely => (ByteCount::mib(256), Duration::from_secs(3600)),
        Layers::Of(mebibytes) => (ByteCount::mib(mebibytes), Duration::from_secs(3600)),
    };
    let settings = Settings {
        layer_size,
        layer_age,
        // More than the disk has.
        local_disk: ByteCount::gib(1),
        ..small_layers(&scene.services, &local)
    };
    let timeline = scene.attach(Arc::new(OsDisk), settings).await?;
    let begun = scene.written()?;

    scene.faulty.set(Fault::Refuse);
    let status = scene.fill_up(timeline).await?;
    eprintln!("{NAME}: paused: {}", status.reason);
    scene.restart_source(judge)?;
    // More room, with the store still away: for all that was written until it was seen to be paused,
    // and for layers of it, which are no larger.
    let written = ByteCount::new(scene.written()?.saturating_sub(begun));
    let room = ByteCount::new(2 * written.get() + ROOM_BESIDE.get());
    eprintln!("{NAME}: {room} for {written} of WAL");
    tmpfs.grow(room)?;
    let middle = scene.arrives(timeline, false).await?;
    judge.pass(1);

    scene.fill_up(timeline).await?;
    // The store comes back, and layers make room.
    scene.faulty.set(Fault::None);
    let end = scene.arrives(timeline, layers == Layers::Often).await?;
    judge.pass(1);
    scene.finish(timeline, &[middle, end], judge).await?;
    drop(tmpfs);
    Ok(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_full_at_any_step_of_a_write_is_never_a_wrong_byte() {
    full_at_each_step().await.unwrap();
}

async fn full_at_each_step() -> Result<()> {
    let files = tempfile::tempdir()?;
    let mut scene = Scene::set(files.path()).await?;
    let disk = FullDisk::default();
    let settings = small_layers(&scene.services, &files.path().join("local"));
    let timeline = scene.attach(Arc::new(disk.clone()), settings).await?;
    let mut judge = Judge::new(STEPS, "P9");
    let mut lsns = Vec::new();
    for directory in ["pg_wal", "layers"] {
        for step in DiskStep::EACH {
            // A segment gets its name when it is made.
            if (step, directory) == (DiskStep::Rename, "pg_wal") {
                continue;
            }
            let before = disk.refused();
            disk.fill(step, directory);
            // Into a new segment.
            block_in_place(|| {
                scene
                    .source
                    .cluster
                    .psql("postgres", "SELECT pg_switch_wal()")
            })?;
            scene.fill()?;
            let refused = async {
                while disk.refused() == before {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let refused = tokio::time::timeout(Duration::from_secs(60), refused).await;
            refused.with_context(|| format!("{directory}: {step:?} never comes"))?;
            if directory == "pg_wal" {
                let paused = scene
                    .services
                    .wait_for(timeline, |view| is_disk_full(&view.status));
                paused.await?;
            }
            disk.empty();
            let end = scene.arrives(timeline, true).await?;
            eprintln!(
                "{STEPS}: {directory}, {step:?}: {} times",
                disk.refused() - before
            );
            lsns.push(end);
            judge.pass(1);
        }
    }
    // Steps follow each other closely; each third and the last have them all.
    let mut judged: Vec<_> = lsns.iter().copied().step_by(4).collect();
    judged.extend(lsns.last());
    judged.dedup();
    scene.finish(timeline, &judged, &mut judge).await?;
    judge.close();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_full_store_is_waited_for() {
    full_store().await.unwrap();
}

async fn full_store() -> Result<()> {
    let files = tempfile::tempdir()?;
    let place = files.path().join("store");
    let Some(_tmpfs) = Tmpfs::mount(STORE, &place, ByteCount::mib(256)) else {
        return Ok(());
    };
    let mut scene = Scene::set(files.path()).await?;
    let settings = Settings {
        memory: ByteCount::mib(32),
        local_disk: ByteCount::mib(64),
        ..small_layers(&scene.services, &files.path().join("local"))
    };
    let timeline = scene.attach(Arc::new(OsDisk), settings).await?;
    let mut judge = Judge::new(STORE, "P9");

    let ballast = place.join("ballast");
    // As much as fits.
    fs::write(&ballast, vec![0; ByteCount::mib(256).as_len()]).unwrap_err();
    let warned = |status: &TimelineStatus| {
        let told = |warning: &String| warning.contains("do not reach the object store");
        status.warnings.iter().any(told)
    };
    for _ in 0..STATEMENTS {
        if scene.services.status(timeline)?.state == TimelineState::Paused {
            break;
        }
        scene.fill()?;
    }
    let paused = scene.services.wait_for(timeline, |view| {
        view.status.state == TimelineState::Paused && warned(&view.status)
    });
    eprintln!("{STORE}: {:?}", paused.await?.status.warnings);
    scene.restart_source(&mut judge)?;
    fs::remove_file(&ballast)?;
    let end = scene.arrives(timeline, true).await?;
    let left = unfinished(&place)?;
    judge.check((!left.is_empty()).then(|| format!("in the store are left {left:?}")));
    scene.finish(timeline, &[end], &mut judge).await?;
    judge.close();
    Ok(())
}

/// Objects that were not written to their end; their names hold a sign that those of others do not.
fn unfinished(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(unfinished(&path)?);
        } else if path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().contains(&b'#'))
        {
            found.push(path);
        }
    }
    Ok(found)
}
