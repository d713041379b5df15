//! P1 of what leaves: a data directory of any branch at any LSN, from which a stock PostgreSQL starts untouched,
//! and has what one has that recovered to that LSN.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use palimpsest_api::page::{BaseBackupRequest, ReadAt};
use palimpsest_integration::{
    embedded::{Embedded, ServedTimeline},
    judge::{Judge, JudgeSize, seed},
    oracle::{DataFiles, Oracle, PageSource, RecoveredTally, boundaries, compare_at},
    recovered::{BaseBackup, RecoveredInstance, Recovery},
};
use palimpsest_redo_postgres::RunAs;
use palimpsest_testkit::{Cluster, ClusterOptions, Workload, cluster::SUPERUSER, workload};
use palimpsest_types::{BlockNumber, Fork, Lsn, RelTag, SystemIdentifier};
use palimpsest_wal::{SegmentSize, WAL_PAGE_SIZE};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::support::engine;

const NAME: &str = "exported-instance";
const UNHURRIED: u32 = 1 << 20;
const SEGMENT_MIB: u32 = 1;

/// A source that was written to and is stopped, and the services that have its history.
pub(crate) struct Case {
    options: ClusterOptions,
    cluster: Cluster,
    backup: BaseBackup,
    services: Embedded,
    served: ServedTimeline,
    timeline: palimpsest_api::TimelineRef,
    _files: TempDir,
}

/// A data directory as it left.
pub(crate) struct Export {
    directory: TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_stock_postgres_starts_at_any_lsn() {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut judge = Judge::new(NAME, "P1");
    let mut random = StdRng::seed_from_u64(seed);
    for data_checksums in [true, false] {
        let case = Case::prepare(data_checksums, &mut random).await.unwrap();
        case.judge(size.pick(1, 15), &mut random, &mut judge)
            .await
            .unwrap();
        case.stop().await;
    }
    judge.close();
}

impl Case {
    /// The source has everything that makes a copy hard: relations that are not logged, tablespaces, prepared
    /// transactions and one that never ends, databases that come and go, and small segments.
    async fn prepare(data_checksums: bool, random: &mut StdRng) -> Result<Self> {
        let options = ClusterOptions {
            data_checksums,
            wal_segment_size_mib: SEGMENT_MIB,
            ..ClusterOptions::default()
        }
        .with("allow_in_place_tablespaces", "on")
        .with("max_connections", "77")
        .with("max_worker_processes", "9")
        .with(
            "track_commit_timestamp",
            if data_checksums { "on" } else { "off" },
        );
        let mut cluster = Cluster::temporary(options.clone())?;
        block_in_place(|| cluster.start())?;
        let sql = |text: &str| block_in_place(|| cluster.psql("postgres", text));
        sql("CREATE TABLESPACE early LOCATION ''")?;
        sql(
            "CREATE TABLE in_early (n int PRIMARY KEY) TABLESPACE early; INSERT INTO in_early VALUES (1)",
        )?;
        sql(
            "CREATE UNLOGGED TABLE forgets (n int PRIMARY KEY); INSERT INTO forgets SELECT generate_series(1, 1000)",
        )?;
        cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"])?;
        let seed = random.random();
        let (case, ()) = Self::of(options, cluster, |cluster| write(cluster, seed)).await?;
        Ok(case)
    }

    /// A running source, and what is written to it after the base backup.
    pub(crate) async fn of<T>(
        options: ClusterOptions,
        mut cluster: Cluster,
        write: impl FnOnce(&Cluster) -> Result<T>,
    ) -> Result<(Self, T)> {
        let backup = block_in_place(|| BaseBackup::take(&cluster, UNHURRIED))?;
        let files = tempfile::tempdir()?;
        let mut services = Embedded::start(files.path()).await?;
        let timeline = services
            .attach("judged", &cluster.conninfo("postgres"))
            .await?;
        let written = block_in_place(|| write(&cluster))?;
        let end = block_in_place(|| cluster.flush_lsn())?;
        let seen = services.wait_for(timeline, |view| view.status.last_record >= end);
        seen.await?;
        block_in_place(|| cluster.stop())?;
        let served = services.served(timeline).await?;
        let case = Self {
            options,
            cluster,
            backup,
            services,
            served,
            timeline,
            _files: files,
        };
        Ok((case, written))
    }

