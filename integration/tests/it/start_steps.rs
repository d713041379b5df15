//! P5: `pal start` and `pal export`, and the services that they need, are killed in the middle, at each step. A start can be
//! done again and comes to what it would have come to: one PostgreSQL that writes the branch, from exactly where that begins.
//! An export is complete, or nothing that could be taken for one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::{Branched, BrokerClient},
};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    oracle::{DataFiles, Oracle, RecoveredTally, compare_at},
    processes::{Layers, Process, Processes},
};
use palimpsest_storage_broker::core::{BranchSource, CatalogStore};
use palimpsest_store::ObjectStore;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{ErrorKind, Lsn};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use crate::{
    exports::{run, tool},
    support::{checkpoint, engine},
    under_load::{SERVICE, TENANT},
};

const NAME: &str = "start-steps";
/// What is written on a branch.
const OWN: [&str; 3] = [
    "CREATE TABLE own AS SELECT n FROM generate_series(1, 5000) AS n",
    "VACUUM own",
    "CHECKPOINT",
];
/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between looks at how far it is.
const LOOK: Duration = Duration::from_millis(1);
/// A step goes on for so long, in milliseconds, before something dies in it, at most: one of these. Most steps are short.
const WITHIN: [u64; 4] = [1, 10, 50, 300];
/// Rounds until each step must have been hit.
const MOST: usize = 200;

/// How far a start is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Nothing,
    Fetching,
    Remembered,
    Told,
    Done,
}

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Pal,
    Service(Process),
}

struct Case {
    cluster: Cluster,
    processes: Processes,
    store: ObjectStore,
    main: TimelineRef,
    /// Where branches may begin.
    points: Vec<Lsn>,
    data: Data,
    exports: TempDir,
}

/// The data directory of `pal`. Nothing that was started below it outlives it.
struct Data(TempDir);

/// A command that runs.
struct Pal {
    child: Child,
    errors: PathBuf,
}

/// What a command came to.
struct Ended {
    status: ExitStatus,
    errors: String,
}

const VICTIMS: [Victim; 4] = [
    Victim::Pal,
    Victim::Service(Process::StorageBroker),
    Victim::Service(Process::WalIngest),
    Victim::Service(Process::PageServe),
];
/// In the last there is nothing more to be hit.
const STEPS: [Step; 4] = [Step::Nothing, Step::Fetching, Step::Remembered, Step::Told];

#[tokio::test(flavor = "multi_thread")]
async fn p5_whatever_dies_in_a_start_or_an_export_it_can_be_done_again() {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(NAME, "P5");
    let mut case = Case::prepare().await.unwrap();
    let mut hit: BTreeMap<(Victim, Step), usize> = BTreeMap::new();
    for round in 0..MOST {
        let missing = missing(size, &hit);
        let Some((victim, step)) = missing.choose(&mut random) else {
            break;
        };
        let name = format!("s{round}");
        let died_at = case.start(&name, (*victim, *step), &mut random, &mut judge);
        let died_at = died_at
            .await
            .with_context(|| format!("{name}: {victim:?} at {step:?}"))
            .unwrap();
        *hit.entry((*victim, died_at)).or_default() += 1;
        case.export(*victim, round, &mut random, &mut judge)
            .await
            .unwrap();
        eprintln!("{NAME}: {hit:?}");
    }
    let missing = missing(size, &hit);
    assert!(missing.is_empty(), "not hit: {missing:?}");
    case.end();
    judge.close();
}

/// What is to be hit yet: each step, and everybody; in a full run everybody at each step.
fn missing(size: JudgeSize, hit: &BTreeMap<(Victim, Step), usize>) -> Vec<(Victim, Step)> {
    let pairs = VICTIMS
        .into_iter()
        .flat_map(|victim| STEPS.map(|step| (victim, step)));
    let is_missing = |pair: &(Victim, Step)| match size {
        JudgeSize::Full => !hit.contains_key(pair),
        JudgeSize::Quick => {
            let of = |is: &dyn Fn(&(Victim, Step)) -> bool| !hit.keys().any(is);
            of(&|(victim, _)| *victim == pair.0) || of(&|(_, step)| *step == pair.1)
        }
    };
    pairs.filter(is_missing).collect()
}

