//! P5 of leases: what one keeps is what PostgreSQL recovers to, below a cutoff that has passed it, after layers were
//! made anew and the processes that know of it were killed; what nobody keeps is refused. The cutoff is moved by the
//! judge: whoever removes versions is yet to come, and has to leave this judge as it is.

use std::{convert::Infallible, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    RemoteError, TimelineRef,
    lease::{Lease, LeaseClient},
    page::{BaseBackupRequest, ReadAt},
};
use palimpsest_integration::{
    embedded::ServedTimeline,
    judge::{Judge, JudgeSize, seed},
    processes::{Layers, Process, Processes},
    recovered::{BaseBackup, Recovery},
};
use palimpsest_manifest::{Publisher, TimelineManifest, TimelineManifests};
use palimpsest_store::ObjectStore;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{LeaseId, Lsn, Reason};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use crate::{
    support::compare_with_recovered,
    under_load::{SERVICE, TENANT},
};

const NAME: &str = "leases";
const UNHURRIED: u32 = 1 << 20;
const HOUR: Duration = Duration::from_secs(60 * 60);
/// A page-serve looks every 20 seconds what is new.
const PATIENCE: Duration = Duration::from_secs(60);

struct Case {
    options: ClusterOptions,
    cluster: Cluster,
    backup: BaseBackup,
    processes: Processes,
    main: TimelineRef,
    leases: LeaseClient,
    _files: TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_what_a_lease_keeps_is_there_until_it_ends() {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut judge = Judge::new(NAME, "P5");
    let mut random = StdRng::seed_from_u64(seed);
    let case = Case::prepare().await.unwrap();
    case.judge(size.pick((3, false), (20, true)), &mut random, &mut judge)
        .await
        .unwrap();
    judge.close();
}

impl Case {
    async fn prepare() -> Result<Self> {
        let options = ClusterOptions::default();
        let mut cluster = Cluster::temporary(options.clone())?;
        block_in_place(|| cluster.start())?;
        cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"])?;
        let backup = block_in_place(|| BaseBackup::take(&cluster, UNHURRIED))?;
        let files = tempfile::tempdir()?;
        let mut processes =
            Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
        processes.start(Process::Compactor)?;
        let main = processes
            .attach(TENANT, &cluster.conninfo("postgres"))
            .await?;
        processes.attached(main).await?;
        let leases = LeaseClient::new(&processes.address(Process::StorageBroker))?;
        Ok(Self {
            options,
            cluster,
            backup,
            processes,
            main,
            leases,
            _files: files,
        })
    }