    pub(crate) async fn stop(self) {
        self.services.stop().await;
    }

    /// Where the records that can be recovered to end, rising.
    pub(crate) async fn ends(&self) -> Result<Vec<Lsn>> {
        let (oldest, newest) = self.served.client().readable(self.timeline).await?;
        let oldest = oldest.max(self.backup.end());
        let segment = u64::from(SEGMENT_MIB) << 20;
        let pg_wal = self.cluster.data_dir().join("pg_wal");
        let size = SegmentSize::new(segment)?;
        // The last can't be recovered to: nothing comes after it.
        let mut ends = boundaries(&pg_wal, self.backup.start(), size, oldest..=newest)?;
        ends.pop();
        Ok(ends)
    }

    /// Judges what leaves at these LSNs, of those that can be recovered to.
    pub(crate) async fn judge_each(
        &self,
        ends: &[Lsn],
        wanted: Vec<Lsn>,
        judge: &mut Judge,
    ) -> Result<()> {
        let (first, last) = ends.first().zip(ends.last()).context("no records")?;
        for lsn in wanted
            .into_iter()
            .filter(|lsn| (first..=last).contains(&lsn))
        {
            let end = ends.iter().rfind(|end| **end <= lsn).unwrap_or(first);
            self.judge_at(lsn, *end, judge)
                .await
                .with_context(|| format!("at {lsn}"))?;
        }
        Ok(())
    }

    async fn judge(&self, count: usize, random: &mut StdRng, judge: &mut Judge) -> Result<()> {
        let ends = self.ends().await?;
        let segment = u64::from(SEGMENT_MIB) << 20;
        let (first, last) = (ends.first().copied(), ends.last().copied());
        let (first, last) = first.zip(last).context("no records")?;
        let random_end = |random: &mut StdRng| ends.choose(random).copied().unwrap_or(last);
        let mut wanted = vec![first, last];
        // Where a page or a segment begins: the record goes behind a header there.
        wanted.push(Lsn::new(
            random_end(random).floor_to(WAL_PAGE_SIZE).get() + WAL_PAGE_SIZE,
        ));
        wanted.push(Lsn::new(random_end(random).floor_to(segment).get()));
        // In the middle of a record; and with as little room left in a page as there can be.
        wanted.push(Lsn::new(random_end(random).get() + 12));
        let tight = |end: &&Lsn| end.offset_in(WAL_PAGE_SIZE) > WAL_PAGE_SIZE - 100;
        wanted.extend(
            ends.iter()
                .filter(tight)
                .collect::<Vec<_>>()
                .choose(random)
                .map(|end| **end),
        );
        wanted.extend((0..count).map(|_| random_end(random)));
        self.judge_each(&ends, wanted, judge).await?;
        self.judge_branch(random_end(random), judge).await
    }

    /// A branch leaves as the timeline that it begins on; and as another cluster, on a timeline of its own.
    async fn judge_branch(&self, lsn: Lsn, judge: &mut Judge) -> Result<()> {
        let mut broker = self.services.broker();
        let branch = broker
            .create_branch(self.timeline, "leaves", Some(lsn))
            .await?;
        let served = self.services.served(branch.timeline).await?;
        let directory = tempfile::tempdir()?;
        let mut archives = Vec::new();
        for (served, timeline) in [(&self.served, self.timeline), (&served, branch.timeline)] {
            let path = directory.path().join(timeline.timeline.to_string());
            receive(served, request(timeline, branch.lsn), &path).await?;
            archives.push(fs::read(path)?);
        }
        judge.check((archives[0] != archives[1]).then(|| format!("{branch:?} leaves otherwise")));
        let request = BaseBackupRequest {
            system_identifier: Some(SystemIdentifier::new(4_711)),
            postgres_timeline: None,
            ..request(branch.timeline, branch.lsn)
        };
        let export = Export::of(&served, request).await?;
        block_in_place(|| export.verify(self.options.data_checksums, lsn, judge))?;
        block_in_place(|| export.starts_untouched(judge))?;
        let told = run(tool("pg_controldata").arg(export.data_dir()))?;
        let is_own =
            |line: &str| line.starts_with("Database system identifier:") && line.ends_with(" 4711");
        judge.check((!told.lines().any(is_own)).then_some(told));
        broker.delete_branch(branch.timeline).await?;
        Ok(())
    }

