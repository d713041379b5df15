//! All services as processes of their own, on a bucket over HTTP.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use palimpsest_api::broker::BrokerClient;
use palimpsest_integration::{
    judge::Judge,
    processes::{Layers, Process, Processes},
};
use palimpsest_testkit::{BucketServer, Whim};
use palimpsest_types::Lsn;
use tokio::task::block_in_place;

use crate::{durability::Source, under_load::SERVICE};

/// One of so many requests meets a whim.
const OFTEN: u64 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn p3_what_a_bucket_has_survives_the_loss_of_the_machine() {
    bucket().await.unwrap();
}

async fn bucket() -> Result<()> {
    let mut source = block_in_place(Source::start)?;
    let files = tempfile::tempdir()?;
    let server = BucketServer::start("palimpsest").await?;
    let mut processes =
        Processes::launch_on(&server, Path::new(SERVICE), files.path(), Layers::Often).await?;
    // Also the attach has to live with answers that are lost.
    server.set(Whim::LoseAnswer, OFTEN).await;
    let conninfo = source.cable.conninfo("postgres");
    let timeline = processes.attach("bucket", &conninfo).await?;
    for (whim, one_of) in [
        (Whim::SlowDown, OFTEN),
        (Whim::LoseAnswer, OFTEN),
        (Whim::Slow, OFTEN),
        // Nothing gets through for a while.
        (Whim::SlowDown, 1),
    ] {
        server.set(whim, one_of).await;
        block_in_place(|| source.write(2))?;
    }
    server.set(Whim::None, 1).await;
    let end = stored(&processes, &source, timeline).await?;
    ensure!(
        !files.path().join("store").exists(),
        "something is stored in a directory"
    );

    // Only the bucket is left, and the source is out of reach.
    for process in Process::USUAL {
        processes.kill9(process)?;
    }
    processes.lose_disk(Process::WalIngest)?;
    source.cable.unplug();
    for process in Process::USUAL {
        if process != Process::WalIngest {
            processes.start(process)?;
        }
    }
    let served = processes.served_up_to(timeline, end).await?;
    let mut judge = Judge::new("bucket", "P3");
    source.judge_served(&[served], &[end], &mut judge).await?;
    judge.close();

    // With the source it goes on, from what the slot has kept.
    block_in_place(|| source.cluster.start())?;
    source.cable.plug_in();
    processes.start(Process::WalIngest)?;
    block_in_place(|| source.write(1))?;
    stored(&processes, &source, timeline).await?;
    nothing_stays(&processes, &server).await?;
    processes.stop();
    Ok(())
}

/// Waits until the bucket has everything that the source has now; returns up to where that is.
async fn stored(
    processes: &Processes,
    source: &Source,
    timeline: palimpsest_api::TimelineRef,
) -> Result<Lsn> {
    let end = block_in_place(|| source.cluster.flush_lsn())?;
    processes
        .wait_for(timeline, |view| view.status.remote_consistent >= end)
        .await?;
    Ok(end)
}

/// A tenant that is deleted leaves no object behind.
async fn nothing_stays(processes: &Processes, server: &BucketServer) -> Result<()> {
    let of_tenants = |name: &String| name.starts_with("store/tenants/");
    ensure!(server.names().await.iter().any(of_tenants));
    let mut broker = BrokerClient::new(&processes.address(Process::StorageBroker))?;
    broker.delete_tenant("bucket", false).await?;
    let mut cluster = processes.cluster().clone();
    let gone = cluster.wait_for(|view| view.find("bucket").is_none());
    let gone = tokio::time::timeout(std::time::Duration::from_secs(60), gone).await;
    gone.context("the tenant is still there")??;
    let left: Vec<_> = server
        .names()
        .await
        .into_iter()
        .filter(of_tenants)
        .collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
