//! How soon after its commit a change can be read.

use std::time::Instant;

use anyhow::Result;
use palimpsest_api::{
    channel::connect_lazily,
    page::{PageClient, PagesRequest, ReadAt},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{BlockNumber, Lsn};

use super::{Latencies, Places, Row, pages::relation};
use crate::processes::{Layers, Process, Processes};

/// Commits that are waited for, one after the other.
const COMMITS: usize = 1_000;

/// Lines of the table.
///
/// # Errors
/// If a service or PostgreSQL fails.
pub async fn measure(places: &Places) -> Result<Vec<Row>> {
    let options = ClusterOptions {
        durable: true,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::temporary(options)?;
    cluster.start()?;
    cluster.psql("postgres", "CREATE TABLE commits (number int)")?;
    cluster.psql("postgres", "INSERT INTO commits VALUES (0)")?;
    let directory = places.directory("commit")?;
    let processes = Processes::launch(places.service(), &directory, Layers::Rarely).await?;
    let timeline = processes
        .attach("commit", &cluster.conninfo("postgres"))
        .await?;
    processes
        .served_up_to(timeline, cluster.flush_lsn()?)
        .await?;
    let rel = relation(&cluster, "commits")?;
    let address = processes.address(Process::PageServe);
    let client = PageClient::connect(connect_lazily(&address)?).await?;
    let mut session = cluster.session("postgres")?;
    let (mut commit, mut readable) = (Latencies::default(), Latencies::default());
    for number in 1..=COMMITS {
        let begun = Instant::now();
        session.run(&format!("UPDATE commits SET number = {number}"))?;
        commit.push(begun.elapsed());
        let committed = Instant::now();
        let lsn: Lsn = session.run("SELECT pg_current_wal_flush_lsn()")?.parse()?;
        let request = PagesRequest {
            timeline,
            at: ReadAt {
                lsn: Some(lsn),
                ..ReadAt::default()
            },
            rel,
            blocks: vec![BlockNumber::ZERO],
        };
        client.pages(request).await?;
        readable.push(committed.elapsed());
    }
    processes.stop();
    let text = |latencies: &Latencies| {
        let (p50, p99) = (latencies.micros(50), latencies.micros(99));
        format!("p50 {:.1} ms, p99 {:.1} ms", p50 / 1e3, p99 / 1e3)
    };
    let ratio = readable.micros(50) / commit.micros(50);
    let texts = (text(&readable), text(&commit));
    let what = "from commit until its page was read (reference: the commit itself)";
    Ok(vec![Row::compared(what, texts, ratio, None)])
}
