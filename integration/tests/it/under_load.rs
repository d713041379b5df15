//! A primary that writes while a judge disturbs the services, and what it comes to in the end.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, TimelineState, TimelineView},
};
use palimpsest_integration::{
    demo::Primary,
    embedded::ServedTimeline,
    judge::Judge,
    oracle::{DataFiles, Oracle, PageSource as _, RecoveredTally, compare_at, read_wal},
    processes::{ManifestHistory, Process, Processes},
    recovered::{BaseBackup, Recovery},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::Lsn;
use palimpsest_wal::SegmentSize;
use rand::{rngs::StdRng, seq::IteratorRandom as _};
use tempfile::TempDir;
use tokio::{
    task::{JoinHandle, block_in_place, spawn_blocking},
    time::sleep,
};

use crate::support::{checkpoint, engine};

/// The binary that the judges' services are.
pub(crate) const SERVICE: &str = env!("CARGO_BIN_EXE_service");
/// The tenant's name.
pub(crate) const TENANT: &str = "judged";
/// As fast as the server likes.
const UNHURRIED: u32 = 1 << 20;
const SEGMENT_MIB: u32 = 1;
/// Between looks at the slot.
const SAMPLING: Duration = Duration::from_millis(250);
/// Some of everything that changes how files look, in a loop.
const DISTURBANCE: &str = "
    CREATE TABLE made (i int PRIMARY KEY, t text);
    INSERT INTO made SELECT i, repeat('t', i % 500) FROM generate_series(1, 2000) i;
    CREATE INDEX ON made USING hash (t);
    DELETE FROM made WHERE i % 3 = 0;
    VACUUM made;
    DELETE FROM made WHERE i > 1000;
    VACUUM (TRUNCATE) made;
    BEGIN; TRUNCATE made; ROLLBACK;
    VACUUM FULL made;
    VACUUM pgbench_accounts, pgbench_branches, pgbench_tellers;
    CHECKPOINT;
    DROP TABLE made;
    SELECT pg_sleep(0.3);
    ";

/// A running primary that keeps no more WAL than its slots ask for, and an archive that has all.
pub(crate) struct Source {
    pub(crate) cluster: Arc<Cluster>,
    /// Without the archive, for the instances that recover from it.
    options: ClusterOptions,
    archive: TempDir,
    backup: BaseBackup,
}

/// Clients that write until they are told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<()>>>,
}

/// Looks, as long as it lives, for what must be true at any moment.
pub(crate) struct Guard {
    history: Arc<ManifestHistory>,
    wrong: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    sampling: JoinHandle<()>,
}

/// A primary that was shut down, all of whose WAL has arrived.
pub(crate) struct Ending {
    served: ServedTimeline,
    cluster: Cluster,
    options: ClusterOptions,
    archive: TempDir,
    backup: BaseBackup,
    oldest: Lsn,
    /// The start of the shutdown's checkpoint record, which changes no page.
    end: Lsn,
}

impl Source {
    pub(crate) fn start() -> Result<Self> {
        let archive = tempfile::Builder::new().prefix("pal-").tempdir_in("/tmp")?;
        // The server may run as another user.
        fs::set_permissions(archive.path(), fs::Permissions::from_mode(0o777))?;
        let options = ClusterOptions {
            wal_segment_size_mib: SEGMENT_MIB,
            ..ClusterOptions::default()
        }
        .with("wal_keep_size", "0");
        let command = format!("cp %p {}/%f", archive.path().display());
        let archiving = options
            .clone()
            .with("archive_mode", "on")
            .with("archive_command", &command);
        let mut cluster = Cluster::temporary(archiving)?;
        cluster.start()?;
        cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"])?;
        let backup = BaseBackup::take(&cluster, UNHURRIED)?;
        Ok(Self {
            cluster: Arc::new(cluster),
            options,
            archive,
            backup,
        })
    }

    /// Shuts the primary down once everything has arrived. Nobody disturbs the services any more.
    pub(crate) async fn finish(
        self,
        processes: &Processes,
        timeline: TimelineRef,
    ) -> Result<Ending> {
        let written = block_in_place(|| {
            self.cluster.switch_wal()?;
            self.cluster.psql("postgres", "CREATE TABLE the_end ()")?;
            self.cluster.flush_lsn()
        })?;
        let arrived = |view: &TimelineView| {
            view.status.state == TimelineState::Streaming && view.status.last_record >= written
        };
        let view = processes.wait_for(timeline, arrived).await?;
        let cluster = Arc::into_inner(self.cluster);
        let mut cluster = cluster.context("somebody still uses the primary")?;
        block_in_place(|| cluster.stop())?;
        complete_archive(&cluster.data_dir().join("pg_wal"), self.archive.path())?;
        let end = checkpoint(cluster.data_dir())?;
        Ok(Ending {
            served: processes.served_up_to(timeline, end).await?,
            cluster,
            options: self.options,
            archive: self.archive,
            backup: self.backup,
            oldest: view.status.oldest_readable,
            end,
        })
    }
}

