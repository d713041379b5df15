//! P1: every page made from a fuzzy base backup and the WAL is the page that a stock PostgreSQL
//! recovers to, at any record boundary after the backup.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    offline::{OfflineSource, OfflineTimeline, Sabotage},
    oracle::{Oracle, RecoveredTally, compare_at},
    recovered::{BaseBackup, RecoveredInstance, Recovery},
};
use palimpsest_redo_postgres::Engine;
use palimpsest_testkit::{
    Cluster, ClusterOptions, Workload,
    workload::{self, Extra},
};
use palimpsest_types::Lsn;
use palimpsest_wal::SegmentSize;
use rand::{
    RngExt as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, IteratorRandom as _},
};

use crate::support::engine;

const NAME: &str = "recovered-offline";
/// Slow enough that several steps of the workload run while the backup is taken.
const BACKUP_KIB_PER_SECOND: u32 = 48 << 10;

/// Of the chains cut short, how many must be noticed. A record need not change what is compared of
/// each page that it refers to.
const NOTICED_PERCENT: u64 = 90;

/// How one cluster is set up, and when its backup begins.
#[derive(Debug, Clone)]
struct Cell {
    full_page_writes: bool,
    wal_compression: &'static str,
    data_checksums: bool,
    wal_segment_size_mib: u32,
    backup_after: &'static str,
    workload_seed: u32,
}

/// A stopped cluster, a backup taken while it was busy, and all since.
struct Case {
    cluster: Cluster,
    options: ClusterOptions,
    backup: BaseBackup,
    timeline: OfflineTimeline,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_every_page_at_any_lsn_is_what_postgres_recovers_to() {
    let size = JudgeSize::from_env();
    let seed = seed();
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(NAME, "P1");
    for cell in cells(size, &mut random) {
        judge_cell(cell, size.pick(3, 20), &mut random, &mut judge)
            .await
            .unwrap();
    }
    judge.close();
}

/// One cell drawn at random, or four in which each value of each setting occurs.
fn cells(size: JudgeSize, random: &mut StdRng) -> Vec<Cell> {
    let mut compressions = ["off", "pglz", "lz4", "zstd"].into_iter();
    let drawn = random.random_range(0..compressions.len());
    let quick = compressions.clone().nth(drawn);
    let compressions: Vec<_> =
        size.pick(quick.into_iter().collect(), compressions.by_ref().collect());
    let [mut full_page_writes, mut data_checksums]: [bool; 2] = [random.random(), random.random()];
    let mut cell = |wal_compression| {
        (full_page_writes, data_checksums) = (data_checksums, !full_page_writes);
        Cell {
            full_page_writes,
            wal_compression,
            data_checksums,
            wal_segment_size_mib: *[1, 16, 64].choose(random).unwrap(),
            backup_after: early_step(random),
            workload_seed: random.random(),
        }
    };
    compressions.into_iter().map(&mut cell).collect()
}

/// A step with enough of them after it to outlast the backup.
fn early_step(random: &mut StdRng) -> &'static str {
    const LATE_STEPS: usize = 10;
    let workload = workload(0);
    let early = workload.step_names().count() - LATE_STEPS;
    workload.step_names().take(early).choose(random).unwrap()
}

fn workload(seed: u32) -> Workload {
    Workload::full(seed, workload::QUICK).with(Extra::Tablespaces)
}

async fn judge_cell(cell: Cell, lsns: usize, random: &mut StdRng, judge: &mut Judge) -> Result<()> {
    eprintln!("{NAME}: {cell:?}");
    let checksums = cell.data_checksums;
    let begun = Instant::now();
    let case = tokio::task::spawn_blocking(move || Case::prepare(&cell)).await??;
    eprintln!(
        "{NAME}: backup from {} to {}, {} records since, prepared in {:.1?}",
        case.backup.start(),
        case.backup.end(),
        case.timeline.boundaries().len(),
        begun.elapsed(),
    );
    let engine = engine(checksums).await?;
    let lsns = case.draw_lsns(lsns, random)?;
    for lsn in lsns {
        case.judge_at(lsn, &engine, judge).await?;
    }
    engine.stop().await;
    Ok(())
}

impl Case {
    fn prepare(cell: &Cell) -> Result<Self> {
        let options = cell.options();
        let mut cluster = Cluster::temporary(options.clone())?;
        cluster.start()?;
        cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"])?;
        let backup = run_and_back_up(&cluster, cell)?;
        cluster.stop()?;
        let segment_size = SegmentSize::new(u64::from(cell.wal_segment_size_mib) << 20)?;
        let pg_wal = cluster.data_dir().join("pg_wal");
        let (start, end) = (backup.start(), backup.end());
        let timeline =
            OfflineTimeline::build(&backup.data_dir(), &pg_wal, start, end, segment_size)?;
        Ok(Self {
            cluster,
            options,
            backup,
            timeline,
        })
    }