    /// With patience a minute is waited for what page-serve does once in a minute.
    async fn judge(
        mut self,
        (kept, is_patient): (usize, bool),
        random: &mut StdRng,
        judge: &mut Judge,
    ) -> Result<()> {
        let mut leases = Vec::new();
        let mut passed = Vec::new();
        for round in 0..kept {
            passed.push(self.write(random.random_range(100..1000)).await?);
            let lsn = self.write(random.random_range(100..1000)).await?;
            leases.push(self.lease(lsn).await?);
            eprintln!("{NAME}: round {round}: {lsn} is kept");
        }
        let end = self.write(500).await?;
        block_in_place(|| self.cluster.stop())?;
        let stored = |view: &palimpsest_api::broker::TimelineView| {
            view.status.remote_consistent > leases.last().map_or(end, |lease| lease.lsn)
        };
        self.processes.wait_for(self.main, stored).await?;
        self.is_compacted().await?;
        let cutoff = self.cut_off().await?;
        passed.retain(|lsn| *lsn < cutoff);
        ensure!(passed.len() == kept, "{passed:?} is below {cutoff}");

        // They know what is stored, and nothing else.
        for process in [Process::StorageBroker, Process::PageServe] {
            self.processes.kill9(process)?;
            self.processes.start(process)?;
        }
        let served = self.processes.served_up_to(self.main, end).await?;
        // One that lasts longer, by a storage-broker that has heard of nothing.
        if let Some(lease) = leases.first_mut() {
            let longer = async || {
                let length = Some(2 * HOUR);
                self.leases.take(self.main, lease.id, None, length).await
            };
            let longer = soon(longer).await?;
            ensure!(longer.lsn == lease.lsn && longer != *lease, "{longer:?}");
            *lease = longer;
        }
        let told = soon(async || self.leases.list(self.main).await).await?;
        judge.check((told != leases).then(|| format!("{told:?} in place of {leases:?}")));
        for lsn in passed {
            let read = read_at(&served, self.main, lsn).await;
            judge.check(not_below("read", lsn, read));
            let leased = soon_or_refused(async || self.take(lsn).await).await;
            judge.check(not_below("leased", lsn, leased));
        }
        let wal = self.cluster.data_dir().join("pg_wal");
        let base = self.backup.data_dir();
        let recovery = Recovery {
            base: &base,
            archive: &wal,
            options: &self.options,
        };
        let lsns = leases.iter().map(|lease| lease.lsn);
        compare_with_recovered(NAME, &served, recovery, lsns, judge).await?;

        let [first, .., last] = leases.as_slice() else {
            ensure!(false, "too few leases");
            return Ok(());
        };
        judge.check(self.is_held_for_a_backup(&served, first).await?);
        if is_patient {
            judge.check(self.ends_when_it_is_lost(&served, last).await?);
        }
        for lease in [first, last] {
            let existed = self.leases.drop_lease(self.main, lease.id).await?;
            ensure!(existed || (is_patient && lease == last), "{lease:?}");
        }
        let begun = Instant::now();
        let refused = async |lease: &Lease| {
            loop {
                let finding = not_below(
                    "read",
                    lease.lsn,
                    read_at(&served, self.main, lease.lsn).await,
                );
                if finding.is_none() || begun.elapsed() > PATIENCE {
                    return finding;
                }
                sleep(Duration::from_millis(200)).await;
            }
        };
        for lease in [first, last] {
            judge.check(refused(lease).await);
        }
        for lease in leases.get(1..leases.len() - 1).unwrap_or_default() {
            let read = read_at(&served, self.main, lease.lsn).await;
            judge.check(read.err().map(|error| format!("{lease:?}: {error}")));
        }
        self.processes.stop();
        Ok(())
    }

    /// Writes something; gives the end of it.
    async fn write(&self, transactions: u32) -> Result<Lsn> {
        let count = format!("--transactions={transactions}");
        block_in_place(|| {
            let arguments = ["--no-vacuum", "--client=2", &count, "postgres"];
            self.cluster.pgbench(&arguments)?;
            self.cluster.lsn()
        })
    }

    async fn take(&self, lsn: Lsn) -> Result<Lease, RemoteError> {
        let id = LeaseId::from_bytes(rand::random());
        self.leases.take(self.main, id, Some(lsn), Some(HOUR)).await
    }

    async fn lease(&self, lsn: Lsn) -> Result<Lease> {
        let lease = self.take(lsn).await?;
        // It may be rounded out of the header of a page.
        ensure!(
            lease.lsn <= lsn && lsn.saturating_sub(lease.lsn) <= 40,
            "{lease:?} is not of {lsn}"
        );
        // As if the answer had been lost.
        let again = self
            .leases
            .take(self.main, lease.id, Some(lsn), None)
            .await?;
        ensure!(again == lease, "{again:?} is not {lease:?}");
        Ok(lease)
    }