/// The archive gets whole segments only; the rest is where the server left it.
fn complete_archive(pg_wal: &Path, archive: &Path) -> Result<()> {
    for entry in fs::read_dir(pg_wal)? {
        let entry = entry?;
        let copy = archive.join(entry.file_name());
        if entry.file_type()?.is_file() && !copy.exists() {
            fs::copy(entry.path(), copy)?;
        }
    }
    Ok(())
}

impl Load {
    /// Begins: transactions at a rate that the services can follow, and a disturbance.
    pub(crate) fn start(cluster: &Arc<Cluster>) -> Self {
        let disturbance = |cluster: &Cluster| cluster.psql("postgres", DISTURBANCE).map(drop);
        Self::of([|cluster| transactions(cluster, 400), disturbance], cluster)
    }

    /// Begins with much less of both, for judges that take long: all of it is kept.
    pub(crate) fn start_gently(cluster: &Arc<Cluster>) -> Self {
        let disturbance = |cluster: &Cluster| {
            cluster.psql("postgres", DISTURBANCE)?;
            cluster.psql("postgres", "SELECT pg_sleep(4)").map(drop)
        };
        Self::of([|cluster| transactions(cluster, 100), disturbance], cluster)
    }

    fn of(clients: [fn(&Cluster) -> Result<()>; 2], cluster: &Arc<Cluster>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |client: fn(&Cluster) -> Result<()>| {
            let (cluster, stop) = (Arc::clone(cluster), Arc::clone(&stop));
            spawn_blocking(move || {
                while !stop.load(Ordering::Relaxed) {
                    client(&cluster)?;
                }
                Ok(())
            })
        };
        let clients = clients.into_iter().map(start).collect();
        Self { stop, clients }
    }

    /// Ends it; says what went wrong for the clients, which nothing should.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await??;
        }
        Ok(())
    }
}

/// Two seconds of transactions, so many in each.
fn transactions(cluster: &Cluster, rate: u32) -> Result<()> {
    let rate = format!("--rate={rate}");
    let options = ["-n", "-c", "4", "-T", "2", &rate, "postgres"];
    cluster.pgbench(&options).map(drop)
}

impl Guard {
    /// Begins to look at the slot, the manifests and the timeline's state.
    pub(crate) async fn start(
        source: &Source,
        processes: &Processes,
        timeline: TimelineRef,
    ) -> Result<Self> {
        let history = ManifestHistory::watch(&processes.store(), timeline).await?;
        let history = Arc::new(history);
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let (looking, noting) = (Arc::clone(&history), Arc::clone(&wrong));
        let (cluster, view) = (Arc::clone(&source.cluster), processes.cluster().clone());
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let sampling = tokio::spawn(async move {
            while !stopping.load(Ordering::Relaxed) {
                let mut findings = look(&cluster, &looking).await;
                findings.extend(stopped(&view.borrow(), timeline));
                note(&noting).extend(findings);
                sleep(SAMPLING).await;
            }
        });
        Ok(Self {
            history,
            wrong,
            stop,
            sampling,
        })
    }

    /// What is published of the timeline.
    pub(crate) fn history(&self) -> &ManifestHistory {
        &self.history
    }

    /// What was wrong since this was asked last, in one line.
    pub(crate) fn findings(&self) -> Option<String> {
        let mut findings = std::mem::take(&mut *note(&self.wrong));
        findings.extend(self.history.findings());
        (!findings.is_empty()).then(|| findings.join("; "))
    }

    /// Stops looking, and lets go of the primary. Checks what the store has in the end.
    pub(crate) async fn finish(mut self) -> Result<Option<String>> {
        self.stop.store(true, Ordering::Relaxed);
        // Not aborted: its last look at the primary has to be over.
        (&mut self.sampling).await?;
        let mut findings: Vec<_> = self.findings().into_iter().collect();
        findings.extend(self.history.check_layers().await?);
        let (manifests, writers) = self.history.summary();
        eprintln!("{manifests} manifests of {} writers", writers.len());
        Ok((!findings.is_empty()).then(|| findings.join("; ")))
    }
}

