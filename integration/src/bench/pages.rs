//! GetPages of cached pages, against a server that does nothing but send them.

use std::time::Instant;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, stream};
use palimpsest_api::{
    TimelineRef,
    channel::connect_lazily,
    page::{PageClient, PagesRequest, ReadAt},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{BlockNumber, Lsn, RelTag};

use super::{Aim, Latencies, Places, ROUNDS, Rounds, Row, floor::Floor};
use crate::processes::{Layers, Process, Processes};

/// How requests are sent.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Pages in one request.
    pub pages: u32,
    /// Requests under way.
    pub depth: usize,
    /// Requests in one round.
    pub requests: usize,
}

/// What a shape gave.
#[derive(Debug, Default)]
pub struct Measured {
    /// Pages per second, by round.
    pub rates: Rounds,
    /// Of each request, of all rounds.
    pub latencies: Latencies,
}

/// Pages of a relation at an LSN, asked of one server.
#[derive(Debug)]
pub struct Target {
    /// Of the server.
    pub client: PageClient,
    /// Which timeline.
    pub timeline: TimelineRef,
    /// Which fork.
    pub rel: RelTag,
    /// Of its blocks, from 0 on, these are asked for again and again.
    pub blocks: u32,
    /// When.
    pub lsn: Lsn,
}

/// One at a time: what a backend that misses its cache waits for.
const ALONE: Shape = Shape {
    pages: 1,
    depth: 1,
    requests: 4_000,
};
/// Many backends at once.
const MANY: Shape = Shape {
    pages: 1,
    depth: 64,
    requests: 60_000,
};
/// A scan that reads ahead.
const SCAN: Shape = Shape {
    pages: 32,
    depth: 2,
    requests: 4_000,
};
/// Fewer than the page cache holds.
pub(super) const CACHED_BLOCKS: u32 = 4_000;

/// Lines of the table.
///
/// # Errors
/// If a service or PostgreSQL fails.
pub async fn measure(places: &Places) -> Result<Vec<Row>> {
    let mut cluster = Cluster::temporary(ClusterOptions::default())?;
    cluster.start()?;
    cluster.pgbench(&["--initialize", "--quiet", "--scale=5", "postgres"])?;
    let directory = places.directory("pages")?;
    let processes = Processes::launch(places.service(), &directory, Layers::Rarely).await?;
    let timeline = processes
        .attach("pages", &cluster.conninfo("postgres"))
        .await?;
    let lsn = cluster.flush_lsn()?;
    // Waits until they have arrived.
    processes.served_up_to(timeline, lsn).await?;
    let rel = relation(&cluster, "pgbench_accounts")?;
    let target = |client| Target {
        client,
        timeline,
        rel,
        blocks: CACHED_BLOCKS,
        lsn,
    };
    let address = processes.address(Process::PageServe);
    let ours = target(PageClient::connect(connect_lazily(&address)?).await?);
    let floor = Floor::start(places.bench())?;
    let floor = (
        target(PageClient::connect(connect_lazily(floor.address())?).await?),
        floor,
    );
    let mut rows = Vec::new();
    // So that all are cached.
    ours.round(SCAN, 0, &mut Measured::default()).await?;
    let shapes = [
        ("GetPages, cached, one at a time", ALONE),
        ("GetPages, cached, 64 requests under way", MANY),
        ("GetPages, cached, 32 pages a request, 2 under way", SCAN),
    ];
    for (what, shape) in shapes {
        let (mut of_ours, mut of_floor) = (Measured::default(), Measured::default());
        for _ in 0..ROUNDS {
            floor.0.round(shape, 0, &mut of_floor).await?;
            ours.round(shape, 0, &mut of_ours).await?;
        }
        rows.push(compared(what, shape, &of_ours, &of_floor));
    }
    processes.stop();
    Ok(rows)
}

/// Latency is what counts where one waits, throughput where many do.
fn compared(what: &str, shape: Shape, ours: &Measured, floor: &Measured) -> Row {
    let texts = (ours.to_string(), floor.to_string());
    if shape.depth == 1 {
        let ratio = ours.latencies.micros(50) / floor.latencies.micros(50);
        return Row::compared(what, texts, ratio, Some(Aim::AtMost(1.5)));
    }
    let ratio = ours.rates.median() / floor.rates.median();
    let aim = (shape.pages == 1).then_some(Aim::AtLeast(0.4));
    Row::compared(what, texts, ratio, aim)
}

impl Target {
    /// Asks for pages from `first` on, round and round.
    ///
    /// # Errors
    /// What the server says.
    pub async fn round(&self, shape: Shape, first: u32, measured: &mut Measured) -> Result<()> {
        let begun = Instant::now();
        let numbers = 0..u32::try_from(shape.requests)?;
        let requests = numbers.map(|number| self.request(first + number * shape.pages, shape));
        let mut answers = stream::iter(requests).buffer_unordered(shape.depth);
        while let Some(latency) = answers.next().await {
            measured.latencies.push(latency?);
        }
        let pages = shape.requests as f64 * f64::from(shape.pages);
        measured.rates.push(pages / begun.elapsed().as_secs_f64());
        Ok(())
    }

    async fn request(&self, first: u32, shape: Shape) -> Result<std::time::Duration> {
        let blocks =
            (first..first + shape.pages).map(|block| BlockNumber::new(block % self.blocks));
        let at = ReadAt {
            lsn: Some(self.lsn),
            ..ReadAt::default()
        };
        let request = PagesRequest {
            timeline: self.timeline,
            at,
            rel: self.rel,
            blocks: blocks.collect(),
        };
        let begun = Instant::now();
        self.client.pages(request).await?;
        Ok(begun.elapsed())
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (p50, p99) = (self.latencies.micros(50), self.latencies.micros(99));
        let rate = self.rates.median();
        write!(f, "{rate:.0} pages/s, p50 {p50:.0} µs, p99 {p99:.0} µs")
    }
}

/// The main fork of a table in the database `postgres`.
///
/// # Errors
/// If there is none.
pub fn relation(cluster: &Cluster, name: &str) -> Result<RelTag> {
    let sql = format!(
        "SELECT '1663/' || oid || '/' || pg_relation_filenode('{name}') FROM pg_database WHERE datname = 'postgres'"
    );
    let text = cluster.psql("postgres", &sql)?;
    text.parse().with_context(|| format!("the file of {name}"))
}
