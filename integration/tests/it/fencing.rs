//! P4: a timeline has one writer. One that was silent, and lost it, does no harm when it wakes up.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use palimpsest_api::{TimelineRef, broker::TimelineView};
use palimpsest_integration::{
    judge::{Judge, JudgeSize, seed},
    processes::{Layers, Process, Processes},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::WriterEpoch;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{task::block_in_place, time::sleep};

use crate::under_load::{Guard, Load, SERVICE, Source, TENANT};

const NAME: &str = "fencing";
const PAGES: &str = "fencing-pages";
/// What the one that wakes up is given: several heartbeats, and several layers' worth of time.
const AWAKE: Duration = Duration::from_secs(5);
/// Readers find the new writer within a few heartbeats. Much less than what it takes to notice that
/// a connection is dead.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_writer_that_was_superseded_while_it_slept_changes_nothing() {
    fencing().await.unwrap();
}

async fn fencing() -> Result<()> {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Often).await?;
    processes.start(Process::SecondWalIngest)?;
    let conninfo = source.cluster.conninfo("postgres");
    let timeline = processes.attach(TENANT, &conninfo).await?;
    let guard = Guard::start(&source, &processes, timeline).await?;
    let load = Load::start(&source.cluster);

    let mut judge = Judge::new(NAME, "P4");
    // A round is both directions.
    for _ in 0..2 * size.pick(2, 10) {
        sleep(Duration::from_millis(random.random_range(0..3000))).await;
        let (writer, epoch) = writer(&processes, timeline).await?;
        processes.sigstop(writer)?;
        let taken = |view: &TimelineView| view.status.epoch > epoch;
        let taken = processes.wait_for(timeline, taken).await?.status.epoch;
        follows(&source, &mut processes, timeline, false).await?;
        processes.sigcont(writer)?;
        follows(&source, &mut processes, timeline, random.random()).await?;
        sleep(AWAKE).await;
        follows(&source, &mut processes, timeline, false).await?;
        judge.check(still_writes(&processes, &guard, timeline, writer, taken).await?);
    }
    load.stop().await?;
    judge.check(guard.finish().await?);
    let mut pages = Judge::new(PAGES, "P4");
    let ending = source.finish(&processes, timeline).await?;
    ending
        .compare(size.pick(1, 5), &mut random, &mut pages)
        .await?;
    judge.close();
    pages.close();
    processes.stop();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_readers_follow_the_new_writer_whether_the_old_one_sleeps_or_wakes() {
    readers_follow().await.unwrap();
}

/// Nothing becomes a layer here, so what is served has come through a feed.
async fn readers_follow() -> Result<()> {
    let mut source = Cluster::temporary(ClusterOptions::default())?;
    block_in_place(|| source.start())?;
    let files = tempfile::tempdir()?;
    let mut processes = Processes::launch(Path::new(SERVICE), files.path(), Layers::Rarely).await?;
    processes.start(Process::SecondWalIngest)?;
    let timeline = processes
        .attach(TENANT, &source.conninfo("postgres"))
        .await?;
    for _ in 0..2 {
        let (writer, epoch) = writer(&processes, timeline).await?;
        processes.sigstop(writer)?;
        let taken = |view: &TimelineView| view.status.epoch > epoch;
        processes.wait_for(timeline, taken).await?;
        follows_soon(&source, &processes, timeline).await?;
        processes.sigcont(writer)?;
        sleep(AWAKE).await;
        follows_soon(&source, &processes, timeline).await?;
    }
    processes.stop();
    Ok(())
}

/// What is written now is served soon.
async fn follows_soon(
    source: &Cluster,
    processes: &Processes,
    timeline: TimelineRef,
) -> Result<()> {
    let write = "CREATE TABLE IF NOT EXISTS rows (i int); INSERT INTO rows VALUES (1)";
    let written = block_in_place(|| {
        source.psql("postgres", write)?;
        source.flush_lsn()
    })?;
    let served = processes.served_up_to(timeline, written);
    let served = tokio::time::timeout(SOON, served).await;
    served.with_context(|| format!("{written} is not served after {SOON:?}"))??;
    Ok(())
}

/// Which wal-ingest writes the timeline, and its epoch.
async fn writer(processes: &Processes, timeline: TimelineRef) -> Result<(Process, WriterEpoch)> {
    let view = processes
        .wait_for(timeline, |view| view.writer.is_some())
        .await?;
    let candidates = [Process::WalIngest, Process::SecondWalIngest];
    let address = view.writer.context("nobody writes")?;
    let mut candidates = candidates.into_iter();
    let writer = candidates.find(|process| processes.address(*process) == address);
    let writer = writer.with_context(|| format!("{address} is none of ours"))?;
    Ok((writer, view.status.epoch))
}

/// Waits until page-serve has all that is written by now; perhaps a new one.
async fn follows(
    source: &Source,
    processes: &mut Processes,
    timeline: TimelineRef,
    anew: bool,
) -> Result<()> {
    if anew {
        processes.kill9(Process::PageServe)?;
        processes.start(Process::PageServe)?;
    }
    let written = block_in_place(|| source.cluster.flush_lsn())?;
    processes.served_up_to(timeline, written).await.map(drop)
}

/// Whether the one who took over is the writer still, for the broker and for the store; what is
/// wrong, if not.
async fn still_writes(
    processes: &Processes,
    guard: &Guard,
    timeline: TimelineRef,
    superseded: Process,
    epoch: WriterEpoch,
) -> Result<Option<String>> {
    let (now, known) = writer(processes, timeline).await?;
    let manifest = guard.history().newest().await?;
    let as_it_was = now != superseded && known == epoch && manifest.writer_epoch == epoch;
    let finding = || {
        format!(
            "epoch {epoch} took over from {}, but {} writes with {known}, the manifest is by {}",
            superseded.name(),
            now.name(),
            manifest.writer_epoch
        )
    };
    Ok(guard.findings().or_else(|| (!as_it_was).then(finding)))
}