    /// Compares an export with a PostgreSQL that recovered to the same: the end of the newest record.
    async fn judge_at(&self, lsn: Lsn, end: Lsn, judge: &mut Judge) -> Result<()> {
        let pg_wal = self.cluster.data_dir().join("pg_wal");
        let recovery = Recovery {
            base: &self.backup.data_dir(),
            archive: &pg_wal,
            options: &self.options,
        };
        let reference = block_in_place(|| recovery.to(end))?;
        let export = Export::make(&self.served, self.timeline, lsn).await?;
        block_in_place(|| export.verify(self.options.data_checksums, lsn, judge))?;
        let engine = engine(self.options.data_checksums).await?;
        let oracle = Oracle::new(engine.clone());
        let files = DataFiles::read(&export.data_dir())?;
        judge.check(unlike_their_init_forks(&files)?);
        let exported = Exported(files);
        let mut tally = RecoveredTally::default();
        compare_at(
            &exported,
            reference.files(),
            lsn,
            &oracle,
            judge,
            &mut tally,
        )
        .await?;
        eprintln!("exported at {lsn}: {tally:?}");
        engine.stop().await;
        judge.check(self.unlike_sparse(&exported.0, lsn).await?);
        block_in_place(|| export.starts_untouched(judge))?;
        block_in_place(|| self.lives(&export, &reference, lsn, judge))
    }

    /// The sparse form has the same files but for those that it says it leaves out, with their lengths.
    async fn unlike_sparse(&self, full: &DataFiles, lsn: Lsn) -> Result<Option<String>> {
        let directory = tempfile::tempdir()?;
        let archive = directory.path().join("sparse.tar");
        let request = BaseBackupRequest {
            is_sparse: true,
            ..request(self.timeline, lsn)
        };
        let left_out = receive(&self.served, request, &archive).await?;
        let data = directory.path().join("data");
        unpack(&archive, &data)?;
        let sparse = DataFiles::read(&data)?;
        let sizes = |files: &DataFiles| -> Result<BTreeMap<_, _>> {
            files
                .iter()
                .map(|(rel, file)| Ok((rel, file.blocks()?)))
                .collect()
        };
        let mut both = sizes(&sparse)?;
        ensure!(!both.is_empty(), "what is not logged is missing");
        let twice = left_out.iter().any(|(rel, _)| both.contains_key(rel));
        both.extend(left_out);
        let differs = twice || both != sizes(full)?;
        let has_control = data.join("global/pg_control").exists();
        Ok((differs || !has_control).then(|| format!("the sparse form at {lsn}")))
    }

