//! P9 and P1 of WAL that a source has removed before it was read: it comes from where the source archives it, checked as
//! all WAL is, and nothing is lost; where the archive does not have it, that is said.

mod promoted;
mod trouble;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use palimpsest_api::{
    TimelineRef,
    broker::{TimelineState, TimelineStatus},
};
use palimpsest_disk::FullDisk;
use palimpsest_integration::{
    demo::Primary,
    embedded::Embedded,
    judge::{Judge, seed},
    oracle::{DataFiles, Oracle, PageSource as _},
};
use palimpsest_runtime::TaskScope;
use palimpsest_store::ObjectStore;
use palimpsest_testkit::{Cluster, ClusterOptions, Workload, workload};
use palimpsest_types::Lsn;
use palimpsest_wal_ingest::{Backing, run_on};
use tempfile::TempDir;
use tokio::{task::block_in_place, time::sleep};

use crate::support::{checkpoint, engine};

const NAME: &str = "archive";
const SLOT: &str = "palimpsest_judged";
/// Of the archive: names of files that were asked for.
const ASKED: &str = "asked";
/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(90);

struct Case {
    cluster: Cluster,
    services: Embedded,
    ingest: TaskScope,
    timeline: TimelineRef,
    archive: Archive,
    /// What a wal-ingest writes to.
    disk: FullDisk,
    _files: TempDir,
}

/// Where a source puts its WAL.
struct Archive(TempDir);

#[tokio::test(flavor = "multi_thread")]
async fn p9_wal_that_the_source_has_removed_comes_from_its_archive() {
    let mut case = Case::prepare().await.unwrap();
    let attached = case.oldest().await.unwrap();
    let end = case.outlive(1).await.unwrap();
    case.streams(end).await.unwrap();
    case.has_a_slot_again().await.unwrap();

    // What the archive gives instead of a WAL file is refused, and asked for again.
    let name = case.next_file().await.unwrap();
    let end = case.lose(2).await.unwrap();
    let (file, aside) = (case.archived(&name), case.archived("aside"));
    fs::rename(&file, &aside).unwrap();
    fs::write(&file, vec![0; 16 << 20]).unwrap();
    case.start().await.unwrap();
    case.says("can't be restored from the archive")
        .await
        .unwrap();
    // Nor one of which the beginning is good.
    let mut damaged = fs::read(&aside).unwrap();
    damaged[1 << 20..].fill(0x5a);
    fs::write(&file, &damaged).unwrap();
    case.says("magic is").await.unwrap();
    fs::rename(&aside, &file).unwrap();
    case.streams(end).await.unwrap();
    case.has_a_slot_again().await.unwrap();

    // One that is not there ends it, and is said; when it is back, that is all that was missing.
    let name = case.next_file().await.unwrap();
    let end = case.lose(3).await.unwrap();
    let (file, aside) = (case.archived(&name), case.archived("aside"));
    fs::rename(&file, &aside).unwrap();
    case.start().await.unwrap();
    case.reach("it has stopped", |status| {
        status.state == TimelineState::Stopped
    })
    .await
    .unwrap();
    case.says("no longer has the WAL").await.unwrap();
    fs::rename(&aside, &file).unwrap();
    case.ingest.stop().await;
    case.start().await.unwrap();
    case.streams(end).await.unwrap();

    assert_eq!(case.services.status(case.timeline).unwrap().lost, []);
    case.compare(NAME, attached).await.unwrap();
    case.services.stop().await;
}

impl Archive {
    fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("pal-archive-").tempdir()?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
        Ok(Self(directory))
    }

    /// A source that archives to there, and keeps as little as it can.
    fn options(&self) -> ClusterOptions {
        let command = format!("cp %p {}/%f", self.0.path().display());
        ClusterOptions::default()
            .with("archive_mode", "on")
            .with("archive_command", &command)
            .with("wal_keep_size", "0")
            .with("min_wal_size", "32MB")
            .with("max_wal_size", "64MB")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Fetches from there, and notes what was asked for.
    fn restore_command(&self) -> String {
        let archive = self.0.path().display();
        format!("echo %f >> {archive}/{ASKED}; cp {archive}/%f %p")
    }
}

impl Case {
    async fn prepare() -> Result<Self> {
        let archive = Archive::new()?;
        let mut cluster = Cluster::temporary(archive.options())?;
        block_in_place(|| cluster.start())?;
        let conninfo = cluster.conninfo("postgres");
        Self::of(cluster, &conninfo, archive).await
    }

