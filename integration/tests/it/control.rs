//! P1 of the cluster as a whole: what a control file must say at an LSN is what that of a PostgreSQL
//! recovered to it says, replication origins are as far as they are there, and a time means the LSN
//! that it means to `recovery_target_time`.
//!
//! Numbers that we round up must be no less than PostgreSQL's and near them. After the last record,
//! which is the checkpoint of a shutdown, all are equal to those in the source's own control file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::TimelineRef;
use palimpsest_integration::{
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
    oracle::{boundaries, read_wal},
    recovered::{BaseBackup, Recovery},
};
use palimpsest_manifest::TimelineManifests;
use palimpsest_postgres::ReplicationOrigins;
use palimpsest_read::{
    BlockCache, Cluster as AtLsn, LayerFiles, Layers, TimeAt, cluster_at, lsn_at_time,
};
use palimpsest_runtime::TaskScope;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_testkit::{Cluster, ClusterOptions, cluster::pg_bin};
use palimpsest_types::{ByteCount, Lsn};
use palimpsest_wal::{
    CommitTime, ControlData, ResourceManager, SegmentSize, XIDS_PER_COMMIT_TS_PAGE,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tokio::task::block_in_place;

const NAME: &str = "control-at-lsn";
/// As fast as the server likes.
const UNHURRIED: u32 = 1 << 20;
/// Clients of the source at a time: as many transactions may have begun and not yet logged anything.
const CLIENTS: u64 = 4;

/// Locks of several at once, which become multixacts; some transactions fail, in part or as a whole.
const CONTEND: &str = "\\set row random(1, 5)
BEGIN;
SELECT 1 FROM locked WHERE id = :row FOR SHARE;
SAVEPOINT s;
UPDATE locked SET n = n + 1 WHERE id = :row + 10;
ROLLBACK TO s;
SAVEPOINT s;
INSERT INTO filled SELECT random() * 1000;
COMMIT;
";

/// More object ids than are logged in advance, in transactions of their own.
const OBJECTS: &str = "SELECT lo_create(0) FROM generate_series(1, 3000)";

#[tokio::test(flavor = "multi_thread")]
async fn p1_the_cluster_as_a_whole_is_that_of_postgres() {
    let mut judge = Judge::new(NAME, "P1");
    judge_cluster(&mut judge).await.unwrap();
    judge.close();
}

async fn judge_cluster(judge: &mut Judge) -> Result<()> {
    let options = ClusterOptions {
        autovacuum: false,
        ..ClusterOptions::default()
    }
    .with("track_commit_timestamp", "on")
    .with("max_prepared_transactions", "10");
    let mut cluster = Cluster::temporary(options.clone())?;
    block_in_place(|| begin(&mut cluster))?;
    let backup = block_in_place(|| BaseBackup::take(&cluster, UNHURRIED))?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
    let first_writer = TaskScope::default();
    services.start_wal_ingest(&first_writer).await?;
    let timeline = services
        .attach("judged", &cluster.conninfo("postgres"))
        .await?;
    let oldest = services.status(timeline)?.oldest_readable;
    block_in_place(|| change(&cluster, "first"))?;
    // Freezing makes the source forget them.
    let mut commits = block_in_place(|| commit_times(&cluster))?;
    // Another writer must know how everything is, from layers and local WAL.
    first_writer.stop().await;
    services.start_wal_ingest(services.scope()).await?;
    let restarted = block_in_place(|| go_on(&mut cluster))?;
    commits.extend(block_in_place(|| commit_times(&cluster))?);
    // Who follows when the source stops is sent its last record.
    let newest = block_in_place(|| cluster.flush_lsn())?;
    services
        .wait_for(timeline, |view| view.status.last_record >= newest)
        .await?;
    block_in_place(|| cluster.stop())?;
    let last = control_file(cluster.data_dir())?.lsn("Latest checkpoint location")?;
    services
        .wait_for(timeline, |view| view.status.remote_consistent > last)
        .await?;
    let end = services.status(timeline)?.remote_consistent;

    let layers = layers_of(&services, timeline).await?;
    let pg_wal = cluster.data_dir().join("pg_wal");
    let start = backup.start();
    let said = block_in_place(|| Said::read(&cluster, start))?;
    let ours = cluster_at(&layers, end).await?.context("nothing is kept")?;
    same_as_source(&ours, cluster.data_dir(), judge)?;
    for lsn in some_boundaries(&pg_wal, start, oldest, restarted)? {
        let ours = cluster_at(&layers, lsn).await?.context("nothing is kept")?;
        said.compare(&ours.control, lsn, judge);
        let recovery = Recovery {
            base: &backup.data_dir(),
            archive: &pg_wal,
            options: &options,
        };
        let reference = block_in_place(|| recovery.to(lsn));
        let reference = reference.with_context(|| format!("recovering to {lsn}"))?;
        like_recovered(&ours, lsn, &reference.data_dir(), judge)?;
    }
    let ends = ends_of_transactions(&pg_wal, start, &commits, judge)?;
    // As if nothing before could be read, too.
    for oldest in [oldest, restarted] {
        let kinds = compare_times(&layers, &ends, (oldest, end), judge).await?;
        eprintln!("{NAME}: times from {oldest} on: {kinds:?}");
        ensure!(kinds.len() == 3, "not all kinds of answers");
    }
    services.stop().await;
    Ok(())
}

fn sql(cluster: &Cluster, text: &str) -> Result<String> {
    cluster.psql("postgres", text)
}

fn begin(cluster: &mut Cluster) -> Result<()> {
    cluster.start()?;
    sql(cluster, "CREATE TABLE locked (id int PRIMARY KEY, n int)")?;
    sql(cluster, "CREATE TABLE filled (n float)")?;
    sql(
        cluster,
        "INSERT INTO locked SELECT i, 0 FROM generate_series(1, 20) i",
    )?;
    for origin in ["before", "dropped", "advanced"] {
        sql(
            cluster,
            &format!("SELECT pg_replication_origin_create('{origin}')"),
        )?;
        let advance = format!("SELECT pg_replication_origin_advance('{origin}', '0/1234')");
        sql(cluster, &advance)?;
    }
    cluster.checkpoint()
}

/// Everything that changes a number of the cluster.
fn change(cluster: &Cluster, round: &str) -> Result<()> {
    sql(cluster, OBJECTS)?;
    contend(cluster)?;
    let prepare = "BEGIN; SAVEPOINT a; INSERT INTO filled VALUES (1); SAVEPOINT b; \
                   INSERT INTO filled VALUES (2)";
    for end in ["COMMIT", "ROLLBACK"] {
        sql(cluster, &format!("{prepare}; PREPARE TRANSACTION '{end}'"))?;
        sql(cluster, OBJECTS)?;
        sql(cluster, &format!("{end} PREPARED '{end}'"))?;
    }
    let origin = format!("of_{round}");
    sql(
        cluster,
        &format!("SELECT pg_replication_origin_create('{origin}')"),
    )?;
    for position in ["A/10", "A/30", "A/20"] {
        let replicated = format!(
            "SELECT pg_replication_origin_session_setup('{origin}'); BEGIN; \
             SELECT pg_replication_origin_xact_setup('{position}', '2001-02-03 04:05:06'); \
             INSERT INTO filled VALUES (3); COMMIT"
        );
        sql(cluster, &replicated)?;
        cluster.checkpoint()?;
    }
    sql(
        cluster,
        "SELECT pg_replication_origin_advance('advanced', '0/99')",
    )?;
    contend(cluster)
}

/// What is oldest rises; the server is restarted with other settings, of which says where, and goes
/// on.
fn go_on(cluster: &mut Cluster) -> Result<Lsn> {
    sql(cluster, "SELECT pg_replication_origin_drop('dropped')")?;
    sql(cluster, "UPDATE pg_database SET datallowconn = true")?;
    for database in ["template0", "template1", "postgres"] {
        cluster.psql(database, "VACUUM (FREEZE)")?;
    }
    cluster.checkpoint()?;
    change(cluster, "second")?;
    let restarted = cluster.flush_lsn()?;
    sql(cluster, "ALTER SYSTEM SET max_connections = 77")?;
    cluster.stop()?;
    cluster.start()?;
    sql(cluster, OBJECTS)?;
    contend(cluster)?;
    Ok(restarted)
}

fn contend(cluster: &Cluster) -> Result<()> {
    let script = tempfile::NamedTempFile::new()?;
    fs::write(script.path(), CONTEND)?;
    let script = script.path().to_str().context("an odd path")?;
    let clients = format!("--client={CLIENTS}");
    let arguments = [
        &clients,
        "--transactions=150",
        "--no-vacuum",
        "--file",
        script,
        "postgres",
    ];
    cluster.pgbench(&arguments).map(drop)
}

/// When each transaction committed, as the source tells: microseconds since the year 2000.
fn commit_times(cluster: &Cluster) -> Result<BTreeMap<u32, i64>> {
    let rows = sql(
        cluster,
        "SELECT x, (extract(epoch FROM pg_xact_commit_timestamp(x::text::xid)) * 1000000)::bigint \
         - 946684800000000 FROM generate_series(3, txid_current() - 1) x \
         WHERE pg_xact_commit_timestamp(x::text::xid) IS NOT NULL",
    )?;
    let row = |line: &str| -> Result<(u32, i64)> {
        let (xid, time) = line.split_once('|').context("a row without a time")?;
        Ok((xid.parse()?, time.parse()?))
    };
    rows.lines().map(row).collect()
}

async fn layers_of(services: &Embedded, timeline: TimelineRef) -> Result<Layers> {
    let TimelineRef { tenant, timeline } = timeline;
    let store = ObjectStore::open(&services.store()).await?;
    let manifests = TimelineManifests::new(store.clone(), tenant, timeline);
    let manifest = manifests.newest().await?.context("no manifest")?.state;
    let directory = StorePath::timeline(tenant, timeline).child("layers");
    let blocks = Arc::new(BlockCache::new(ByteCount::mib(16)));
    let files = LayerFiles::new(store, directory, blocks);
    Ok(Layers::open(files, &manifest, None).await?)
}

/// Some while the settings were as in the backup, which the recovered instance has.
fn some_boundaries(pg_wal: &Path, start: Lsn, oldest: Lsn, until: Lsn) -> Result<Vec<Lsn>> {
    let all = boundaries(pg_wal, start, SegmentSize::DEFAULT, oldest..=until)?;
    let count = JudgeSize::from_env().pick(4, 20);
    let mut random = StdRng::seed_from_u64(seed());
    let mut drawn = all.into_iter().sample(&mut random, count);
    drawn.sort_unstable();
    Ok(drawn)
}

/// What `pg_controldata` prints.
struct Printed(BTreeMap<String, String>);

fn control_file(data_dir: &Path) -> Result<Printed> {
    let output = Command::new(pg_bin().join("pg_controldata"))
        .arg(data_dir)
        .env("LC_ALL", "C")
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let name = name.trim_start_matches("Latest checkpoint's ");
        Some((name.to_owned(), value.trim().to_owned()))
    };
    Ok(Printed(text.lines().filter_map(line).collect()))
}