    /// Both are asked for all that they have, and the export is written to.
    fn lives(
        &self,
        export: &Export,
        reference: &RecoveredInstance,
        lsn: Lsn,
        judge: &mut Judge,
    ) -> Result<()> {
        let theirs = reference.data_dir();
        let theirs = theirs.parent().context("no directory")?;
        let mut dumps = Vec::new();
        for directory in [theirs, export.directory.path()] {
            trust(&directory.join("data"))?;
            let options = ClusterOptions {
                autovacuum: false,
                ..self.options.clone()
            };
            let mut cluster = Cluster::open(directory, options)?;
            cluster.start()?;
            dumps.push(Told::ask(&cluster)?);
            if directory == export.directory.path() {
                judge.check(amcheck(&cluster)?.map(|text| format!("at {lsn}: {text}")));
                cluster.pgbench(&["--transactions=50", "--client=4", "postgres"])?;
                cluster.psql(
                    "postgres",
                    "CREATE TABLE written_here AS SELECT 1; CHECKPOINT",
                )?;
                // What it wrote itself it recovers.
                cluster.psql("postgres", "INSERT INTO written_here VALUES (2)")?;
                cluster.kill9()?;
                cluster.start()?;
                let count = cluster.psql("postgres", "SELECT count(*) FROM written_here")?;
                judge.check((count != "2").then(|| format!("at {lsn}: {count} rows of 2")));
                judge.check(amcheck(&cluster)?.map(|text| format!("later, {lsn}: {text}")));
            }
            cluster.stop()?;
        }
        let [theirs, ours] = &dumps[..] else {
            return Err(anyhow!("two were asked"));
        };
        for (what, theirs) in &theirs.0 {
            let ours = ours.0.get(what);
            let finding = || format!("{what} at {lsn}: {}", difference(theirs, ours));
            judge.check((ours != Some(theirs)).then(finding));
        }
        Ok(())
    }
}

/// What clusters have that must be the same.
struct Told(BTreeMap<String, String>);

impl Told {
    fn ask(cluster: &Cluster) -> Result<Self> {
        let mut told = BTreeMap::new();
        let questions = [
            "SELECT gid, owner, database, prepared FROM pg_prepared_xacts ORDER BY gid",
            "SELECT oid, spcname FROM pg_tablespace ORDER BY oid",
            "SELECT local_id, external_id, remote_lsn FROM pg_replication_origin_status ORDER BY 1",
            "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2",
            "SELECT checkpoint_lsn IS NOT NULL, next_multixact_id, next_multi_offset, oldest_xid, oldest_multi_xid
             FROM pg_control_checkpoint()",
            "SELECT tid, CASE current_setting('track_commit_timestamp')
             WHEN 'on' THEN pg_xact_commit_timestamp(h.xmin)::text END
             FROM pgbench_history h ORDER BY h.ctid LIMIT 100",
        ];
        for question in questions {
            told.insert(question.to_owned(), cluster.psql("postgres", question)?);
        }
        // Their locks would keep a dump waiting; and what they did is to be seen.
        let prepared = "SELECT database || ' ' || gid FROM pg_prepared_xacts ORDER BY gid";
        for line in cluster.psql("postgres", prepared)?.lines() {
            let (database, gid) = line.split_once(' ').context("no transaction")?;
            cluster.psql(database, &format!("COMMIT PREPARED '{gid}'"))?;
        }
        told.insert("the dump".to_owned(), dump(cluster, &[])?);
        Ok(Self(told))
    }
}

impl Export {
    async fn make(
        served: &ServedTimeline,
        timeline: palimpsest_api::TimelineRef,
        lsn: Lsn,
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let request = request(timeline, lsn);
        let (plain, packed) = (
            directory.path().join("plain"),
            directory.path().join("packed"),
        );
        receive(served, request, &plain).await?;
        let zstd = BaseBackupRequest {
            is_packed: true,
            ..request
        };
        receive(served, zstd, &packed).await?;
        // Also: the same twice.
        let unpacked = zstd::decode_all(File::open(&packed)?)?;
        ensure!(unpacked == fs::read(&plain)?, "packed otherwise");
        Self::of(served, request).await
    }

    pub(crate) async fn of(served: &ServedTimeline, request: BaseBackupRequest) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("pal-").tempdir()?;
        let archive = directory.path().join("base.tar");
        let left_out = receive(served, request, &archive).await?;
        ensure!(left_out.is_empty(), "{left_out:?} is left out");
        let data = directory.path().join("data");
        unpack(&archive, &data)?;
        fs::remove_file(&archive)?;
        if let Some(RunAs { uid, gid }) = RunAs::unprivileged()? {
            run(Command::new("chown")
                .arg("-R")
                .arg(format!("{uid}:{gid}"))
                .arg(directory.path()))?;
        }
        run(Command::new("chmod").arg("0700").arg(&data))?;
        Ok(Self { directory })
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// PostgreSQL's own programs find nothing wrong, before anything has touched it.
    pub(crate) fn verify(&self, data_checksums: bool, lsn: Lsn, judge: &mut Judge) -> Result<()> {
        let data = self.data_dir();
        let mut verify = tool("pg_verifybackup");
        judge.check(complaint(verify.arg(&data))?.map(|text| format!("at {lsn}: {text}")));
        if data_checksums {
            let mut check = tool("pg_checksums");
            judge.check(complaint(check.arg("--check").arg(&data))?);
        }
        let mut control = tool("pg_controldata");
        let told = run(control.arg(&data))?;
        judge.check((!told.contains("shut down\n")).then(|| told.clone()));
        Ok(())
    }

