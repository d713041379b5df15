//! `make bench`: how fast WAL is read and pages are served here, as a Markdown table.
//!
//! Machines are shared and noisy: figures are medians of several rounds in one run, and are to be
//! compared within the run only.

use std::{io::Write as _, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, stream};
use palimpsest_api::{
    TimelineRef,
    page::{PageClient, PagesRequest, ReadAt},
};
use palimpsest_integration::{embedded::Embedded, oracle::read_wal};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{BlockNumber, Lsn, RelTag};
use palimpsest_wal::{BaseFacts, Interpreter, RelationSizes, SegmentSize};
use tokio::time::Instant;

/// Rounds of each measurement; the median counts.
const ROUNDS: usize = 5;
/// Requests in one round.
const REQUESTS: usize = 4000;

/// One line of the table.
struct Row {
    what: String,
    figure: String,
}

/// A relation to read pages of.
struct Target<'a> {
    client: &'a PageClient,
    timeline: TimelineRef,
    rel: RelTag,
    blocks: u32,
    lsn: Lsn,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut rows = Vec::new();
    for full_page_writes in ["on", "off"] {
        rows.extend(measure(full_page_writes).await?);
    }
    let mut out = std::io::stdout();
    writeln!(out, "| what | figure |\n|---|---|")?;
    for Row { what, figure } in rows {
        writeln!(out, "| {what} | {figure} |")?;
    }
    Ok(())
}

async fn measure(full_page_writes: &str) -> Result<Vec<Row>> {
    let options = ClusterOptions::default().with("full_page_writes", full_page_writes);
    let mut cluster = Cluster::temporary(options)?;
    cluster.start()?;
    cluster.pgbench(&["--initialize", "--quiet", "--scale=10", "postgres"])?;
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    let mut rows = Vec::new();

    let begun = Instant::now();
    let timeline = services
        .attach("bench", &cluster.conninfo("postgres"))
        .await?;
    let view = services.wait_for(timeline, |_| true).await?;
    let size = view.status.backup_done.get() as f64 / 1e6;
    let seconds = begun.elapsed().as_secs_f64();
    rows.push(row(
        full_page_writes,
        "attach (base backup to readable)",
        format!("{size:.0} MB in {seconds:.1} s"),
    ));

    // While pgbench runs, wal-ingest reads along; what it is measured by is catching up from its
    // own files and the source after a restart.
    let before = cluster.flush_lsn()?;
    tokio::task::block_in_place(|| {
        cluster.pgbench(&[
            "--client=4",
            "--jobs=2",
            "--transactions=10000",
            "--no-vacuum",
            "postgres",
        ])
    })?;
    let end = cluster.flush_lsn()?;
    let arrived = Instant::now();
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await?;
    let lag = arrived.elapsed();
    let wal = end.saturating_sub(before) as f64 / 1e6;
    rows.push(row(
        full_page_writes,
        "behind when pgbench (40,000 transactions) ends",
        format!("{:.0} ms of {wal:.0} MB WAL", lag.as_secs_f64() * 1e3),
    ));
    let pg_wal = cluster.data_dir().join("pg_wal");
    let rate = decode_rate(&pg_wal, before)?;
    rows.push(row(
        full_page_writes,
        "WAL from files to changes, one thread",
        rate,
    ));

    let served = services.served(timeline).await?;
    let rel = relation(&cluster, "pgbench_accounts")?;
    let at = ReadAt {
        lsn: Some(end),
        not_modified_since: None,
    };
    let size = served.client().relation_size(timeline, at, rel).await?;
    let blocks = size.blocks.context("pgbench_accounts is missing")?.get();
    let target = Target {
        client: served.client(),
        timeline,
        rel,
        blocks,
        lsn: end,
    };
    let (first, rate) = target.throughput(1, 32, 8).await?;
    rows.push(row(
        full_page_writes,
        "GetPages, first read of each page (redo), 32 a request, 8 under way",
        format!("{rate:.0} pages/s, p50 {} a request", micros(first)),
    ));
    let (latency, _) = target.throughput(ROUNDS, 1, 1).await?;
    rows.push(row(
        full_page_writes,
        "GetPages, cached, one page, one under way",
        format!("p50 {}", micros(latency)),
    ));
    let (_, rate) = target.throughput(ROUNDS, 1, 64).await?;
    rows.push(row(
        full_page_writes,
        "GetPages, cached, one page, 64 under way",
        format!("{rate:.0} pages/s"),
    ));
    let (_, rate) = target.throughput(ROUNDS, 32, 2).await?;
    rows.push(row(
        full_page_writes,
        "GetPages, cached, 32 a request, 2 under way",
        format!("{rate:.0} pages/s"),
    ));
    services.stop().await;
    Ok(rows)
}