impl Printed {
    fn text(&self, name: &str) -> Result<&str> {
        let value = self.0.get(name).map(String::as_str);
        value.with_context(|| format!("pg_controldata prints no {name}"))
    }

    fn number(&self, name: &str) -> Result<u64> {
        let text = self.text(name)?;
        text.parse().with_context(|| format!("{name}: {text}"))
    }

    fn lsn(&self, name: &str) -> Result<Lsn> {
        Ok(self.text(name)?.parse()?)
    }

    fn next_xid(&self) -> Result<u64> {
        let (epoch, xid) = self.text("NextXID")?.split_once(':').context("no epoch")?;
        Ok(epoch.parse::<u64>()? << 32 | xid.parse::<u64>()?)
    }
}

/// Compares one of our numbers with theirs.
fn equal(judge: &mut Judge, what: &str, at: Lsn, ours: u64, theirs: u64) {
    let differs = || format!("{what} at {at}: {ours} instead of {theirs}");
    judge.check((ours != theirs).then(differs));
}

/// The same of a number that may be more than theirs, by less than `within`.
fn at_least(judge: &mut Judge, what: &str, at: Lsn, (ours, theirs): (u64, u64), within: u64) {
    let differs = || format!("{what} at {at}: {ours}, and theirs is {theirs}");
    let is_near = (theirs..theirs + within).contains(&ours);
    judge.check((!is_near).then(differs));
}