    /// `pg_ctl start` and nothing else.
    fn starts_untouched(&self, judge: &mut Judge) -> Result<()> {
        let data = self.data_dir();
        let before = settings(&data)?;
        let log = self.directory.path().join("first.log");
        let sockets = self.directory.path().display();
        let mut start = as_server("pg_ctl")?;
        let start = start
            .arg("-D")
            .arg(&data)
            .arg("-l")
            .arg(&log)
            .args(["-w", "-o"]);
        let started = complaint(start.arg(format!("-k {sockets} -h ''")).arg("start"))?;
        let told = fs::read_to_string(&log)?;
        let mut stop = as_server("pg_ctl")?;
        let stopped = complaint(stop.arg("-D").arg(&data).args(["-w", "-m", "fast", "stop"]))?;
        for finding in [started, stopped] {
            judge.check(finding.map(|text| format!("{text}\n{told}")));
        }
        // Were its settings others, the control file would say so now.
        let after = settings(&data)?;
        let finding = || format!("{after:?}, not {before:?}");
        judge.check((after != before || before.is_empty()).then(finding));
        let is_known = told.contains("database system was shut down at");
        judge.check((!is_known).then(|| format!("no shutdown in the log:\n{told}")));
        let recovered = [
            "redo starts",
            "was not properly shut down",
            "WARNING",
            "FATAL",
            "PANIC",
        ];
        let found = recovered.iter().find(|word| told.contains(**word));
        judge.check(found.map(|word| format!("{word} in the log:\n{told}")));
        Ok(())
    }
}

pub(crate) fn request(timeline: palimpsest_api::TimelineRef, lsn: Lsn) -> BaseBackupRequest {
    BaseBackupRequest {
        timeline,
        at: ReadAt {
            lsn: Some(lsn),
            ..ReadAt::default()
        },
        system_identifier: None,
        postgres_timeline: Some(77),
        is_packed: false,
        is_sparse: false,
    }
}

/// Writes an archive; gives what is left out of it.
pub(crate) async fn receive(
    served: &ServedTimeline,
    request: BaseBackupRequest,
    to: &Path,
) -> Result<Vec<(RelTag, BlockNumber)>> {
    let mut stream = served.client().base_backup(request).await?;
    let mut file = File::create(to)?;
    while let Some(chunk) = stream.chunk().await? {
        file.write_all(&chunk)?;
    }
    Ok(stream.left_out().to_vec())
}

pub(crate) fn unpack(archive: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    run(Command::new("tar")
        .arg("-xpf")
        .arg(archive)
        .arg("-C")
        .arg(to))
    .map(drop)
}

/// An export, as the files that it has.
struct Exported(DataFiles);

impl PageSource for Exported {
    async fn relations(&self, _: Lsn) -> Result<Vec<(RelTag, BlockNumber)>> {
        self.0
            .iter()
            .map(|(rel, file)| Ok((rel, file.blocks()?)))
            .collect()
    }