impl Case {
    async fn prepare() -> Result<Self> {
        let mut cluster = Cluster::temporary(ClusterOptions::default())?;
        block_in_place(|| cluster.start())?;
        block_in_place(|| cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"]))?;
        let data = Data::make()?;
        let exports = tempfile::tempdir()?;
        let services = data.0.path().join("services");
        fs::create_dir(&services)?;
        let processes = Processes::launch(Path::new(SERVICE), &services, Layers::Often).await?;
        let main = processes
            .attach(TENANT, &cluster.conninfo("postgres"))
            .await?;
        let mut points = Vec::new();
        for _ in 0..4 {
            block_in_place(|| cluster.pgbench(&["--transactions=300", "postgres"]))?;
            let flushed = cluster.psql("postgres", "SELECT pg_current_wal_flush_lsn()")?;
            points.push(flushed.trim().parse()?);
        }
        let last = points.last().copied().context("no points")?;
        processes.served_up_to(main, last).await?;
        Ok(Self {
            store: ObjectStore::open(processes.store()).await?,
            cluster,
            processes,
            main,
            points,
            data,
            exports,
        })
    }

    /// Starts one on a new branch while somebody dies at a step, or soon after it; then again.
    async fn start(
        &mut self,
        name: &str,
        (victim, step): (Victim, Step),
        random: &mut StdRng,
        judge: &mut Judge,
    ) -> Result<Step> {
        let mut broker = self.broker()?;
        let at = self.points.choose(random).copied();
        let branched = until_ready(async || broker.create_branch(self.main, name, at).await);
        let branched = branched.await?;
        let full = format!("{TENANT}/{name}");
        let words = ["start", "--trust", &full];
        let mut pal = self.pal(&words)?;
        let begun = Instant::now();
        while pal.is_running()? && self.step(branched.timeline).await? < step {
            ensure!(
                begun.elapsed() < PATIENCE,
                "{full} does not come to {step:?}"
            );
            sleep(LOOK).await;
        }
        sleep(within(random)).await;
        let was_done = !pal.is_running()?;
        self.kill(victim, &mut pal)?;
        let died_at = match was_done {
            true => Step::Done,
            false => self.step(branched.timeline).await?,
        };
        self.revive(victim)?;
        let first = pal.ended().await?;
        let is_silent = !first.status.success() && first.errors.is_empty();
        judge.check((is_silent && victim != Victim::Pal).then(|| {
            format!(
                "{full}: {victim:?} at {died_at:?}: {}, without a word",
                first.status
            )
        }));
        let again = self.until_well(&words).await?;
        judge.check((!again.status.success()).then(|| {
            format!(
                "{full}: {victim:?} at {died_at:?}: first {:?}, then {:?}",
                first.errors, again.errors
            )
        }));
        self.is_as_it_should_be(&full, branched, judge).await?;
        self.goes(&full, branched.timeline, judge).await?;
        Ok(died_at)
    }

    /// Holds what was started against its branch, and what was written there against what arrived.
    async fn is_as_it_should_be(
        &self,
        full: &str,
        branched: Branched,
        judge: &mut Judge,
    ) -> Result<()> {
        let place = self.data.place(branched.timeline);
        let told: serde_json::Value =
            serde_json::from_slice(&fs::read(place.join("compute.json"))?)?;
        let source = self.source(branched.timeline).await?;
        let source = source.with_context(|| format!("{full} has no source"))?;
        let begins: Lsn = told["begin"].as_str().context("no begin")?.parse()?;
        judge.check(
            (begins != branched.lsn).then(|| format!("{full} begins at {begins}: {branched:?}")),
        );
        let own = told["system-identifier"].as_u64();
        let is_it = own == Some(source.cluster.get()) && source.begin == begins;
        judge.check((!is_it).then(|| format!("{full} is written by {source:?}, not by {told}")));
        let count = servers_of(&place.join("data"))?;
        judge.check((count != 1).then(|| format!("{full}: {count} servers")));
        let port = told["port"].as_u64().context("no port")?;
        let conninfo = format!(
            "host='{}' port={port} user=postgres dbname=postgres",
            place.join("run").display()
        );
        let mut psql = tool("psql");
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
        for command in OWN {
            psql.args(["-c", command]);
        }
        psql.arg(&conninfo);
        block_in_place(|| run(&mut psql))?;
        let stopped = self.until_well(&["stop", full]).await?;
        judge.check((!stopped.status.success()).then(|| format!("{full}: {}", stopped.errors)));
        let end = checkpoint(&place.join("data"))?;
        let served = self.processes.served_up_to(branched.timeline, end).await?;
        let files = DataFiles::read(&place.join("data"))?;
        let engine = engine(false).await?;
        let oracle = Oracle::new(engine.clone());
        let mut tally = RecoveredTally::of_primary();
        compare_at(&served, &files, end, &oracle, judge, &mut tally).await?;
        engine.stop().await;
        Ok(())
    }

    /// Deletes it; nothing is left of it.
    async fn goes(&self, full: &str, branch: TimelineRef, judge: &mut Judge) -> Result<()> {
        let deleted = self.until_well(&["branch", "delete", full]).await?;
        judge.check((!deleted.status.success()).then(|| format!("{full}: {}", deleted.errors)));
        let place = self.data.place(branch);
        judge.check((place.exists()).then(|| format!("{} is left", place.display())));
        Ok(())
    }

    /// Exports while somebody dies.
    async fn export(
        &mut self,
        victim: Victim,
        round: usize,
        random: &mut StdRng,
        judge: &mut Judge,
    ) -> Result<()> {
        let to = self.exports.path().join(format!("x{round}"));
        let at = self.points.choose(random).context("no points")?.to_string();
        let (path, main) = (to.display().to_string(), format!("{TENANT}/main"));
        let target = match random.random() {
            true => "--to",
            false => "--tar",
        };
        let words = ["export", &main, "--at", &at, target, &path];
        let mut pal = self.pal(&words)?;
        let begun = Instant::now();
        while !to.exists() && pal.is_running()? {
            ensure!(begun.elapsed() < PATIENCE, "{path} does not come");
            sleep(LOOK).await;
        }
        sleep(within(random)).await;
        self.kill(victim, &mut pal)?;
        self.revive(victim)?;
        let ended = pal.ended().await?;
        let what = format!("{words:?}, {victim:?}: {} {}", ended.status, ended.errors);
        if ended.status.success() {
            judge.check(is_incomplete(&to)?.map(|why| format!("{what}: {why}")));
        } else if ended.status.code().is_some() {
            judge.check(is_left(&to)?.map(|left| format!("{what}: {left} is left")));
        } else {
            judge.check(is_taken_for_one(&to)?.map(|why| format!("{what}: {why}")));
        }
        // Where a half was left nothing is written over.
        if to.exists() {
            let again = self.until_well(&words).await?;
            judge.check(
                again
                    .status
                    .success()
                    .then(|| format!("{what}: written over")),
            );
            remove(&to)?;
        }
        let again = self.until_well(&words).await?;
        judge.check(match again.status.success() {
            true => is_incomplete(&to)?,
            false => Some(format!("{what}, then {}", again.errors)),
        });
        remove(&to)
    }

    fn kill(&mut self, victim: Victim, pal: &mut Pal) -> Result<()> {
        match victim {
            Victim::Pal => Ok(pal.child.kill()?),
            Victim::Service(process) => self.processes.kill9(process),
        }
    }

    fn revive(&mut self, victim: Victim) -> Result<()> {
        match victim {
            Victim::Pal => Ok(()),
            Victim::Service(process) => self.processes.start(process),
        }
    }

    /// How far the start on a branch is, by what there is.
    async fn step(&self, branch: TimelineRef) -> Result<Step> {
        let place = self.data.place(branch);
        Ok(match () {
            () if self.source(branch).await?.is_some() => Step::Told,
            () if place.join("compute.json").exists() => Step::Remembered,
            () if place.join("data").exists() => Step::Fetching,
            () => Step::Nothing,
        })
    }

    /// Who writes a branch, by the catalog: the storage-broker may be dead.
    async fn source(&self, branch: TimelineRef) -> Result<Option<BranchSource>> {
        let catalog = CatalogStore::new(self.store.clone()).newest().await?.state;
        let tenant = catalog
            .tenant_of(branch.tenant)
            .context("the tenant is gone")?;
        let mut branches = tenant.branches.iter();
        let found = branches.find(|found| found.id == branch.timeline);
        Ok(found.and_then(|branch| branch.source.clone()))
    }

    fn broker(&self) -> Result<BrokerClient> {
        let address = self.processes.address(Process::StorageBroker);
        Ok(BrokerClient::new(&address)?)
    }

    /// Runs a command as a person does, as a process of its own.
    fn pal(&self, words: &[&str]) -> Result<Pal> {
        let errors = self.exports.path().join("errors");
        let child = Command::new(SERVICE)
            .arg("pal")
            .arg("--data")
            .arg(self.data.0.path())
            .args([
                "--endpoint",
                &self.processes.address(Process::StorageBroker),
            ])
            .args(words)
            .env("PALIMPSEST_PG_BIN", palimpsest_testkit::cluster::pg_bin())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&errors)?)
            .spawn()?;
        Ok(Pal { child, errors })
    }

    /// Runs it until it does not fail for want of a service that is just coming back.
    async fn until_well(&self, words: &[&str]) -> Result<Ended> {
        let begun = Instant::now();
        loop {
            let ended = self.pal(words)?.ended().await?;
            let is_there =
                words.first() == Some(&"export") && ended.errors.contains("is there already");
            if ended.status.success() || is_there || begun.elapsed() > PATIENCE {
                return Ok(ended);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn end(self) {
        self.processes.stop();
        drop((self.data, self.cluster));
    }
}

impl Pal {
    fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    async fn ended(mut self) -> Result<Ended> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                let errors = fs::read_to_string(&self.errors)?;
                return Ok(Ended { status, errors });
            }
            // It has patience itself.
            ensure!(begun.elapsed() < 2 * PATIENCE, "it does not end");
            sleep(10 * LOOK).await;
        }
    }
}