/// After the checkpoint of its shutdown the source knows no more than we do.
fn same_as_source(ours: &AtLsn, data_dir: &Path, judge: &mut Judge) -> Result<()> {
    let theirs = control_file(data_dir)?;
    let AtLsn {
        control,
        next_multi,
        parameters,
        ..
    } = ours;
    let at = control.checkpoint;
    for (name, ours) in [
        ("Latest checkpoint location", control.checkpoint),
        ("REDO location", control.redo),
    ] {
        equal(judge, name, at, ours.get(), theirs.lsn(name)?.get());
    }
    equal(judge, "NextXID", at, control.next_xid, theirs.next_xid()?);
    for (name, ours) in [
        ("TimeLineID", control.timeline),
        ("PrevTimeLineID", control.previous_timeline),
        ("NextOID", control.next_oid),
        ("NextMultiXactId", next_multi.id),
        ("NextMultiOffset", next_multi.offset),
        ("oldestXID", control.oldest_xid),
        ("oldestXID's DB", control.oldest_xid_db),
        ("oldestActiveXID", control.oldest_active_xid),
        ("oldestMultiXid", control.oldest_multi),
        ("oldestMulti's DB", control.oldest_multi_db),
        ("oldestCommitTsXid", control.oldest_commit_ts_xid),
        ("newestCommitTsXid", control.newest_commit_ts_xid),
        ("max_connections setting", parameters.max_connections),
        (
            "max_worker_processes setting",
            parameters.max_worker_processes,
        ),
        ("max_wal_senders setting", parameters.max_wal_senders),
        (
            "max_prepared_xacts setting",
            parameters.max_prepared_transactions,
        ),
        (
            "max_locks_per_xact setting",
            parameters.max_locks_per_transaction,
        ),
    ] {
        equal(judge, name, at, ours.into(), theirs.number(name)?);
    }
    let images = if control.full_page_writes {
        "on"
    } else {
        "off"
    };
    ensure!(
        theirs.text("full_page_writes")? == images,
        "full_page_writes"
    );
    equal(
        judge,
        "max_connections",
        at,
        parameters.max_connections.into(),
        77,
    );
    compare_origins(ours, at, data_dir, judge)?;
    let file = fs::read(data_dir.join("global/pg_control"))?;
    // The system identifier and versions; what the server was built with, and its nonce.
    for range in [0..16, 204..288] {
        let (ours, theirs) = (ours.control_file.get(range.clone()), file.get(range));
        judge.check((ours != theirs).then(|| "the control file's fixed part".to_owned()));
    }
    Ok(())
}

