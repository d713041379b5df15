//! Ingest of WAL that has piled up, against a stock standby that replays the same.
//!
//! Both are away while pgbench runs, then each connects and catches up by streaming. Ours is done
//! when the last of it is fsynced and decoded, the standby when it has replayed it. No page-serve
//! follows meanwhile, as nobody reads from the standby.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_testkit::{Cluster, ClusterOptions, Session, cluster::SUPERUSER};
use palimpsest_types::Lsn;
use palimpsest_wal::{BaseFacts, Interpreter, RelationSizes, SegmentSize};

use super::{Aim, Places, ROUNDS, Rounds, Row, told::peak_memory};
use crate::{
    oracle::read_wal,
    processes::{Layers, Process, Processes},
    recovered::BaseBackup,
};

/// By this name the source knows the standby.
const STANDBY: &str = "standby";
/// By this one it knows ours.
const OURS: &str = "palimpsest_ingest";
/// Of pgbench in each round.
const TRANSACTIONS: &str = "--transactions=12500";
/// Between two looks at a position.
const LOOK: Duration = Duration::from_millis(2);
/// Longer than any round on a slow machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// As fast as pg_basebackup can be told to be, in KiB a second.
const FULL_SPEED: u32 = 1 << 20;

/// Megabytes per second of the two sides.
#[derive(Debug, Default)]
struct Rates {
    ours: Rounds,
    standby: Rounds,
    wal_megabytes: Rounds,
}

/// Lines of the table.
///
/// # Errors
/// If a service or PostgreSQL fails.
pub async fn measure(places: &Places, full_page_writes: &str) -> Result<Vec<Row>> {
    let options = ClusterOptions::default()
        .with("full_page_writes", full_page_writes)
        .with("synchronous_commit", "off")
        .with("shared_buffers", "1GB");
    let mut source = Cluster::temporary(options.clone())?;
    source.start()?;
    source.pgbench(&["--initialize", "--quiet", "--scale=30", "postgres"])?;
    let directory = places.directory(&format!("ingest-{full_page_writes}"))?;
    let mut processes = Processes::launch(places.service(), &directory, Layers::Rarely).await?;
    processes
        .attach("ingest", &source.conninfo(SUPERUSER))
        .await?;
    processes.kill9(Process::PageServe)?;
    processes.kill9(Process::WalIngest)?;
    let backup = BaseBackup::take(&source, FULL_SPEED)?;
    let mut standby = make_standby(&backup, &source, options)?;
    // Once, so that in the rounds it has nothing to replay but theirs.
    standby.start()?;
    let begun = source.flush_lsn()?;
    Position::replayed(&standby)?
        .wait_for(source.flush_lsn()?)
        .await?;
    standby.stop()?;

    let mut rates = Rates::default();
    let mut peak = 0;
    for round in 0..ROUNDS {
        let before = source.flush_lsn()?;
        grow(&source)?;
        let end = source.flush_lsn()?;
        let megabytes = end.saturating_sub(before) as f64 / 1e6;
        rates.wal_megabytes.push(megabytes);
        // They take turns in going first.
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                processes.start(Process::WalIngest)?;
                let position = Position::flushed(&source)?;
                let seconds = catch_up(&source, OURS, position, end).await?;
                rates.ours.push(megabytes / seconds);
                peak = peak.max(peak_memory(&processes, Process::WalIngest)?);
                processes.kill9(Process::WalIngest)?;
            } else {
                standby.start()?;
                let position = Position::replayed(&standby)?;
                let seconds = catch_up(&source, STANDBY, position, end).await?;
                rates.standby.push(megabytes / seconds);
                standby.stop()?;
            }
        }
    }
    let decoded = decode_rate(&source.data_dir().join("pg_wal"), begun)?;
    processes.stop();
    Ok(rows(full_page_writes, &rates, peak, decoded))
}

fn rows(full_page_writes: &str, rates: &Rates, peak: u64, decoded: String) -> Vec<Row> {
    let what = |what: &str| format!("{what}; full_page_writes {full_page_writes}");
    let (ours, standby) = (rates.ours.median(), rates.standby.median());
    let texts = (format!("{ours:.0} MB/s"), format!("{standby:.0} MB/s"));
    let wal = rates.wal_megabytes.median();
    let caught_up = what(&format!(
        "ingest of {wal:.0} MB of pgbench's WAL, streamed (reference: a stock standby)"
    ));
    vec![
        Row::compared(caught_up, texts, ours / standby, Some(Aim::AtLeast(1.0))),
        Row::figure(
            what("peak memory of wal-ingest meanwhile"),
            format!("{} MiB", peak >> 20),
        ),
        Row::figure(what("WAL from files to changes, one thread"), decoded),
    ]
}