    /// Waits until layers were made anew.
    async fn is_compacted(&self) -> Result<()> {
        let manifests = self.manifests().await?;
        let begun = Instant::now();
        loop {
            let newest = manifests.newest().await?.context("there is no manifest")?;
            let mut layers = newest.state.layers().iter();
            if layers.any(|layer| layer.level > 0) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "nothing is compacted");
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn manifests(&self) -> Result<TimelineManifests> {
        let store = ObjectStore::open(&self.processes.store()).await?;
        let TimelineRef { tenant, timeline } = self.main;
        Ok(TimelineManifests::new(store, tenant, timeline))
    }

    /// Moves the cutoff to the end of what is stored, as whoever removes versions would.
    async fn cut_off(&self) -> Result<Lsn> {
        let manifests = self.manifests().await?;
        let newest = manifests.newest().await?;
        let mut newest = newest.context("there is no manifest")?;
        let cut = |manifest: &mut TimelineManifest| {
            manifest.gc_cutoff = manifest.lsn;
            Ok::<_, Infallible>(true)
        };
        let moved = manifests.update(Publisher::Broker, &mut newest, cut).await;
        moved?;
        Ok(newest.state.gc_cutoff)
    }

    /// A base backup at what one lease keeps has a lease of its own, until it is complete or its asker goes away.
    async fn is_held_for_a_backup(
        &self,
        served: &ServedTimeline,
        lease: &Lease,
    ) -> Result<Option<String>> {
        let mut backup = served.client().base_backup(self.backup_at(lease)).await?;
        let during = self.leases_at(lease).await?.len();
        while backup.chunk().await?.is_some() {}
        drop(backup);
        let after = self.left_after(lease).await?;
        let mut given_up = served.client().base_backup(self.backup_at(lease)).await?;
        let begun = given_up.chunk().await?.is_some();
        drop(given_up);
        let after_giving_up = self.left_after(lease).await?;
        let seen = (during, after, begun, after_giving_up);
        let wrong = seen != (2, 1, true, 1);
        Ok(wrong.then(|| {
            format!("{during} leases during a base backup, {after} after it, {after_giving_up} after one that nobody wanted ({begun})")
        }))
    }

    /// A base backup at an LSN that nothing keeps any more ends with an error.
    async fn ends_when_it_is_lost(
        &self,
        served: &ServedTimeline,
        lease: &Lease,
    ) -> Result<Option<String>> {
        let mut backup = served.client().base_backup(self.backup_at(lease)).await?;
        ensure!(backup.chunk().await?.is_some(), "it is empty");
        for held in self.leases_at(lease).await? {
            self.leases.drop_lease(self.main, held.id).await?;
        }
        let ended = loop {
            match backup.chunk().await {
                // Slowly, until page-serve wants to extend its own; who takes nothing at all is cut off.
                Ok(Some(_)) => sleep(Duration::from_secs(2)).await,
                ended => break ended,
            }
        };
        Ok(match ended {
            Err(error) if error.to_string().contains("could not be kept") => None,
            Err(error) => Some(format!(
                "a base backup that lost its LSN ended with {error}"
            )),
            Ok(_) => Some("a base backup that lost its LSN is complete".to_owned()),
        })
    }

    fn backup_at(&self, lease: &Lease) -> BaseBackupRequest {
        BaseBackupRequest {
            timeline: self.main,
            at: at(lease.lsn),
            system_identifier: None,
            postgres_timeline: None,
            is_packed: false,
            is_sparse: false,
        }
    }

    async fn leases_at(&self, lease: &Lease) -> Result<Vec<Lease>> {
        let mut leases = self.leases.list(self.main).await?;
        leases.retain(|other| other.lsn == lease.lsn);
        Ok(leases)
    }

    /// How many there are at an LSN when only one was left, or nobody waits for that any longer.
    async fn left_after(&self, lease: &Lease) -> Result<usize> {
        let begun = Instant::now();
        loop {
            let held = self.leases_at(lease).await?.len();
            if held <= 1 || begun.elapsed() > PATIENCE {
                return Ok(held);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

fn at(lsn: Lsn) -> ReadAt {
    ReadAt {
        lsn: Some(lsn),
        ..ReadAt::default()
    }
}

async fn read_at(
    served: &ServedTimeline,
    timeline: TimelineRef,
    lsn: Lsn,
) -> Result<(), RemoteError> {
    // Any call that reads at an LSN.
    let map = served.client().relation_map(timeline, at(lsn), 1664, 0);
    map.await.map(drop)
}

/// What nobody keeps is refused, and for that reason.
fn not_below<T>(what: &str, lsn: Lsn, outcome: Result<T, RemoteError>) -> Option<String> {
    match outcome {
        Err(error) if error.reason == Some(Reason::BelowHorizon) => None,
        Err(error) => Some(format!("{what} at {lsn}: {error}")),
        Ok(_) => Some(format!("{what} at {lsn}, which nobody keeps")),
    }
}

/// Asks until the storage-broker is there again.
async fn soon<T>(ask: impl AsyncFn() -> Result<T, RemoteError>) -> Result<T> {
    Ok(soon_or_refused(ask).await?)
}

async fn soon_or_refused<T>(
    ask: impl AsyncFn() -> Result<T, RemoteError>,
) -> Result<T, RemoteError> {
    let begun = Instant::now();
    loop {
        match ask().await {
            Err(error)
                if error.reason == Some(Reason::Unreachable) && begun.elapsed() < PATIENCE =>
            {
                sleep(Duration::from_millis(100)).await;
            }
            outcome => return outcome,
        }
    }
}