impl Data {
    fn make() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("pal-").tempdir_in("/tmp")?;
        // PostgreSQL may run as another user.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self(directory))
    }

    /// What there is of a PostgreSQL that was started on a branch.
    fn place(&self, branch: TimelineRef) -> PathBuf {
        let computes = self.0.path().join("computes");
        computes.join(branch.timeline.to_string())
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let Ok(computes) = fs::read_dir(self.0.path().join("computes")) else {
            return;
        };
        for compute in computes.flatten() {
            let file = fs::read_to_string(compute.path().join("data/postmaster.pid"));
            let pid = file.unwrap_or_default().lines().next().map(str::parse);
            if let Some(pid) = pid.and_then(Result::ok).and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::QUIT);
            }
        }
    }
}

/// How long a step goes on before something dies.
fn within(random: &mut StdRng) -> Duration {
    let most = WITHIN.choose(random).copied().unwrap_or(1);
    Duration::from_millis(random.random_range(0..most))
}

/// Asks until somebody is there to answer.
async fn until_ready<T>(mut ask: impl AsyncFnMut() -> Result<T, RemoteError>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask().await {
            Err(error) if error.kind == ErrorKind::NotReady && begun.elapsed() < PATIENCE => {
                sleep(20 * LOOK).await;
            }
            outcome => return Ok(outcome?),
        }
    }
}

