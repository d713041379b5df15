//! Reading pages at random, one at a time: how long it takes, and how many layers are visited.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use palimpsest_api::{
    TimelineRef,
    channel::connect_lazily,
    page::{PageClient, PagesRequest, ReadAt},
};
use palimpsest_types::{BlockNumber, Lsn, RelTag};
use rand::{RngExt as _, rngs::StdRng};
use tokio::time::timeout;

use crate::{
    bench::{Latencies, told::Metrics},
    processes::{Process, Processes},
};

/// A page takes much less, also on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pages whose way is looked at in one round.
const DEPTHS: usize = 500;
/// More pages than that are drawn only if most of them need no layer at all.
const DRAWN: usize = 10 * DEPTHS;

/// Reads blocks of one table at one LSN.
#[derive(Debug)]
pub(super) struct Reads {
    client: PageClient,
    timeline: TimelineRef,
    table: (RelTag, u32),
    lsn: Lsn,
    random: StdRng,
}

/// Layers that were visited for each of some requests, rising.
#[derive(Debug, Clone, Default)]
pub(super) struct Depths(Vec<u32>);

impl Reads {
    pub(super) async fn new(
        processes: &Processes,
        timeline: TimelineRef,
        table: (RelTag, u32),
        lsn: Lsn,
        random: StdRng,
    ) -> Result<Self> {
        let channel = connect_lazily(&processes.address(Process::PageServe))?;
        let client = timeout(PATIENCE, PageClient::connect(channel)).await;
        Ok(Self {
            client: client.context("page-serve takes no connection")??,
            timeline,
            table,
            lsn,
            random,
        })
    }

    /// Reads for so long.
    pub(super) async fn go_on(&mut self, time: Duration) -> Result<Latencies> {
        let (begun, mut latencies) = (Instant::now(), Latencies::default());
        while begun.elapsed() < time {
            let block = self.draw();
            latencies.push(self.read(block).await?);
        }
        Ok(latencies)
    }

    /// Counts the layers that are visited for a request of one page, of requests that visit any.
    pub(super) async fn depths(&mut self, processes: &Processes) -> Result<Depths> {
        let mut last = visits(processes).await?;
        let mut depths = Vec::with_capacity(DEPTHS);
        for _ in 0..DRAWN {
            let block = self.draw();
            self.read(block).await?;
            let now = visits(processes).await?;
            let visited = now - last;
            last = now;
            // What is in memory is looked for in no layer.
            if visited > 0.5 {
                depths.push(visited.round() as u32);
            }
            if depths.len() == DEPTHS {
                break;
            }
        }
        Ok(Depths::of(depths))
    }

    fn draw(&mut self) -> u32 {
        self.random.random_range(0..self.table.1)
    }

    async fn read(&self, block: u32) -> Result<Duration> {
        let request = PagesRequest {
            timeline: self.timeline,
            at: ReadAt {
                lsn: Some(self.lsn),
                ..ReadAt::default()
            },
            rel: self.table.0,
            blocks: vec![BlockNumber::new(block)],
        };
        let begun = Instant::now();
        let pages = timeout(PATIENCE, self.client.pages(request)).await;
        pages.with_context(|| format!("block {block} does not arrive"))??;
        Ok(begun.elapsed())
    }
}

impl Depths {
    fn of(mut depths: Vec<u32>) -> Self {
        depths.sort_unstable();
        Self(depths)
    }

    /// So many of a hundred pages need no more layers than this; 0 if there was no page.
    pub(super) fn percentile(&self, percent: usize) -> u32 {
        let rank = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(rank).copied().unwrap_or_default()
    }

    /// 0 if there was no page.
    pub(super) fn mean(&self) -> f64 {
        let sum: u64 = self.0.iter().copied().map(u64::from).sum();
        sum as f64 / self.0.len().max(1) as f64
    }
}

impl fmt::Display for Depths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, mean) = (self.percentile(50), self.percentile(99), self.mean());
        write!(f, "{p50} / {p99} / {mean:.1}")
    }
}

/// Layers that page-serve has visited until now.
async fn visits(processes: &Processes) -> Result<f64> {
    let metrics = Metrics::of(processes, Process::PageServe).await?;
    metrics.get("palimpsest_read_layers_sum")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_depths_are_ranks() {
        let depths = Depths::of((1..=200).rev().collect());
        assert_eq!((depths.percentile(50), depths.percentile(99)), (100, 198));
        assert_eq!(depths.to_string(), "100 / 198 / 100.5");
        assert_eq!(Depths::default().to_string(), "0 / 0 / 0.0");
    }
}
