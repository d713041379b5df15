//! P7: changes that no layer has yet take one budget of a page-serve's memory, whatever timelines they
//! are of. One that takes most of it gives way to others, and comes back by itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{
    TimelineRef,
    channel::connect_lazily,
    page::{PageClient, ReadAt},
};
use palimpsest_integration::embedded::Embedded;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{ByteCount, Lsn, Reason};
use tokio::{
    task::block_in_place,
    time::{sleep, timeout},
};

use crate::lifecycle::relation;

const BUDGET: ByteCount = ByteCount::mib(8);
/// Until then nothing makes room but a timeline that gives way.
const LAYER_AGE: Duration = Duration::from_secs(40);
const PATIENCE: Duration = Duration::from_secs(120);
/// That a timeline stands still is seen in less.
const STILL: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_large_timeline_gives_way_to_a_small_one_and_comes_back() {
    gives_way().await.unwrap();
}

async fn gives_way() -> Result<()> {
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
    let ingest = palimpsest_wal_ingest::Settings {
        layer_size: ByteCount::gib(1),
        layer_age: LAYER_AGE,
        ..services.wal_ingest_settings()
    };
    let page_serve = palimpsest_page_serve::Settings {
        listen: "127.0.0.1:0".to_owned(),
        broker: ingest.broker.clone(),
        store: services.store().into(),
        tail_memory: BUDGET,
        ..palimpsest_page_serve::Settings::default()
    };
    palimpsest_wal_ingest::run(ingest, services.scope()).await?;
    let narrow = palimpsest_page_serve::run(page_serve, services.scope()).await?;
    let client = PageClient::connect(connect_lazily(&narrow.address().to_string())?).await?;

    let (small_source, large_source) = (started()?, started()?);
    let small = attach(&mut services, "small", &small_source).await?;
    let large = attach(&mut services, "large", &large_source).await?;
    // More than there is room for.
    let end = fill(&services, large, &large_source, 200_000).await?;
    let full = stands_still(&client, large).await?;
    ensure!(full < end, "the budget is not heeded: {full} of {end}");

    let small_end = fill(&services, small, &small_source, 2_000).await?;
    arrives(&client, small, small_end).await?;
    let refused = ReadAt {
        lsn: Some(end),
        patience: Some(Duration::from_millis(10)),
        ..ReadAt::default()
    };
    let rel = relation(&large_source, "filled")?;
    let error = client.relation_size(large, refused, rel).await.err();
    let reason = error.and_then(|error| error.reason);
    ensure!(reason == Some(Reason::NotArrived), "{reason:?}");

    // With its layers it is served up to the end, too.
    arrives(&client, large, end).await?;
    let (_, relations) = client.relations(large, ReadAt::default()).await?;
    ensure!(relations.iter().any(|(served, _)| *served == rel));
    services.stop().await;
    Ok(())
}

fn started() -> Result<Cluster> {
    let mut cluster = Cluster::temporary(ClusterOptions::default())?;
    block_in_place(|| cluster.start())?;
    Ok(cluster)
}

async fn attach(services: &mut Embedded, name: &str, source: &Cluster) -> Result<TimelineRef> {
    services.attach(name, &source.conninfo("postgres")).await
}

/// Writes so many rows, and waits until wal-ingest has them.
async fn fill(
    services: &Embedded,
    timeline: TimelineRef,
    source: &Cluster,
    rows: u32,
) -> Result<Lsn> {
    let sql = format!(
        "CREATE TABLE filled AS SELECT i, repeat('x', 100) FROM generate_series(1, {rows}) i"
    );
    let end = block_in_place(|| {
        source.psql("postgres", &sql)?;
        source.flush_lsn()
    })?;
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    Ok(end)
}

async fn arrives(client: &PageClient, timeline: TimelineRef, lsn: Lsn) -> Result<()> {
    let arrived = async {
        loop {
            match client.readable(timeline).await {
                Ok((_, newest)) if newest >= lsn => return,
                Ok(_) | Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let arrived = timeout(PATIENCE, arrived).await;
    arrived.with_context(|| format!("{timeline} does not come to {lsn}"))
}

/// The newest LSN of a timeline once it does not change any more.
async fn stands_still(client: &PageClient, timeline: TimelineRef) -> Result<Lsn> {
    let still = async {
        let mut before = None;
        loop {
            let newest = client
                .readable(timeline)
                .await
                .ok()
                .map(|(_, newest)| newest);
            match newest {
                Some(newest) if before == Some(newest) => return newest,
                _ => before = newest,
            }
            sleep(STILL).await;
        }
    };
    timeout(PATIENCE, still).await.context("it goes on and on")
}
