//! P1 through the wire: page-serve gives, at the LSN of a record, the page that the primary had
//! when it wrote that record.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use palimpsest_integration::{
    embedded::{Embedded, ServedTimeline},
    judge::{Judge, JudgeSize, seed},
    oracle::{PageSource as _, read_wal},
};
use palimpsest_redo_postgres::Engine;
use palimpsest_testkit::{Cluster, ClusterOptions, Workload, workload};
use palimpsest_types::{BlockNumber, Lsn, RelTag};
use palimpsest_wal::{ResourceManager, SegmentSize, restore_image};
use rand::{SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use tokio::task::block_in_place;

use crate::support::engine;

const NAME: &str = "consistency-served";
/// Reads under way at once.
const CONCURRENCY: usize = 16;

/// What a page was after a record, as the primary says in the record itself.
#[derive(Debug, Clone)]
struct Image {
    rmgr: ResourceManager,
    rel: RelTag,
    block: BlockNumber,
    lsn: Lsn,
    page: Bytes,
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_served_page_is_the_one_the_primary_had_at_that_record() {
    judge().await.unwrap();
}

async fn judge() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let options = ClusterOptions::default().with("wal_compression", "lz4");
    let mut cluster = Cluster::temporary(options)?;
    block_in_place(|| cluster.start())?;
    block_in_place(|| {
        cluster.psql(
            "postgres",
            "ALTER SYSTEM SET wal_consistency_checking = 'all'",
        )
    })?;
    block_in_place(|| cluster.psql("postgres", "SELECT pg_reload_conf()"))?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let timeline = services
        .attach("checked", &cluster.conninfo("postgres"))
        .await?;
    block_in_place(|| write(&cluster, seed as u32))?;
    let end = block_in_place(|| cluster.flush_lsn())?;
    let view = services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;

    let pg_wal = cluster.data_dir().join("pg_wal");
    let (oldest, count) = (view.status.oldest_readable, size.pick(3000, 30_000));
    let images = block_in_place(|| draw_images(&pg_wal, oldest..end, count, seed))?;
    let served = services.served(timeline).await?;
    let engine = engine(false).await?;
    let mut judge = Judge::new(NAME, "P1");
    let mut by_rmgr: BTreeMap<ResourceManager, u64> = BTreeMap::new();
    let compare = |image| compare(&served, &engine, image);
    let mut compared = stream::iter(images)
        .map(compare)
        .buffer_unordered(CONCURRENCY);
    while let Some(outcome) = compared.next().await {
        let (rmgr, finding) = outcome?;
        *by_rmgr.entry(rmgr).or_default() += 1;
        judge.check(finding);
    }
    eprintln!("{NAME}: {by_rmgr:?}");
    ensure!(by_rmgr.len() >= 9, "too few resource managers were drawn");
    drop(compared);
    engine.stop().await;
    services.stop().await;
    judge.close();
    Ok(())
}

/// Runs the workload. The steps that write by far the most do it without images, which would fill
/// memory with more of the same.
fn write(cluster: &Cluster, seed: u32) -> Result<()> {
    let check = |what: &str| {
        let sql = format!("ALTER SYSTEM SET wal_consistency_checking = '{what}'");
        cluster.psql("postgres", &sql)?;
        cluster
            .psql("postgres", "SELECT pg_reload_conf()")
            .map(drop)
    };
    Workload::full(seed, workload::QUICK).run_with(cluster, |boundary| match boundary.step {
        "hot" | "databases" => check(""),
        "copy" | "pgbench" => check("all"),
        _ => Ok(()),
    })
}

/// Images that only serve consistency checking, drawn evenly from all of the log.
fn draw_images(
    pg_wal: &std::path::Path,
    range: std::ops::Range<Lsn>,
    count: usize,
    seed: u64,
) -> Result<Vec<Image>> {
    // Page numbers of records first, so that millions of images are not held at once.
    let mut places = Vec::new();
    read_wal(pg_wal, range.start, SegmentSize::DEFAULT, |record| {
        let decoded = record.decode()?;
        let checks = decoded
            .blocks
            .iter()
            .filter_map(|block| block.image.as_ref());
        let checks = checks.filter(|image| !image.apply).count();
        if record.end_lsn <= range.end {
            places.extend((0..checks).map(|nth| (record.end_lsn, nth)));
        }
        Ok(())
    })?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut drawn: Vec<_> = places.into_iter().sample(&mut random, count);
    drawn.sort();
    let mut images = Vec::new();
    let mut drawn = drawn.into_iter().peekable();
    read_wal(pg_wal, range.start, SegmentSize::DEFAULT, |record| {
        while drawn.peek().is_some_and(|(lsn, _)| *lsn == record.end_lsn) {
            let nth = drawn.next().map_or(0, |(_, nth)| nth);
            let decoded = record.decode()?;
            let checked = |block: &&palimpsest_wal::BlockRef| {
                block.image.as_ref().is_some_and(|image| !image.apply)
            };
            let Some(block) = decoded.blocks.iter().filter(checked).nth(nth) else {
                continue;
            };
            let Some(image) = &block.image else { continue };
            let rmgr = ResourceManager::from_number(decoded.header.rmid);
            images.push(Image {
                rmgr: rmgr.unwrap_or(ResourceManager::Xlog),
                rel: block.rel,
                block: block.block,
                lsn: record.end_lsn,
                page: restore_image(image, record.end_lsn)?,
            });
        }
        Ok(())
    })?;
    Ok(images)
}

async fn compare(
    served: &ServedTimeline,
    engine: &Engine,
    image: Image,
) -> Result<(ResourceManager, Option<String>)> {
    let Image {
        rmgr,
        rel,
        block,
        lsn,
        page,
    } = image;
    let place = || format!("{rmgr}: {rel} block {block} at {lsn}");
    let ours = served.pages(rel, &[block], lsn).await.pop();
    let finding = match ours {
        None => Some(format!("{}: no answer", place())),
        Some(Err(error)) => Some(format!("{}: {error:#}", place())),
        Some(Ok(ours)) => {
            let ours = engine.mask(rmgr.number(), block, ours).await?;
            let theirs = engine.mask(rmgr.number(), block, page).await?;
            (ours != theirs).then(place)
        }
    };
    Ok((rmgr, finding))
}
