//! A source that moved stays the same tenant; another cluster in its place does not become it.

use std::time::Duration;

use palimpsest_api::broker::TimelineState;
use palimpsest_testkit::{Cluster, ClusterOptions};
use tokio::task::block_in_place;

use crate::lifecycle::start;

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_source_that_moved_is_followed_and_another_cluster_is_not() {
    let (cluster, _files, mut services) = start().await.unwrap();
    let there = cluster.conninfo("postgres");
    let timeline = services.attach("moved", &there).await.unwrap();
    let mut other = Cluster::temporary(ClusterOptions::default()).unwrap();
    block_in_place(|| other.start()).unwrap();

    let mut broker = services.broker();
    let elsewhere = other.conninfo("postgres");
    let changed = broker.set_tenant_source("moved", &elsewhere).await;
    assert_eq!(changed.unwrap(), timeline);
    let stopped = services.wait_for(timeline, |view| view.status.state == TimelineState::Stopped);
    let reason = stopped.await.unwrap().status.reason;
    assert!(reason.contains("another cluster"), "{reason}");

    // The same place, said in another way.
    let moved = format!("{there} connect_timeout=9");
    broker.set_tenant_source("moved", &moved).await.unwrap();
    block_in_place(|| cluster.psql("postgres", "CREATE TABLE later (i int)")).unwrap();
    let end = block_in_place(|| cluster.flush_lsn()).unwrap();
    let mut views = services.cluster().clone();
    let follows = views.wait_for(|view| {
        view.timeline(timeline).is_some_and(|view| {
            view.status.state == TimelineState::Streaming && view.status.last_record >= end
        })
    });
    let followed = tokio::time::timeout(PATIENCE, follows).await;
    followed.expect("it is followed in time").unwrap();
    services.stop().await;
}