/// A recovered instance has taken no number after the LSN that it was recovered to.
fn like_recovered(ours: &AtLsn, at: Lsn, data_dir: &Path, judge: &mut Judge) -> Result<()> {
    let theirs = control_file(data_dir)?;
    let control = &ours.control;
    let next_xid = (control.next_xid, theirs.next_xid()?);
    at_least(
        judge,
        "NextXID",
        at,
        next_xid,
        ControlData::XID_PRECISION + CLIENTS,
    );
    let newest = u64::from(control.newest_commit_ts_xid);
    let newest = (newest, theirs.number("newestCommitTsXid")?);
    let page = u64::from(XIDS_PER_COMMIT_TS_PAGE);
    at_least(judge, "newestCommitTsXid", at, newest, page);
    // Of these a truncation may say more than the checkpoints that recovery believes.
    for (name, ours) in [
        ("oldestXID", control.oldest_xid),
        ("oldestCommitTsXid", control.oldest_commit_ts_xid),
    ] {
        let both = (ours.into(), theirs.number(name)?);
        at_least(judge, name, at, both, u64::from(u32::MAX));
    }
    for (name, ours) in [
        ("NextOID", control.next_oid),
        ("NextMultiXactId", ours.next_multi.id),
        ("NextMultiOffset", ours.next_multi.offset),
        ("oldestXID's DB", control.oldest_xid_db),
        ("oldestMultiXid", control.oldest_multi),
        ("oldestMulti's DB", control.oldest_multi_db),
        ("max_connections setting", ours.parameters.max_connections),
    ] {
        equal(judge, name, at, ours.into(), theirs.number(name)?);
    }
    eprintln!(
        "{NAME}: at {at}: next {next_xid:?}, {:?}, {:?}",
        ours.next_multi, ours.origins
    );
    compare_origins(ours, at, data_dir, judge)
}