    async fn pages(&self, rel: RelTag, blocks: &[BlockNumber], _: Lsn) -> Vec<Result<Bytes>> {
        let pages = self
            .0
            .get(rel)
            .context("no such fork")
            .and_then(|file| file.pages());
        let page = |block: &BlockNumber| {
            let pages = pages.as_ref().map_err(|error| anyhow!("{error:#}"))?;
            let page = pages.get(usize::try_from(block.get())?);
            page.cloned().context("no such block")
        };
        blocks.iter().map(page).collect()
    }
}

/// Relations that are not logged have what their init forks say, and nothing beside.
fn unlike_their_init_forks(files: &DataFiles) -> Result<Option<String>> {
    let mut found = 0;
    for (rel, init) in files.iter().filter(|(rel, _)| rel.fork == Fork::Init) {
        found += 1;
        let main = files
            .get(rel.with_fork(Fork::Main))
            .map(|file| file.pages())
            .transpose()?;
        let others = [Fork::FreeSpaceMap, Fork::VisibilityMap];
        let has_others = others
            .iter()
            .any(|fork| files.get(rel.with_fork(*fork)).is_some());
        if main != Some(init.pages()?) || has_others {
            return Ok(Some(format!("{rel} was not made anew")));
        }
    }
    Ok((found == 0).then(|| "no relation is unlogged".to_owned()))
}

/// What the source does from the base on.
fn write(cluster: &Cluster, seed: u32) -> Result<()> {
    let sql = |text: &str| cluster.psql("postgres", text).map(drop);
    // Before any transaction stays open, for which some of it would wait.
    Workload::full(seed, workload::QUICK).run(cluster)?;
    let mut open = cluster.session("postgres")?;
    open.run("BEGIN; CREATE TABLE never_committed AS SELECT generate_series(1, 500) AS n")?;
    sql(
        "CREATE TABLESPACE late LOCATION ''; CREATE TABLE in_late AS SELECT generate_series(1, 500) AS n",
    )?;
    sql("ALTER TABLE in_late SET TABLESPACE late; CREATE TABLESPACE empty_one LOCATION ''")?;
    sql("CREATE SEQUENCE counts; SELECT nextval('counts') FROM generate_series(1, 100)")?;
    sql(
        "CREATE TABLE waits (n int); BEGIN; INSERT INTO waits SELECT generate_series(1, 200); PREPARE TRANSACTION 'stays'",
    )?;
    sql(
        "SELECT pg_replication_origin_create('far'); SELECT pg_replication_origin_advance('far', '0/123')",
    )?;
    sql("INSERT INTO forgets SELECT generate_series(2000, 3000)")?;
    cluster.pgbench(&["--transactions=300", "--client=4", "postgres"])?;
    sql("CREATE DATABASE copied TEMPLATE template0 STRATEGY file_copy")?;
    sql("CREATE DATABASE logged TEMPLATE template0 STRATEGY wal_log TABLESPACE late")?;
    cluster.switch_wal()?;
    sql("TRUNCATE in_late; DROP DATABASE copied; CHECKPOINT; INSERT INTO in_early VALUES (2)")?;
    open.run("ROLLBACK")?;
    sql("CREATE TABLE the_end ()")
}

pub(crate) fn amcheck(cluster: &Cluster) -> Result<Option<String>> {
    let mut command = client(cluster, "pg_amcheck");
    command.args([
        "--all",
        "--install-missing",
        "--heapallindexed",
        "--parent-check",
    ]);
    complaint(&mut command)
}

/// All that is in a cluster, as `pg_dumpall` tells it.
pub(crate) fn dump(cluster: &Cluster, options: &[&str]) -> Result<String> {
    let mut command = client(cluster, "pg_dumpall");
    let dump = run(command.arg("--no-sync").args(options))?;
    // Each dump has a word of its own, so that nobody can guess it.
    let is_own = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
    let lines: Vec<_> = dump.lines().filter(is_own).collect();
    Ok(lines.join("\n"))
}

/// A program that connects.
fn client(cluster: &Cluster, name: &str) -> Command {
    let mut command = tool(name);
    command
        .arg("-h")
        .arg(cluster.socket_dir())
        .arg("-p")
        .arg(cluster.port().to_string())
        .args(["-U", SUPERUSER]);
    command
}

pub(crate) fn tool(name: &str) -> Command {
    let mut command = Command::new(palimpsest_testkit::cluster::pg_bin().join(name));
    command.env("LC_ALL", "C");
    command
}

/// The same as the user who owns the files.
fn as_server(name: &str) -> Result<Command> {
    use std::os::unix::process::CommandExt as _;
    let mut command = tool(name);
    if let Some(RunAs { uid, gid }) = RunAs::unprivileged()? {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/");
    Ok(command)
}

/// What a program prints; an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("executing {command:?}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {complaint}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a program complains of, if it fails.
fn complaint(command: &mut Command) -> Result<Option<String>> {
    let output = command
        .output()
        .with_context(|| format!("executing {command:?}"))?;
    let told = [&output.stdout[..], &output.stderr[..]]
        .map(String::from_utf8_lossy)
        .concat();
    Ok((!output.status.success()).then(|| format!("{command:?}: {told}")))
}

/// What the control file says of settings.
fn settings(data: &Path) -> Result<Vec<String>> {
    let told = run(tool("pg_controldata").arg(data))?;
    let settings = told.lines().filter(|line| line.contains(" setting: "));
    Ok(settings.map(str::to_owned).collect())
}

/// Lets the judge in.
pub(crate) fn trust(data: &Path) -> Result<()> {
    Ok(fs::write(
        data.join("pg_hba.conf"),
        "local all all trust\n",
    )?)
}

/// The first line that differs.
pub(crate) fn difference(theirs: &str, ours: Option<&String>) -> String {
    let ours = ours.map(String::as_str).unwrap_or_default();
    let pair = theirs
        .lines()
        .zip(ours.lines())
        .find(|(theirs, ours)| theirs != ours);
    format!("{pair:?}, {} and {} bytes", theirs.len(), ours.len())
}