/// WAL for a round, ended by a checkpoint: from there the standby begins when it starts again.
fn grow(source: &Cluster) -> Result<()> {
    let load = [
        "--client=4",
        "--jobs=2",
        TRANSACTIONS,
        "--no-vacuum",
        "postgres",
    ];
    source.pgbench(&load)?;
    source.checkpoint()?;
    // What was committed asynchronously is on disk by then, too.
    source.switch_wal().map(drop)
}

fn make_standby(backup: &BaseBackup, source: &Cluster, options: ClusterOptions) -> Result<Cluster> {
    let data = backup.data_dir();
    fs::write(data.join("standby.signal"), "")?;
    let directory = data.parent().context("a data directory has a parent")?;
    let source = format!("{} application_name={STANDBY}", source.conninfo(SUPERUSER));
    // As durable as ours: what it has received is fsynced.
    let options = ClusterOptions {
        durable: true,
        ..options
    };
    let options = options
        .with("primary_conninfo", &source)
        .with("wal_keep_size", "0");
    Cluster::open(directory, options)
}

/// From the moment that the source sees somebody of this name until it has come to `end`.
async fn catch_up(source: &Cluster, name: &str, mut position: Position, end: Lsn) -> Result<f64> {
    position.wait_for(end).await?;
    let done = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let begun = source.psql(
        "postgres",
        &format!(
            "SELECT extract(epoch FROM backend_start) FROM pg_stat_replication
             WHERE application_name = '{name}' AND state IN ('catchup', 'streaming')"
        ),
    )?;
    let begun: f64 = begun.parse().context("when the stream began")?;
    Ok(done.as_secs_f64() - begun)
}

/// How far somebody has come.
#[derive(Debug)]
struct Position {
    session: Session,
    sql: String,
}

impl Position {
    /// How far ours has fsynced and decoded.
    fn flushed(source: &Cluster) -> Result<Self> {
        let sql =
            "SELECT flush_lsn FROM pg_stat_replication WHERE state IN ('catchup', 'streaming')";
        Ok(Self {
            session: source.session("postgres")?,
            sql: format!("{sql} AND application_name = '{OURS}'"),
        })
    }

    /// How far the standby has replayed.
    fn replayed(standby: &Cluster) -> Result<Self> {
        Ok(Self {
            session: standby.session("postgres")?,
            sql: "SELECT pg_last_wal_replay_lsn()".to_owned(),
        })
    }

    async fn wait_for(&mut self, end: Lsn) -> Result<()> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let text = self.session.run(&self.sql)?;
            let at = text.lines().next().and_then(|line| line.parse().ok());
            if at.is_some_and(|at: Lsn| at >= end) {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "{end} does not arrive");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Framing, CRC, decoding and interpreting of the same WAL, without network and disk.
fn decode_rate(pg_wal: &Path, start: Lsn) -> Result<String> {
    let (mut bytes, mut records) = (0, 0);
    // As if all pages that are named had been there before.
    let mut sizes = RelationSizes::default();
    read_wal(pg_wal, start, SegmentSize::DEFAULT, |record| {
        for block in record.decode()?.blocks {
            let end = block.block.next().max(sizes.get(block.rel));
            sizes.set(block.rel, end.unwrap_or_default());
        }
        bytes += record.bytes.len();
        records += 1;
        Ok(())
    })?;
    let mut seconds = Rounds::default();
    for _ in 0..ROUNDS {
        let mut interpreter = Interpreter::new(sizes.clone(), BaseFacts::consistent());
        let begun = Instant::now();
        read_wal(pg_wal, start, SegmentSize::DEFAULT, |record| {
            std::hint::black_box(interpreter.interpret(&record)?);
            Ok(())
        })?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let (bytes, records) = (f64::from(u32::try_from(bytes)?), f64::from(records));
    let median = seconds.median();
    let (rate, per_second) = (bytes / 1e6 / median, records / 1e6 / median);
    Ok(format!("{rate:.0} MB/s, {per_second:.2} M records/s"))
}