fn note(wrong: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    wrong.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stopped(view: &ClusterView, timeline: TimelineRef) -> Option<String> {
    let status = &view.timeline(timeline)?.status;
    let stopped = status.state == TimelineState::Stopped;
    stopped.then(|| format!("the timeline stopped: {}", status.reason))
}

/// There is one slot, and it keeps all that the object store lacks.
async fn look(cluster: &Arc<Cluster>, history: &ManifestHistory) -> Vec<String> {
    let sql = "SELECT slot_name, restart_lsn FROM pg_replication_slots";
    let asked = Arc::clone(cluster);
    let answer = spawn_blocking(move || asked.psql("postgres", sql)).await;
    let slots = match answer {
        Ok(Ok(slots)) => slots,
        Ok(Err(error)) => return vec![format!("{error:#}")],
        // The runtime ends.
        Err(_) => return Vec::new(),
    };
    // The manifest is read after the slot: what it has by now is more, if anything.
    let stored = match history.newest().await {
        Ok(manifest) => manifest.lsn,
        Err(error) => return vec![format!("{error:#}")],
    };
    let restart = slots.strip_prefix(&format!("palimpsest_{TENANT}|"));
    match restart.and_then(|restart| restart.parse::<Lsn>().ok()) {
        None => vec![format!("the slots are {slots:?}")],
        Some(restart) if restart > stored => {
            vec![format!("the slot is at {restart}, the store at {stored}")]
        }
        Some(_) => Vec::new(),
    }
}

impl Ending {
    /// The end of the WAL.
    pub(crate) fn end(&self) -> Lsn {
        self.end
    }

    /// What is compared from now on comes from here.
    pub(crate) fn serve_from(&mut self, served: ServedTimeline) {
        self.served = served;
    }

    /// What is compared from now on comes from a page-serve that is started anew, and so from the newest
    /// layers: one that runs may take others of the same LSN only after a while.
    pub(crate) async fn serve_anew(
        &mut self,
        processes: &mut Processes,
        timeline: TimelineRef,
    ) -> Result<()> {
        processes.kill9(Process::PageServe)?;
        processes.start(Process::PageServe)?;
        let served = processes.served_up_to(timeline, self.end).await?;
        self.serve_from(served);
        Ok(())
    }

    /// Compares every page with the primary's own, and at `count` earlier LSNs with those of a
    /// PostgreSQL that recovered to it.
    pub(crate) async fn compare(
        &self,
        count: usize,
        random: &mut StdRng,
        judge: &mut Judge,
    ) -> Result<()> {
        let engine = engine(false).await?;
        let oracle = Oracle::new(engine.clone());
        self.compare_with_primary(&oracle, judge).await?;
        for lsn in self.earlier(count, random)? {
            let recovery = Recovery {
                base: &self.backup.data_dir(),
                archive: self.archive.path(),
                options: &self.options,
            };
            let reference = block_in_place(|| recovery.to(lsn));
            let reference = reference.with_context(|| format!("recovering to {lsn}"))?;
            let mut tally = RecoveredTally::default();
            let files = reference.files();
            compare_at(&self.served, files, lsn, &oracle, judge, &mut tally).await?;
            eprintln!("at {lsn}: {tally:?}");
        }
        engine.stop().await;
        Ok(())
    }

    async fn compare_with_primary(&self, oracle: &Oracle, judge: &mut Judge) -> Result<()> {
        let attached = self.served.relations(self.oldest).await?;
        let primary = Primary {
            files: DataFiles::read(self.cluster.data_dir())?,
            attached_databases: attached.iter().map(|(rel, _)| rel.db).collect(),
        };
        let pages = primary
            .compare(&self.served, self.end, oracle, judge)
            .await?;
        eprintln!("at {}, the end: {pages} pages", self.end);
        Ok(())
    }

    /// Some ends of records that both we and the reference can go to.
    fn earlier(&self, count: usize, random: &mut StdRng) -> Result<Vec<Lsn>> {
        let size = SegmentSize::new(u64::from(SEGMENT_MIB) << 20)?;
        let usable = self.oldest.max(self.backup.end())..self.end;
        let mut boundaries = Vec::new();
        let end = read_wal(self.archive.path(), self.backup.start(), size, |record| {
            boundaries.extend(Some(record.end_lsn).filter(|lsn| usable.contains(lsn)));
            Ok(())
        })?;
        ensure!(end >= self.end, "the archive ends at {end} already");
        let mut lsns = boundaries.into_iter().sample(random, count);
        lsns.sort();
        Ok(lsns)
    }
}