/// How many servers run on a data directory. Those that they have started are not counted: their parent is one.
fn servers_of(data: &Path) -> Result<usize> {
    let wanted = data.canonicalize()?;
    let mut count = 0;
    for process in fs::read_dir("/proc")?.flatten() {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0);
        let is_server = arguments
            .next()
            .is_some_and(|name| name.ends_with(b"/postgres"));
        let is_there = arguments.any(|argument| argument == wanted.as_os_str().as_encoded_bytes());
        count += usize::from(is_server && is_there);
    }
    Ok(count)
}

/// What an export lacks that was said to be complete.
fn is_incomplete(to: &Path) -> Result<Option<String>> {
    let unpacked = tempfile::tempdir()?;
    let data = match to.is_dir() {
        true => to.to_owned(),
        false => {
            run(Command::new("tar")
                .arg("-xf")
                .arg(to)
                .arg("-C")
                .arg(unpacked.path()))?;
            unpacked.path().to_owned()
        }
    };
    let verified = run(tool("pg_verifybackup").arg(&data));
    Ok(verified.err().map(|error| format!("{error:#}")))
}

/// What is left of an export that has failed.
fn is_left(to: &Path) -> Result<Option<String>> {
    let is_empty = to.is_dir() && fs::read_dir(to)?.next().is_none();
    Ok((to.exists() && !is_empty).then(|| to.display().to_string()))
}

/// Why a half that was left by who was killed could be taken for a whole: without a control file no server starts, and an
/// archive without its end is none.
fn is_taken_for_one(to: &Path) -> Result<Option<String>> {
    match to.join("global/pg_control").exists() {
        true => is_incomplete(to),
        false => Ok(None),
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    removed.with_context(|| format!("removing {}", path.display()))
}
