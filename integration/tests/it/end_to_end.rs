//! P1 through the wire: attach a running PostgreSQL, and every page that page-serve gives at any
//! LSN since is the page that a stock PostgreSQL recovers to.

use anyhow::{Context as _, Result, ensure};
use palimpsest_integration::{
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
    oracle::{Oracle, RecoveredTally, compare_at, read_wal},
    recovered::{BaseBackup, Recovery},
};
use palimpsest_testkit::{
    Cluster, ClusterOptions, Workload,
    workload::{self, Extra},
};
use palimpsest_types::Lsn;
use palimpsest_wal::SegmentSize;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};

use crate::support::engine;

const NAME: &str = "end-to-end";
/// As fast as the server likes.
const UNHURRIED: u32 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn p1_every_served_page_at_any_lsn_is_what_postgres_recovers_to() {
    let size = JudgeSize::from_env();
    let seed = seed();
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut judge = Judge::new(NAME, "P1");
    for options in size.pick(vec![cell(&mut random)], all_cells(&mut random)) {
        judge_cell(options, size, &mut random, &mut judge)
            .await
            .unwrap();
    }
    judge.close();
}

/// A cell of the matrix, so that successive seeds cover it.
fn cell(random: &mut StdRng) -> ClusterOptions {
    let compression = ["off", "pglz", "lz4", "zstd"]
        .into_iter()
        .choose(random)
        .unwrap_or("off");
    cell_with(random.random(), compression, random)
}

/// Every value of what changes the log most, with everything else drawn.
fn all_cells(random: &mut StdRng) -> Vec<ClusterOptions> {
    let log = [
        (true, "off"),
        (true, "pglz"),
        (false, "off"),
        (false, "pglz"),
        (true, "lz4"),
    ];
    log.into_iter()
        .map(|(images, compression)| cell_with(images, compression, random))
        .collect()
}

fn cell_with(full_page_writes: bool, compression: &str, random: &mut StdRng) -> ClusterOptions {
    ClusterOptions {
        data_checksums: random.random(),
        wal_segment_size_mib: [1, 16].into_iter().choose(random).unwrap_or(16),
        ..ClusterOptions::default()
    }
    .with(
        "full_page_writes",
        if full_page_writes { "on" } else { "off" },
    )
    .with("wal_compression", compression)
}

async fn judge_cell(
    options: ClusterOptions,
    size: JudgeSize,
    random: &mut StdRng,
    judge: &mut Judge,
) -> Result<()> {
    eprintln!(
        "{NAME}: {:?}, checksums {}",
        options.settings, options.data_checksums
    );
    let mut cluster = Cluster::temporary(options.clone())?;
    tokio::task::block_in_place(|| cluster.start())?;
    cluster.pgbench(&["--initialize", "--quiet", "--scale=2", "postgres"])?;
    let backup = tokio::task::block_in_place(|| BaseBackup::take(&cluster, UNHURRIED))?;

    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let timeline = services
        .attach("judged", &cluster.conninfo("postgres"))
        .await?;
    let workload = Workload::full(random.random(), workload::QUICK).with(Extra::Tablespaces);
    tokio::task::block_in_place(|| workload.run(&cluster))?;
    let end = tokio::task::block_in_place(|| {
        cluster.psql("postgres", "SELECT pg_switch_wal()")?;
        cluster.psql("postgres", "CREATE TABLE the_end ()")?;
        cluster.flush_lsn()
    })?;
    let view = services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    eprintln!("{NAME}: {:?}", view.status);
    ensure!(view.status.flushed >= end, "readable before it is durable");

    // The archive must hold WAL beyond the last LSN; the shutdown writes some.
    tokio::task::block_in_place(|| cluster.stop())?;
    let pg_wal = cluster.data_dir().join("pg_wal");
    let oldest = view.status.oldest_readable;
    let mut boundaries = Vec::new();
    let segment_size = SegmentSize::new(u64::from(options.wal_segment_size_mib) << 20)?;
    read_wal(&pg_wal, backup.start(), segment_size, |record| {
        if (oldest..end).contains(&record.end_lsn) {
            boundaries.push(record.end_lsn);
        }
        Ok(())
    })?;
    let mut lsns: Vec<Lsn> = boundaries.into_iter().sample(random, size.pick(3, 20));
    lsns.sort();
    lsns.push(end);

    let served = services.served(timeline).await?;
    let engine = engine(options.data_checksums).await?;
    let oracle = Oracle::new(engine.clone());
    let recovery = Recovery {
        base: &backup.data_dir(),
        archive: &pg_wal,
        options: &options,
    };
    for lsn in lsns {
        let reference = tokio::task::block_in_place(|| recovery.to(lsn))
            .with_context(|| format!("recovering to {lsn}"))?;
        let mut tally = RecoveredTally::default();
        compare_at(&served, reference.files(), lsn, &oracle, judge, &mut tally).await?;
        eprintln!("{NAME}: at {lsn}: {tally:?}");
    }
    // The same from layers alone: a page-serve that starts now has nothing else.
    services
        .wait_for(timeline, |view| view.status.remote_consistent >= end)
        .await?;
    let address = services.start_page_serve(services.scope()).await?;
    let served = services.served_by(&address, timeline).await?;
    let reference = tokio::task::block_in_place(|| recovery.to(end))?;
    let mut tally = RecoveredTally::default();
    compare_at(&served, reference.files(), end, &oracle, judge, &mut tally).await?;
    engine.stop().await;
    services.stop().await;
    Ok(())
}
