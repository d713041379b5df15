//! One cluster is one tenant, also when it is attached twice at the same time.

use std::time::Duration;

use anyhow::{Result, bail};
use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, TimelineState, TimelineView},
};
use palimpsest_integration::embedded::Embedded;
use palimpsest_wal_ingest::run;

use crate::lifecycle::start;

/// A base backup of next to nothing takes less, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn p6_of_two_attaches_at_once_one_succeeds_and_the_other_names_it() {
    let (cluster, files, mut services) = start().await.unwrap();
    // Another node, so that each may take one.
    let second = services.scope().child();
    let mut settings = services.wal_ingest_settings();
    settings.data = files.path().join("second");
    run(settings, &second).await.unwrap();

    let source = cluster.conninfo("postgres");
    let (mut one, mut two) = (services.broker(), services.broker());
    let (first, other) = tokio::join!(
        one.attach_tenant("one", &source, None),
        two.attach_tenant("two", &source, None),
    );
    let timelines = [first.unwrap(), other.unwrap()];
    let (winner, loser, reason) = decided(&services, timelines).await.unwrap();
    eprintln!("{winner} is attached; {loser}: {reason}");
    assert!(reason.contains(&format!("as {winner};")), "{reason}");

    services.delete(&loser).await.unwrap();
    services.delete(&winner).await.unwrap();
    services.attach("three", &source).await.unwrap();
    second.stop().await;
    services.stop().await;
}

/// Waits until one can be read and the other has stopped: their names, and why.
async fn decided(
    services: &Embedded,
    timelines: [TimelineRef; 2],
) -> Result<(String, String, String)> {
    let mut views = services.cluster().clone();
    let is_decided = |view: &ClusterView| {
        let views = timelines.map(|timeline| view.timeline(timeline));
        views.into_iter().all(|view| {
            view.is_some_and(|view| {
                is_attached(view) || view.status.state == TimelineState::Stopped
            })
        })
    };
    let view = tokio::time::timeout(PATIENCE, views.wait_for(is_decided)).await??;
    let told = view.timelines.iter();
    let (stopped, readable): (Vec<_>, Vec<_>) =
        told.partition(|view| view.status.state == TimelineState::Stopped);
    match (&readable[..], &stopped[..]) {
        ([winner], [loser]) => Ok((
            winner.tenant_name.clone(),
            loser.tenant_name.clone(),
            loser.status.reason.clone(),
        )),
        _ => bail!("{} are attached, {} not", readable.len(), stopped.len()),
    }
}

fn is_attached(view: &TimelineView) -> bool {
    view.status.state == TimelineState::Streaming
}