/// What a shutdown writes of replication origins.
fn compare_origins(ours: &AtLsn, at: Lsn, data_dir: &Path, judge: &mut Judge) -> Result<()> {
    let file = fs::read(data_dir.join("pg_logical/replorigin_checkpoint"))?;
    let theirs: BTreeMap<_, _> = ReplicationOrigins::parse(&file.into())?.iter().collect();
    let differ = || format!("origins at {at}: {:?} instead of {theirs:?}", ours.origins);
    judge.check((ours.origins != theirs).then(differ));
    Ok(())
}

/// What `pg_waldump` reads of checkpoints and running transactions.
struct Said {
    /// By start of the record: where recovery begins, and whether images are written.
    checkpoints: BTreeMap<Lsn, (Lsn, bool)>,
    /// By start of the record.
    oldest_running: BTreeMap<Lsn, u32>,
}

impl Said {
    fn read(cluster: &Cluster, start: Lsn) -> Result<Self> {
        let mut said = Self {
            checkpoints: BTreeMap::new(),
            oldest_running: BTreeMap::new(),
        };
        for line in cluster.waldump(start, None)? {
            let at = || -> Result<Lsn> { Ok(word_after(&line, "lsn: ")?.parse()?) };
            if line.contains("CHECKPOINT_ONLINE") || line.contains("CHECKPOINT_SHUTDOWN") {
                let redo = word_after(&line, "redo ")?.parse()?;
                let images = word_after(&line, "fpw ")? == "true";
                said.checkpoints.insert(at()?, (redo, images));
                let oldest = word_after(&line, "oldest running xid ")?.parse()?;
                said.oldest_running.insert(at()?, oldest);
            } else if line.contains("RUNNING_XACTS") {
                let oldest = word_after(&line, "oldestRunningXid ")?.parse()?;
                said.oldest_running.insert(at()?, oldest);
            }
        }
        Ok(said)
    }

    fn compare(&self, ours: &ControlData, lsn: Lsn, judge: &mut Judge) {
        let checkpoint = self.checkpoints.range(..lsn).next_back();
        let theirs = checkpoint.map(|(at, (redo, images))| (*at, *redo, *images));
        let ours_of_it = Some((ours.checkpoint, ours.redo, ours.full_page_writes));
        let differs = || format!("checkpoint at {lsn}: {ours_of_it:?} instead of {theirs:?}");
        judge.check((ours_of_it != theirs).then(differs));
        let theirs = self.oldest_running.range(..lsn).next_back();
        let theirs = theirs.map_or(0, |(_, xid)| u64::from(*xid));
        let ours = u64::from(ours.oldest_active_xid);
        equal(judge, "oldest running transaction", lsn, ours, theirs);
    }
}

