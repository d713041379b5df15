//! P1 through the wire: attach a running PostgreSQL, and every page that page-serve gives at any
//! LSN since is the page that a stock PostgreSQL recovers to.
//!
//! The reference begins with the very base backup that the attach consumed, copied on its way while
//! the cluster was changing.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use palimpsest_api::TimelineRef;
use palimpsest_integration::{
    embedded::{Embedded, ServedTimeline},
    judge::{Judge, JudgeSize, seed},
    oracle::{
        Coverage, Forgetful, Landmarks, Oracle, PageSource, RecoveredTally, compare_at, read_wal,
    },
    recovered::{BackupTap, BaseBackup, RecoveredInstance, Recovery},
};
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
use tokio::{runtime::Handle, task::block_in_place};

use crate::support::engine;

const NAME: &str = "end-to-end";

/// Of how many pages the last record is left out, to see the oracle fail.
const FORGOTTEN: u64 = 300;

/// How one cluster is set up.
#[derive(Debug, Clone, Copy)]
struct Cell {
    full_page_writes: bool,
    wal_compression: &'static str,
    segment_mib: u32,
    data_checksums: bool,
}

/// A stopped cluster that was attached and changed.
struct Case {
    cell: Cell,
    options: ClusterOptions,
    cluster: Cluster,
    backup: BaseBackup,
    services: Embedded,
    timeline: TimelineRef,
    oldest: Lsn,
    end: Lsn,
    coverage: Coverage,
    /// The services reach the source through it.
    _tap: BackupTap,
    _files: tempfile::TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_every_served_page_at_any_lsn_is_what_postgres_recovers_to() {
    let size = JudgeSize::from_env();
    let seed = seed();
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(NAME, "P1");
    let all = Cell::all();
    let drawn = all.choose(&mut random).copied().into_iter().collect();
    for cell in size.pick(drawn, all) {
        eprintln!("{NAME}: {cell:?}");
        let case = Case::prepare(cell, &mut random).await.unwrap();
        case.judge(size, &mut random, &mut judge).await.unwrap();
    }
    judge.close();
}

impl Cell {
    /// Every setting of images with every size of segments; checksums alternate, so that both occur
    /// with every value of each.
    fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for full_page_writes in [true, false] {
            for wal_compression in ["off", "pglz", "lz4", "zstd"] {
                for segment_mib in [1, 16, 64] {
                    cells.push(Self {
                        full_page_writes,
                        wal_compression,
                        segment_mib,
                        data_checksums: (cells.len() + cells.len() / 3).is_multiple_of(2),
                    });
                }
            }
        }
        cells
    }

    fn options(self) -> ClusterOptions {
        let full_page_writes = if self.full_page_writes { "on" } else { "off" };
        ClusterOptions {
            data_checksums: self.data_checksums,
            wal_segment_size_mib: self.segment_mib,
            ..ClusterOptions::default()
        }
        .with("full_page_writes", full_page_writes)
        .with("wal_compression", self.wal_compression)
    }

    fn segment_size(self) -> Result<SegmentSize> {
        Ok(SegmentSize::new(u64::from(self.segment_mib) << 20)?)
    }
}

impl Case {
    async fn prepare(cell: Cell, random: &mut StdRng) -> Result<Self> {
        let options = cell.options();
        let mut cluster = Cluster::temporary(options.clone())?;
        block_in_place(|| cluster.start())?;
        cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"])?;
        let files = tempfile::tempdir()?;
        let mut services = Embedded::start(files.path()).await?;
        let tap = BackupTap::to(cluster.socket_dir(), cluster.port())?;
        let timeline = attach_under_load(&tap, &cluster, &mut services)?;
        let backup = block_in_place(|| tap.take_backup())?;
        let workload = Workload::full(random.random(), workload::QUICK).with(Extra::Tablespaces);
        let (coverage, end) = block_in_place(|| {
            workload.run(&cluster)?;
            let coverage = Coverage::ask(&cluster)?;
            cluster.psql("postgres", "SELECT pg_switch_wal()")?;
            cluster.psql("postgres", "CREATE TABLE the_end ()")?;
            anyhow::Ok((coverage, cluster.flush_lsn()?))
        })?;
        let view = services
            .wait_for(timeline, |view| view.status.last_record >= end)
            .await?;
        eprintln!("{NAME}: {:?}", view.status);
        ensure!(view.status.flushed >= end, "readable before it is durable");
        let oldest = view.status.oldest_readable;
        ensure!(oldest == backup.end(), "readable from {oldest} on");
        // The archive must hold WAL beyond the last LSN; the shutdown writes some.
        block_in_place(|| cluster.stop())?;
        Ok(Self {
            cell,
            options,
            cluster,
            backup,
            services,
            timeline,
            oldest,
            end,
            coverage,
            _tap: tap,
            _files: files,
        })
    }

