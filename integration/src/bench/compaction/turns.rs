//! Reads while the compactor works and while it is halted, by turns.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::{RemoteError, channel::connect_lazily, compaction::CompactorClient};
use tokio::time::{sleep, timeout};

use super::reads::Reads;
use crate::{
    bench::{Latencies, told::Metrics},
    processes::{Process, Processes},
};

/// One turn; a compaction takes many.
const TURN: Duration = Duration::from_millis(200);
/// Before each that is counted reads go on for so long: threads that were halted in the middle of their work have a claim on
/// a CPU for the time that they missed, which no compactor has that was never halted.
const SETTLING: Duration = Duration::from_millis(100);
/// Who has done nothing for so long has nothing to do: a compactor hears of new layers by
/// heartbeats, and looks every two seconds.
const IDLE: Duration = Duration::from_secs(5);
/// A page-serve that was told nothing looks for other layers every 20 seconds.
const TAKEN_IN: Duration = Duration::from_secs(22);
/// All compactions of one round, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(600);
/// What a compactor that is asked takes at most to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// By its default threshold fewer are left alone.
const LEFT_ALONE: f64 = 4.0;

/// Latencies by what the compactor did meanwhile.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    pub(super) working: Latencies,
    pub(super) halted: Latencies,
}

impl Turns {
    pub(super) fn extend(&mut self, others: Self) {
        self.working.extend(others.working);
        self.halted.extend(others.halted);
    }
}

/// Lets a halted compactor do what there is to do, reading all the time, and halts it again. After
/// each turn in which it worked from beginning to end there is one in which it is halted.
pub(super) async fn settle(processes: &Processes, reads: &mut Reads) -> Result<Turns> {
    let mut turns = Turns::default();
    let (begun, mut idle_since, mut worked) = (Instant::now(), Instant::now(), false);
    processes.sigcont(Process::Compactor)?;
    loop {
        let late = begun.elapsed() > PATIENCE;
        ensure!(!late, "compaction does not come to an end");
        let client = client(processes)?;
        reads.go_on(SETTLING).await?;
        let before = is_busy(&client).await?;
        let latencies = reads.go_on(TURN).await?;
        let after = is_busy(&client).await?;
        if before && after {
            turns.working.extend(latencies);
            processes.sigstop(Process::Compactor)?;
            reads.go_on(SETTLING).await?;
            turns.halted.extend(reads.go_on(TURN).await?);
            processes.sigcont(Process::Compactor)?;
        }
        if before || after {
            worked = true;
            idle_since = Instant::now();
        } else if idle_since.elapsed() > IDLE && backlog(processes).await? < LEFT_ALONE {
            break;
        }
    }
    processes.sigstop(Process::Compactor)?;
    if worked {
        sleep(TAKEN_IN).await;
    }
    Ok(turns)
}

/// Waits until a compactor has nothing more to do.
pub(super) async fn finish(processes: &Processes) -> Result<()> {
    let (begun, mut idle_since) = (Instant::now(), Instant::now());
    while idle_since.elapsed() <= IDLE || backlog(processes).await? >= LEFT_ALONE {
        let late = begun.elapsed() > PATIENCE;
        ensure!(!late, "compaction does not come to an end");
        sleep(TURN).await;
        if is_busy(&client(processes)?).await? {
            idle_since = Instant::now();
        }
    }
    sleep(TAKEN_IN).await;
    Ok(())
}

/// Starts one and waits until it answers.
pub(super) async fn start(processes: &mut Processes) -> Result<()> {
    processes.start(Process::Compactor)?;
    let begun = Instant::now();
    while is_busy(&client(processes)?).await.is_err() {
        let late = begun.elapsed() > ANSWER;
        ensure!(!late, "the compactor does not come up");
        sleep(TURN).await;
    }
    Ok(())
}

/// A client of the compactor.
pub(super) fn client(processes: &Processes) -> Result<CompactorClient> {
    let channel = connect_lazily(&processes.address(Process::Compactor))?;
    Ok(CompactorClient::new(channel))
}

/// What a compactor answers, if it does.
pub(super) async fn answered<T>(
    question: impl Future<Output = Result<T, RemoteError>>,
) -> Result<T> {
    let answer = timeout(ANSWER, question).await;
    Ok(answer.context("the compactor does not answer")??)
}

async fn is_busy(client: &CompactorClient) -> Result<bool> {
    let (now, _) = answered(client.activity()).await?;
    Ok(now.is_some())
}

async fn backlog(processes: &Processes) -> Result<f64> {
    let metrics = Metrics::of(processes, Process::Compactor).await?;
    metrics.get("palimpsest_compaction_backlog")
}