fn word_after<'a>(line: &'a str, label: &str) -> Result<&'a str> {
    let (_, rest) = line
        .split_once(label)
        .with_context(|| format!("no {label:?}: {line}"))?;
    Ok(rest.split([' ', ',', ';']).next().unwrap_or(rest))
}

/// Starts of records that end a transaction, and when; what the source says of commits must agree.
fn ends_of_transactions(
    pg_wal: &Path,
    start: Lsn,
    commits: &BTreeMap<u32, i64>,
    judge: &mut Judge,
) -> Result<Vec<(Lsn, i64)>> {
    const COMMIT: u8 = 0x00;
    const PREPARE: u8 = 0x10;
    const ENDS: std::ops::RangeInclusive<u8> = COMMIT..=0x40;
    let (mut ends, mut compared) = (Vec::new(), 0);
    let pg_wal = PathBuf::from(pg_wal);
    read_wal(&pg_wal, start, SegmentSize::DEFAULT, |raw| {
        let record = raw.decode()?;
        let kind = record.header.info & 0x70;
        let is_end = record.header.rmid == ResourceManager::Transaction.number()
            && ENDS.contains(&kind)
            && kind != PREPARE;
        if is_end {
            let time = record.main_data.first_chunk().context("no time")?;
            let time = i64::from_le_bytes(*time);
            // What came from elsewhere is kept with the time there.
            let xid = record.header.xid;
            if let Some(said) = commits.get(&xid)
                && (kind, record.origin) == (COMMIT, 0)
            {
                let differs = || format!("transaction {xid}: {time} instead of {said}");
                judge.check((*said != time).then(differs));
                compared += 1;
            }
            ends.push((raw.start_lsn, time));
        }
        Ok(())
    })?;
    ensure!(
        compared > 500,
        "the source tells of {compared} commits only"
    );
    Ok(ends)
}

/// Asks for times around those at which transactions ended.
async fn compare_times(
    layers: &Layers,
    ends: &[(Lsn, i64)],
    (oldest, end): (Lsn, Lsn),
    judge: &mut Judge,
) -> Result<BTreeMap<&'static str, u32>> {
    let mut random = StdRng::seed_from_u64(seed());
    let count = JudgeSize::from_env().pick(100, 1000);
    let times = ends.iter().map(|(_, time)| *time);
    let mut asked = times.clone().sample(&mut random, count);
    for time in &mut asked {
        *time += [0, -1, 1, random.random_range(-5000..5000)][random.random_range(0..4)];
    }
    let hour = 3_600_000_000;
    asked.extend(times.clone().min().map(|time| time - hour));
    asked.extend(times.max().map(|time| time + hour));
    let millis = |time: i64| time.div_euclid(CommitTime::PRECISION);
    let mut kinds = BTreeMap::new();
    // Before the first end that is known there is only the checkpoint that the backup began with.
    let begins = cluster_at(layers, oldest)
        .await?
        .context("nothing is kept")?;
    let begins = (begins.control.time - 946_684_800 + 1) * 1_000_000;
    let is_first = ends.iter().all(|(record, _)| *record >= oldest);
    for time in asked {
        let first = ends.iter().find(|(_, end)| millis(*end) > millis(time));
        let theirs = match first {
            _ if is_first && time < begins => TimeAt::BeforeOldest,
            None => TimeAt::Newest,
            Some((record, _)) if *record < oldest => TimeAt::BeforeOldest,
            Some((record, _)) => TimeAt::Lsn(*record),
        };
        let ours = lsn_at_time(layers, time, oldest..=end).await?;
        judge.check((ours != theirs).then(|| format!("{time}: {ours:?}, not {theirs:?}")));
        let kind = match theirs {
            TimeAt::Lsn(_) => "an LSN",
            TimeAt::Newest => "the newest",
            TimeAt::BeforeOldest => "before the oldest",
        };
        *kinds.entry(kind).or_default() += 1;
    }
    Ok(kinds)
}