    /// A running source, which is reached like this.
    async fn of(cluster: Cluster, conninfo: &str, archive: Archive) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
        let disk = FullDisk::default();
        let ingest = start(&services, &disk, archive.restore_command()).await?;
        let timeline = services.attach("judged", conninfo).await?;
        Ok(Self {
            cluster,
            services,
            ingest,
            timeline,
            archive,
            disk,
            _files: files,
        })
    }

    async fn oldest(&self) -> Result<Lsn> {
        let served = self.services.served(self.timeline).await?;
        Ok(served.client().readable(self.timeline).await?.0)
    }

    async fn start(&mut self) -> Result<()> {
        self.start_with(self.archive.restore_command()).await
    }

    async fn start_with(&mut self, restore_command: String) -> Result<()> {
        self.ingest = start(&self.services, &self.disk, restore_command).await?;
        Ok(())
    }

    async fn outlive(&mut self, seed: u32) -> Result<Lsn> {
        let end = self.lose(seed).await?;
        self.start().await?;
        Ok(end)
    }

    /// With nobody reading and no slot, writes until the source has removed what would be read next; where it ends.
    async fn lose(&mut self, round: u32) -> Result<Lsn> {
        let needed = self.next_file().await?;
        self.ingest.stop().await;
        let drop_slot = format!("SELECT pg_drop_replication_slot('{SLOT}')");
        block_in_place(|| self.cluster.psql("postgres", &drop_slot))?;
        let workload = Workload::full(seed() as u32 + round, workload::QUICK);
        block_in_place(|| workload.run(&self.cluster))?;
        self.outlast(&needed).await
    }

    /// Writes until the source has removed a WAL file, which no slot keeps; where it ends.
    async fn outlast(&self, needed: &str) -> Result<Lsn> {
        let sql = |text: &str| block_in_place(|| self.cluster.psql("postgres", text));
        let path = self.cluster.data_dir().join("pg_wal").join(needed);
        for _ in 0..100 {
            if !path.exists() && self.archived(needed).exists() {
                return block_in_place(|| self.cluster.flush_lsn());
            }
            sql(
                "CREATE TABLE IF NOT EXISTS filling (n int); INSERT INTO filling SELECT generate_series(1, 1000)",
            )?;
            sql("SELECT pg_switch_wal()")?;
            sql("CHECKPOINT")?;
            // Where somebody makes one again; if it is being looked after just then, the next time.
            let _ = sql(&format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND NOT active"
            ));
            sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("{needed} is still there")
    }

    /// The WAL file that has what comes next, once all has come that there is: what was told last may be of before.
    async fn next_file(&self) -> Result<String> {
        let end = block_in_place(|| self.cluster.flush_lsn())?;
        self.reach("it has come", |status| status.received >= end)
            .await?;
        let query = format!("SELECT pg_walfile_name('{end}'::pg_lsn + 1)");
        let name = block_in_place(|| self.cluster.psql("postgres", &query))?;
        Ok(name.trim().to_owned())
    }

    fn archived(&self, name: &str) -> PathBuf {
        self.archive.file(name)
    }

    /// Waits for what is said of the timeline now; who was stopped may have said something else before.
    async fn reach(&self, what: &str, is_so: impl Fn(&TimelineStatus) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let status = self.services.status(self.timeline)?;
            if is_so(&status) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "waiting until {what}: {status:?}"
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn streams(&self, end: Lsn) -> Result<()> {
        let streams = |status: &TimelineStatus| {
            status.state == TimelineState::Streaming && status.last_record >= end
        };
        self.reach("all is here", streams).await
    }

    async fn says(&self, what: &str) -> Result<()> {
        self.reach(what, |status| status.reason.contains(what))
            .await
    }

    async fn has_a_slot_again(&self) -> Result<()> {
        let query = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        let begun = Instant::now();
        while block_in_place(|| self.cluster.psql("postgres", &query))?.trim() != "1" {
            ensure!(begun.elapsed() < PATIENCE, "there is no slot");
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Holds every page against the files of the source, which is stopped for that.
    async fn compare(&mut self, judge: &'static str, attached: Lsn) -> Result<()> {
        block_in_place(|| self.cluster.stop())?;
        let end = checkpoint(self.cluster.data_dir())?;
        self.reach("the shutdown is here", |status| status.last_record > end)
            .await?;
        let served = self.services.served(self.timeline).await?;
        let engine = engine(false).await?;
        let oracle = Oracle::new(engine.clone());
        let mut judge = Judge::new(judge, "P1");
        let attached = served.relations(attached).await?;
        let primary = Primary {
            files: DataFiles::read(self.cluster.data_dir())?,
            attached_databases: attached.iter().map(|(rel, _)| rel.db).collect(),
        };
        let pages = primary.compare(&served, end, &oracle, &mut judge).await?;
        engine.stop().await;
        ensure!(pages > 1000, "{pages} pages");
        judge.close();
        Ok(())
    }
}

/// A wal-ingest that knows of the archive.
async fn start(services: &Embedded, disk: &FullDisk, restore_command: String) -> Result<TaskScope> {
    let mut settings = services.wal_ingest_settings();
    settings.restore_command = Some(restore_command);
    settings.restore_patience = Duration::from_secs(3);
    let scope = services.scope().child();
    let backing = Backing {
        disk: Arc::new(disk.clone()),
        store: ObjectStore::open(&settings.store).await?,
    };
    run_on(backing, settings, &scope).await?;
    Ok(scope)
}