    /// Record boundaries from the backup's end on, the last of them the end. Behind it stands the
    /// checkpoint of the shutdown, from which recovery sees that it got there.
    fn draw_lsns(&self, count: usize, random: &mut StdRng) -> Result<Vec<Lsn>> {
        let (_, boundaries) = self.timeline.boundaries().split_last().context("no WAL")?;
        let (end, boundaries) = boundaries
            .split_last()
            .context("no WAL before the shutdown")?;
        let usable = boundaries
            .iter()
            .copied()
            .filter(|lsn| *lsn >= self.backup.end());
        let mut drawn = usable.sample(random, count);
        drawn.sort();
        drawn.push(*end);
        Ok(drawn)
    }

    async fn judge_at(&self, lsn: Lsn, engine: &Engine, judge: &mut Judge) -> Result<()> {
        let begun = Instant::now();
        let reference = tokio::task::block_in_place(|| self.recover(lsn))?;
        let recovered = begun.elapsed();
        let oracle = Oracle::new(engine.clone());
        let files = reference.files();

        let source = OfflineSource::new(&self.timeline, engine.clone(), Sabotage::None);
        let mut tally = RecoveredTally::default();
        compare_at(&source, files, lsn, &oracle, judge, &mut tally).await?;
        eprintln!("{NAME}: at {lsn}: {tally:?}");

        // The oracle proves itself: with one record missing from each chain it must fail.
        let liar = OfflineSource::new(&self.timeline, engine.clone(), Sabotage::DropLastChange);
        let mut proof = Judge::new(NAME, "P1");
        compare_at(
            &liar,
            files,
            lsn,
            &oracle,
            &mut proof,
            &mut RecoveredTally::default(),
        )
        .await?;
        let (noticed, sabotaged) = (proof.wrong() as u64, liar.sabotaged());
        eprintln!(
            "{NAME}: {noticed} of {sabotaged} pages wrong with a record left out; \
             {recovered:.1?} of {:.1?} to recover",
            begun.elapsed()
        );
        ensure!(
            noticed > 100 && noticed * 100 > sabotaged * NOTICED_PERCENT,
            "the oracle does not notice missing records"
        );
        Ok(())
    }

    fn recover(&self, lsn: Lsn) -> Result<RecoveredInstance> {
        let recovery = Recovery {
            base: &self.backup.data_dir(),
            archive: &self.cluster.data_dir().join("pg_wal"),
            options: &self.options,
        };
        recovery
            .to(lsn)
            .with_context(|| format!("recovering to {lsn}"))
    }
}

impl Cell {
    fn options(&self) -> ClusterOptions {
        let full_page_writes = if self.full_page_writes { "on" } else { "off" };
        ClusterOptions {
            data_checksums: self.data_checksums,
            wal_segment_size_mib: self.wal_segment_size_mib,
            ..ClusterOptions::default()
        }
        .with("full_page_writes", full_page_writes)
        .with("wal_compression", self.wal_compression)
    }
}

/// Runs the workload twice. After a step of the first time a backup begins, during which the next
/// steps run and pgbench besides; the second makes sure that much comes after the backup.
fn run_and_back_up(cluster: &Cluster, cell: &Cell) -> Result<BaseBackup> {
    let backup_ended = AtomicBool::new(false);
    let bench = || -> Result<()> {
        while !backup_ended.load(Ordering::Relaxed) {
            cluster.pgbench(&[
                "--client=2",
                "--transactions=200",
                "--no-vacuum",
                "postgres",
            ])?;
        }
        Ok(())
    };
    let back_up = || {
        let backup = BaseBackup::take(cluster, BACKUP_KIB_PER_SECOND);
        backup_ended.store(true, Ordering::Relaxed);
        backup
    };
    std::thread::scope(|scope| {
        let mut threads = None;
        workload(cell.workload_seed).run_with(cluster, |boundary| {
            if boundary.step == cell.backup_after {
                threads = Some((scope.spawn(bench), scope.spawn(back_up)));
            }
            Ok(())
        })?;
        workload(!cell.workload_seed).run(cluster)?;
        let (bench, backup) = threads.context("the backup did not begin")?;
        bench.join().map_err(|_| anyhow!("pgbench panicked"))??;
        backup.join().map_err(|_| anyhow!("the backup panicked"))?
    })
}
