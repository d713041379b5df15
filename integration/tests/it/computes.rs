//! P1 and P4 of what is written on branches: a PostgreSQL that `pal start` starts on one, whose WAL is the history
//! of the branch from then on, through crashes and branches on it, and of nothing else.

use std::{
    fs,
    num::NonZeroUsize,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use palimpsest_api::{
    TimelineRef,
    broker::{BranchWriter, Branched, TimelineState},
    page::{BaseBackupRequest, ReadAt},
};
use palimpsest_console::{Cli, commands};
use palimpsest_integration::{
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
    oracle::boundaries,
    recovered::Recovery,
};
use palimpsest_manifest::{LayerEntry, LayerKind, TimelineManifest};
use palimpsest_runtime::TaskScope;
use palimpsest_store::ObjectStore;
use palimpsest_testkit::{Cluster, ClusterOptions, Workload, workload};
use palimpsest_types::{ByteCount, ErrorKind, Lsn, SystemIdentifier};
use palimpsest_wal::SegmentSize;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::{
    branches::manifest,
    exports::{receive, run, tool, trust, unpack},
    support::compare_with_recovered,
};

const NAME: &str = "branch-written";
const PATIENCE: Duration = Duration::from_secs(60);
const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// A source, the services that follow it, and where branches are started.
struct Case {
    options: ClusterOptions,
    cluster: Cluster,
    services: Embedded,
    main: TimelineRef,
    endpoint: String,
    data: TempDir,
    _files: TempDir,
}

/// What was started on a branch.
struct Compute {
    name: String,
    branch: TimelineRef,
    directory: PathBuf,
    writer: BranchWriter,
    port: u64,
    /// The data directory that it began with.
    kept: TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_p4_what_is_written_on_a_branch_is_its_history() {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut judge = Judge::new(NAME, "P1");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cases: Vec<bool> = vec![random.random()];
    cases.extend(size.pick(None, Some(!cases[0])));
    for data_checksums in cases {
        let case = Case::prepare(data_checksums, random.random())
            .await
            .unwrap();
        case.judge(size.pick(1, 10), &mut random, &mut judge)
            .await
            .unwrap();
        case.services.stop().await;
    }
    judge.close();
}

impl Case {
    async fn prepare(data_checksums: bool, seed: u32) -> Result<Self> {
        let options = ClusterOptions {
            data_checksums,
            ..ClusterOptions::default()
        }
        .with("max_prepared_transactions", "10");
        let mut cluster = Cluster::temporary(options.clone())?;
        block_in_place(|| cluster.start())?;
        cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"])?;
        let files = tempfile::tempdir()?;
        let mut services = Embedded::start(files.path()).await?;
        // Tiny layers, and images of what has changed in any two.
        let settings = palimpsest_compactor::Settings {
            listen: "127.0.0.1:0".to_owned(),
            broker: services.broker_address().to_owned(),
            store: services.store().as_path().into(),
            compaction_threshold: TWO,
            image_threshold: NonZeroUsize::MIN,
            target_size: ByteCount::mib(1),
            ..palimpsest_compactor::Settings::default()
        };
        palimpsest_compactor::run(settings, services.scope()).await?;
        let main = services
            .attach("judged", &cluster.conninfo("postgres"))
            .await?;
        block_in_place(|| Workload::full(seed, workload::QUICK).run(&cluster))?;
        let data = tempfile::Builder::new().prefix("pal-").tempdir()?;
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            options,
            cluster,
            main,
            endpoint: services.broker_address().to_owned(),
            services,
            data,
            _files: files,
        })
    }

    async fn judge(&self, count: usize, random: &mut StdRng, judge: &mut Judge) -> Result<()> {
        // At the newest LSN, which is not in the object store yet; while the source goes on.
        let first = self.branch(self.main, "first").await?;
        let first = self.start("first", first).await?;
        first.work("first")?;
        self.cluster.pgbench(&["--transactions=200", "postgres"])?;
        judge.check(self.lets_nobody_else_write(&first).await?);

        // A branch of what was written there, written to itself, while the first goes on.
        self.arrived(first.branch, first.flushed()?).await?;
        let second = self.branch(first.branch, "second").await?;
        let second = self.start("second", second).await?;
        second.work("second")?;
        first.crash().await?;
        self.pal(&["start", "judged/first"]).await?;
        first.work("after_crash")?;
        let has = second.psql("SELECT count(*) FROM pg_class WHERE relname ~ 'after_crash'")?;
        judge.check((has != "0").then(|| "the second has what the first wrote later".to_owned()));

        for compute in [&first, &second] {
            self.pal(&["stop", &compute.name]).await?;
            // Once more as it is, with nothing of its own to recover.
            self.pal(&["start", &compute.name]).await?;
            compute.psql("CREATE TABLE the_end ()")?;
            self.pal(&["stop", &compute.name]).await?;
            self.compare(compute, count, random, judge).await?;
        }
        // In the place of the first another goes on, from where that ended; the second's beginning stays.
        let third = self.start_again(&first).await?;
        third.work("third")?;
        self.pal(&["stop", &third.name]).await?;
        self.compare(&third, count, random, judge).await?;
        self.pal(&["branch", "delete", "judged/second"]).await?;
        let gone = self
            .services
            .cluster()
            .borrow()
            .timeline(second.branch)
            .is_none();
        judge.check((!gone).then(|| "the second is still there".to_owned()));
        Ok(())
    }

    async fn branch(&self, on: TimelineRef, name: &str) -> Result<Branched> {
        Ok(self.services.broker().create_branch(on, name, None).await?)
    }

    /// Runs a command as a person does.
    async fn pal(&self, words: &[&str]) -> Result<()> {
        let data = self.data.path().display().to_string();
        let options = ["pal", "--endpoint", &self.endpoint, "--data", &data];
        let bin = palimpsest_testkit::cluster::pg_bin().display().to_string();
        let more = match words.first() {
            Some(&("start" | "stop")) => vec!["--pg-bin", bin.as_str()],
            _ => Vec::new(),
        };
        let cli = Cli::try_parse_from([&options[..], words, &more].concat())?;
        let done = commands::run(cli).await;
        done.map_err(|error| anyhow::anyhow!("{words:?}: {}", error.in_full()))
    }

    async fn start(&self, name: &str, branched: Branched) -> Result<Compute> {
        let name = format!("judged/{name}");
        self.pal(&["start", &name]).await?;
        let compute = self.started(name, branched.timeline).await?;
        ensure!(
            compute.writer.begin == branched.lsn,
            "{:?}, {branched:?}",
            compute.writer
        );
        Ok(compute)
    }

    /// Another one in the place of one that is stopped, whose directory is lost.
    async fn start_again(&self, before: &Compute) -> Result<Compute> {
        fs::remove_dir_all(&before.directory)?;
        let refused = self.pal(&["start", &before.name]).await;
        ensure!(refused.is_err(), "it was started with what may not be all");
        self.pal(&["start", "--discard", &before.name]).await?;
        let compute = self.started(before.name.clone(), before.branch).await?;
        ensure!(compute.writer.system_identifier != before.writer.system_identifier);
        let has = compute.psql("SELECT count(*) FROM first")?;
        ensure!(has == "2400", "{has} rows, not 2400");
        Ok(compute)
    }

    async fn started(&self, name: String, branch: TimelineRef) -> Result<Compute> {
        let directory = self.data.path().join("computes");
        let directory = directory.join(branch.timeline.to_string());
        let text = fs::read(directory.join("compute.json"))?;
        let told: serde_json::Value = serde_json::from_slice(&text)?;
        let number = |key: &str| told[key].as_u64().with_context(|| format!("no {key}"));
        let writer = BranchWriter {
            system_identifier: SystemIdentifier::new(number("system-identifier")?),
            pg_timeline: u32::try_from(number("pg-timeline")?)?,
            begin: told["begin"].as_str().context("no begin")?.parse()?,
        };
        let compute = Compute {
            port: number("port")?,
            kept: self.same_again(branch, writer).await?,
            name,
            branch,
            directory,
            writer,
        };
        compute.psql("ALTER SYSTEM SET wal_keep_size = '4GB'")?;
        compute.psql("SELECT pg_reload_conf()")?;
        Ok(compute)
    }

    /// The data directory that a PostgreSQL has begun with.
    async fn same_again(&self, branch: TimelineRef, writer: BranchWriter) -> Result<TempDir> {
        let served = self.services.served(branch).await?;
        let request = BaseBackupRequest {
            timeline: branch,
            at: ReadAt {
                lsn: Some(writer.begin),
                ..ReadAt::default()
            },
            system_identifier: Some(writer.system_identifier),
            postgres_timeline: Some(writer.pg_timeline),
            is_packed: false,
            is_sparse: false,
        };
        let directory = tempfile::tempdir()?;
        let archive = directory.path().join("base.tar");
        receive(&served, request, &archive).await?;
        let data = directory.path().join("data");
        unpack(&archive, &data)?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
        trust(&data)?;
        Ok(directory)
    }

    async fn arrived(&self, timeline: TimelineRef, lsn: Lsn) -> Result<()> {
        let seen = self
            .services
            .wait_for(timeline, |view| view.status.last_record >= lsn);
        seen.await.map(drop)
    }

    /// One at a time writes a branch, and what runs on it keeps it.
    async fn lets_nobody_else_write(&self, compute: &Compute) -> Result<Option<String>> {
        let mut broker = self.services.broker();
        let other = BranchWriter {
            system_identifier: SystemIdentifier::new(4_711),
            ..compute.writer
        };
        let source = ("host=nowhere user=u", "palimpsest");
        let set = broker.set_branch_source(compute.branch, source, other, None);
        let taken = set.await.map_err(|error| error.kind);
        let deleted = broker.delete_branch(compute.branch).await;
        let deleted = deleted.map_err(|error| error.kind);
        let refused = Err(ErrorKind::Conflict);
        let are_refused = (taken, deleted) == (refused, refused);
        Ok((!are_refused).then(|| format!("another is let in: {taken:?}, {deleted:?}")))
    }

    /// Waits until a compactor has made images of a branch.
    async fn has_images(&self, branch: TimelineRef) -> Result<()> {
        let store = ObjectStore::open(&self.services.store()).await?;
        let begun = Instant::now();
        loop {
            let manifest = manifest(&store, branch).await?;
            if images(&manifest) > 0 {
                eprintln!("{NAME}: {} images of {branch}", images(&manifest));
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "no image is made of {branch}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Holds the pages of a branch against a PostgreSQL that recovers what was written on it: from memory, then from
    /// what is stored.
    async fn compare(
        &self,
        compute: &Compute,
        count: usize,
        random: &mut StdRng,
        judge: &mut Judge,
    ) -> Result<()> {
        let pg_wal = compute.directory.join("data/pg_wal");
        let recovery = Recovery {
            base: &compute.kept.path().join("data"),
            archive: &pg_wal,
            options: &self.options,
        };
        let begin = compute.writer.begin;
        let all = begin..=Lsn::new(u64::MAX);
        let mut ends = boundaries(&pg_wal, begin, SegmentSize::DEFAULT, all)?;
        let end = *ends.last().context("nothing was written")?;
        self.arrived(compute.branch, end).await?;
        // The last can't be recovered to: nothing comes after it.
        ends.pop();
        let (first, last) = (ends.first().copied(), ends.last().copied());
        let mut lsns: Vec<_> = first.into_iter().chain(last).collect();
        lsns.extend((0..count).filter_map(|_| ends.choose(random).copied()));
        let served = self.services.served(compute.branch).await?;
        compare_with_recovered(NAME, &served, recovery, lsns.clone(), judge).await?;

        let stored = self
            .services
            .wait_for(compute.branch, |view| view.status.remote_consistent >= end);
        let status = stored.await?.status;
        if compute.name.ends_with("first") {
            self.has_images(compute.branch).await?;
        }
        let is_away = status.state == TimelineState::Disconnected;
        judge.check((!is_away).then(|| format!("{}: {status:?}", compute.name)));
        let scope = TaskScope::default();
        let address = self.services.start_page_serve(&scope).await?;
        let served = self.services.served_by(&address, compute.branch).await?;
        let readable = async {
            while !served
                .client()
                .readable(compute.branch)
                .await
                .is_ok_and(|(_, newest)| newest >= end)
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let readable = tokio::time::timeout(PATIENCE, readable).await;
        readable.context("what is stored can't be read")?;
        let lsns = lsns.iter().copied().filter(|lsn| Some(*lsn) == last);
        compare_with_recovered(NAME, &served, recovery, lsns, judge).await?;
        scope.stop().await;
        Ok(())
    }
}

/// How many layers of the timeline are images of what it has and what it inherits.
fn images(manifest: &TimelineManifest) -> usize {
    let is_image = |layer: &&LayerEntry| matches!(layer.kind, LayerKind::Image(_));
    manifest.layers().iter().filter(is_image).count()
}

impl Compute {
    fn conninfo(&self) -> String {
        let sockets = self.directory.join("run");
        format!(
            "host='{}' port={} user=postgres dbname=postgres",
            sockets.display(),
            self.port
        )
    }

    fn psql(&self, text: &str) -> Result<String> {
        let mut command = tool("psql");
        command
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", text])
            .arg(self.conninfo());
        Ok(block_in_place(|| run(&mut command))?.trim().to_owned())
    }

    fn flushed(&self) -> Result<Lsn> {
        Ok(self.psql("SELECT pg_current_wal_flush_lsn()")?.parse()?)
    }

    /// A little of everything, some of it under this name.
    fn work(&self, name: &str) -> Result<()> {
        let has = self.psql("SELECT count(*) FROM pg_class WHERE relname = 'pgbench_accounts'")?;
        ensure!(has == "1", "what the source had is not there");
        self.psql(&format!(
            "CREATE TABLE {name} (n int PRIMARY KEY, t text);
             INSERT INTO {name} SELECT n, repeat('x', n % 500) FROM generate_series(1, 3000) AS n;
             CREATE TABLE {name}_gone AS SELECT * FROM {name};
             UPDATE {name} SET t = t || 'y' WHERE n % 3 = 0;
             DELETE FROM {name} WHERE n % 5 = 0"
        ))?;
        self.psql(&format!("VACUUM {name}"))?;
        self.psql(&format!("DROP TABLE {name}_gone; TRUNCATE pgbench_history"))?;
        self.psql(&format!("CREATE DATABASE {name}_db STRATEGY file_copy"))?;
        self.psql("CHECKPOINT")?;
        self.psql(&format!("CREATE DATABASE {name}_db2 TEMPLATE {name}_db"))?;
        self.psql(&format!("DROP DATABASE {name}_db"))?;
        self.psql(&format!(
            "BEGIN; INSERT INTO {name} SELECT n FROM generate_series(5001, 5100) AS n; PREPARE TRANSACTION '{name}'"
        ))?;
        let mut pgbench = tool("pgbench");
        pgbench
            .args(["--transactions=100", "--client=4", "--no-vacuum"])
            .arg(self.conninfo());
        block_in_place(|| run(&mut pgbench)).map(drop)
    }

    /// `kill -9` while it is written to.
    async fn crash(&self) -> Result<()> {
        let mut pgbench = tool("pgbench");
        pgbench
            .args(["--transactions=100000", "--client=4", "--no-vacuum"])
            .arg(self.conninfo());
        let mut load = pgbench.stderr(Stdio::null()).spawn()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let pids = fs::read_to_string(self.directory.join("data/postmaster.pid"))?;
        let pid = pids.lines().next().context("no pid")?;
        run(Command::new("kill").args(["-9", pid]))?;
        block_in_place(|| load.wait())?;
        // Its processes notice, and let go of its memory.
        wait_until_gone(pid).await
    }
}

/// Waits until no process of a server is left.
async fn wait_until_gone(pid: &str) -> Result<()> {
    let begun = Instant::now();
    // Who is left of it has its number as that of the parent, or of the session.
    let is_left = || -> Result<bool> {
        let processes = Command::new("pgrep").args(["-s", pid]).output()?;
        Ok(!processes.stdout.is_empty())
    };
    while is_left()? {
        ensure!(begun.elapsed() < PATIENCE, "processes of {pid} are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