    async fn judge(self, size: JudgeSize, random: &mut StdRng, judge: &mut Judge) -> Result<()> {
        Coverage::expect_records(&self.cluster, self.oldest, self.end)?;
        let served = self.services.served(self.timeline).await?;
        let engine = engine(self.cell.data_checksums).await?;
        let oracle = Oracle::new(engine.clone());
        for lsn in self.draw_lsns(size, random)? {
            let reference = block_in_place(|| self.recover(lsn))?;
            compare(&served, &reference, lsn, &oracle, judge).await?;
        }
        let reference = block_in_place(|| self.recover(self.end))?;
        compare(&served, &reference, self.end, &oracle, judge).await?;
        self.coverage.expect_in(reference.files())?;
        self.prove(&served, &reference, &oracle).await?;
        // The same from layers alone: a page-serve that starts now has nothing else.
        self.services
            .wait_for(self.timeline, |view| {
                view.status.remote_consistent >= self.end
            })
            .await?;
        let scope = self.services.scope();
        let address = self.services.start_page_serve(scope).await?;
        let served = self.services.served_by(&address, self.timeline).await?;
        ready(&served, self.end).await?;
        compare(&served, &reference, self.end, &oracle, judge).await?;
        engine.stop().await;
        self.services.stop().await;
        Ok(())
    }

    /// Record boundaries, some anywhere and some where things are half done.
    fn draw_lsns(&self, size: JudgeSize, random: &mut StdRng) -> Result<Vec<Lsn>> {
        let mut boundaries = Vec::new();
        let mut landmarks = Landmarks::default();
        let (pg_wal, size_of_segment) = (self.pg_wal(), self.cell.segment_size()?);
        read_wal(&pg_wal, self.backup.start(), size_of_segment, |record| {
            if (self.oldest..self.end).contains(&record.end_lsn) {
                boundaries.push(record.end_lsn);
                landmarks.note(&record);
            }
            Ok(())
        })?;
        let mut lsns: Vec<Lsn> = boundaries.into_iter().sample(random, size.pick(2, 4));
        let landmarks = landmarks.draw(2, random);
        eprintln!("{NAME}: landmarks {landmarks:?}");
        lsns.extend(landmarks.into_iter().map(|(_, lsn)| lsn));
        lsns.sort();
        Ok(lsns)
    }

    fn recover(&self, lsn: Lsn) -> Result<RecoveredInstance> {
        let recovery = Recovery {
            base: &self.backup.data_dir(),
            archive: &self.pg_wal(),
            options: &self.options,
        };
        recovery
            .to(lsn)
            .with_context(|| format!("recovering to {lsn}"))
    }

    fn pg_wal(&self) -> PathBuf {
        self.cluster.data_dir().join("pg_wal")
    }

    /// The oracle proves itself: it must see each page from which a record is left out.
    async fn prove(
        &self,
        served: &ServedTimeline,
        reference: &RecoveredInstance,
        oracle: &Oracle,
    ) -> Result<()> {
        let liar = Forgetful::new(served, self.oldest, FORGOTTEN);
        let mut proof = Judge::new(NAME, "P1");
        compare(&liar, reference, self.end, oracle, &mut proof).await?;
        let (noticed, forgotten) = (proof.wrong() as u64, liar.forgotten());
        eprintln!("{NAME}: {noticed} of {forgotten} pages wrong with a record left out");
        ensure!(
            noticed == forgotten && forgotten == FORGOTTEN,
            "the oracle does not notice missing records"
        );
        Ok(())
    }
}

/// Attaches while pgbench runs, so that the backup has pages of many moments.
fn attach_under_load(
    tap: &BackupTap,
    cluster: &Cluster,
    services: &mut Embedded,
) -> Result<TimelineRef> {
    let attached = AtomicBool::new(false);
    let conninfo = tap.conninfo("postgres");
    let load = ["--client=2", "--transactions=50", "--no-vacuum", "postgres"];
    std::thread::scope(|threads| {
        let load = threads.spawn(|| -> Result<()> {
            while !attached.load(Ordering::Relaxed) {
                cluster.pgbench(&load)?;
            }
            Ok(())
        });
        let attach = services.attach("judged", &conninfo);
        let timeline = block_in_place(|| Handle::current().block_on(attach));
        attached.store(true, Ordering::Relaxed);
        let load = load.join().map_err(|_| anyhow!("pgbench panicked"))?;
        load.and(timeline)
    })
}

/// Waits until a page-serve that has just started knows the timeline.
async fn ready(served: &ServedTimeline, lsn: Lsn) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    const PAUSE: Duration = Duration::from_millis(200);
    let begun = Instant::now();
    while let Err(error) = served.relations(lsn).await {
        if begun.elapsed() > PATIENCE {
            return Err(error.context("the new page-serve does not serve"));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn compare<S: PageSource>(
    source: &S,
    reference: &RecoveredInstance,
    lsn: Lsn,
    oracle: &Oracle,
    judge: &mut Judge,
) -> Result<()> {
    let mut tally = RecoveredTally::default();
    compare_at(source, reference.files(), lsn, oracle, judge, &mut tally).await?;
    eprintln!("{NAME}: at {lsn}: {tally:?}");
    Ok(())
}