/// Framing, CRC, decoding and interpreting of recorded WAL, in memory.
fn decode_rate(pg_wal: &Path, start: Lsn) -> Result<String> {
    let mut wal = Vec::new();
    // As if all pages that are named had been there before.
    let mut sizes = RelationSizes::default();
    read_wal(pg_wal, start, SegmentSize::DEFAULT, |record| {
        for block in record.decode()?.blocks {
            let end = block.block.next().max(sizes.get(block.rel));
            sizes.set(block.rel, end.unwrap_or_default());
        }
        wal.push(record);
        Ok(())
    })?;
    let bytes: usize = wal.iter().map(|record| record.bytes.len()).sum();
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        let mut interpreter = Interpreter::new(sizes.clone(), BaseFacts::consistent());
        let begun = Instant::now();
        let mut end = start;
        read_wal(pg_wal, start, SegmentSize::DEFAULT, |record| {
            end = end.max(record.end_lsn);
            std::hint::black_box(interpreter.interpret(&record)?);
            Ok(())
        })?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[ROUNDS / 2];
    let (rate, records) = (bytes as f64 / 1e6 / median, wal.len() as f64 / median);
    Ok(format!("{rate:.0} MB/s, {records:.0} records/s"))
}

impl Target<'_> {
    /// Reads all over the relation; the median latency of a request and pages per second.
    async fn throughput(&self, rounds: usize, pages: u32, depth: usize) -> Result<(Duration, f64)> {
        let mut rates = Vec::new();
        let mut latencies = Vec::new();
        for _ in 0..rounds {
            let requests = REQUESTS.min((self.blocks / pages) as usize);
            let begun = Instant::now();
            let round =
                stream::iter(0..requests).map(|number| self.request(number as u32 * pages, pages));
            let mut round = round.buffer_unordered(depth);
            while let Some(latency) = round.next().await {
                latencies.push(latency?);
            }
            rates.push(requests as f64 * f64::from(pages) / begun.elapsed().as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        latencies.sort();
        let median = latencies
            .get(latencies.len() / 2)
            .copied()
            .unwrap_or_default();
        Ok((
            median,
            rates.get(rates.len() / 2).copied().unwrap_or_default(),
        ))
    }

    async fn request(&self, first: u32, pages: u32) -> Result<Duration> {
        let blocks = (first..first + pages).map(|block| BlockNumber::new(block % self.blocks));
        let at = ReadAt {
            lsn: Some(self.lsn),
            not_modified_since: None,
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

fn relation(cluster: &Cluster, name: &str) -> Result<RelTag> {
    let sql = format!(
        "SELECT '1663/' || oid || '/' || pg_relation_filenode('{name}') FROM pg_database WHERE datname = 'postgres'"
    );
    Ok(cluster.psql("postgres", &sql)?.parse()?)
}

fn row(full_page_writes: &str, what: &str, figure: String) -> Row {
    Row {
        what: format!("{what}; full_page_writes {full_page_writes}"),
        figure,
    }
}

fn micros(duration: Duration) -> String {
    format!("{} µs", duration.as_micros())
}
