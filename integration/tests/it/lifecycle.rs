//! Attach, restart, loss of a service, delete: what is left behind, and what goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use palimpsest_api::broker::{ClusterView, Role, TimelineState};
use palimpsest_integration::{embedded::Embedded, oracle::PageSource as _};
use palimpsest_runtime::TaskScope;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{BlockNumber, RelTag};
use tokio::task::block_in_place;

/// A running cluster with a table, and services without any tenant.
pub(crate) async fn start() -> Result<(Cluster, tempfile::TempDir, Embedded)> {
    let mut cluster = Cluster::temporary(ClusterOptions::default())?;
    block_in_place(|| cluster.start())?;
    block_in_place(|| fill(&cluster, "one"))?;
    let files = tempfile::tempdir()?;
    let services = Embedded::start(files.path()).await?;
    Ok((cluster, files, services))
}

fn fill(cluster: &Cluster, name: &str) -> Result<()> {
    let sql = format!(
        "CREATE TABLE {name} AS SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i"
    );
    cluster.psql("postgres", &sql).map(drop)
}

pub(crate) fn relation(cluster: &Cluster, name: &str) -> Result<RelTag> {
    let sql = format!(
        "SELECT '1663/' || oid || '/' || pg_relation_filenode('{name}') \
         FROM pg_database WHERE datname = current_database()"
    );
    Ok(block_in_place(|| cluster.psql("postgres", &sql))?.parse()?)
}

fn slots(cluster: &Cluster) -> Result<String> {
    let sql = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots";
    block_in_place(|| cluster.psql("postgres", sql))
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_delete_leaves_nothing_here_or_at_the_source() {
    let (cluster, files, mut services) = start().await.unwrap();
    services
        .attach("gone", &cluster.conninfo("postgres"))
        .await
        .unwrap();
    assert_eq!(slots(&cluster).unwrap(), "palimpsest_gone");
    services.delete("gone").await.unwrap();
    assert_eq!(slots(&cluster).unwrap(), "");
    let count = |path: &str| {
        let tree = std::fs::read_dir(files.path().join(path));
        tree.map_or(0, Iterator::count)
    };
    assert_eq!(count("wal-ingest/gone"), 0);
    assert_eq!(leaves(&files.path().join("store/tenants")), 0);
    assert_eq!(leaves(&files.path().join("wal-ingest")), 0);
    services.stop().await;
}

/// Files below a directory that may not exist.
fn leaves(path: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    let count = |entry: std::fs::DirEntry| match entry.path().is_dir() {
        true => leaves(&entry.path()),
        false => 1,
    };
    entries.filter_map(Result::ok).map(count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_slot_of_somebody_else_is_never_touched() {
    let (cluster, _files, mut services) = start().await.unwrap();
    let make = "SELECT pg_create_physical_replication_slot('palimpsest_theirs', true)";
    block_in_place(|| cluster.psql("postgres", make)).unwrap();
    let error = services
        .attach("theirs", &cluster.conninfo("postgres"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("palimpsest_theirs"), "{error:#}");
    services.delete("theirs").await.unwrap();
    assert_eq!(slots(&cluster).unwrap(), "palimpsest_theirs");
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_one_cluster_is_attached_once() {
    let (cluster, _files, mut services) = start().await.unwrap();
    services
        .attach("first", &cluster.conninfo("postgres"))
        .await
        .unwrap();
    let error = services
        .attach("second", &cluster.conninfo("postgres"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("first"), "{error:#}");
    services.delete("second").await.unwrap();
    assert_eq!(slots(&cluster).unwrap(), "palimpsest_first");
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_an_interrupted_attach_begins_anew_and_leaves_nothing_twice() {
    let (cluster, files, services) = start().await.unwrap();
    block_in_place(|| cluster.pgbench(&["-i", "-q", "-s", "5", "postgres"])).unwrap();
    let mut broker = services.broker();
    let source = cluster.conninfo("postgres");
    let attach = broker.attach_tenant("torn", &source, None);
    let timeline = attach.await.unwrap();
    let begun = services.wait_for(timeline, |view| view.status.backup_done.get() > 0);
    begun.await.unwrap();
    // Without a chance to clean up, as kill -9 would.
    services.stop().await;
    assert_eq!(slots(&cluster).unwrap(), "palimpsest_torn");

    let mut services = Embedded::start(files.path()).await.unwrap();
    services
        .attach("torn", &cluster.conninfo("postgres"))
        .await
        .unwrap();
    assert_eq!(slots(&cluster).unwrap(), "palimpsest_torn");
    let layers = files.path().join("store/tenants");
    let bytes = std::process::Command::new("du")
        .arg("-sm")
        .arg(&layers)
        .output()
        .unwrap();
    let megabytes = String::from_utf8(bytes.stdout).unwrap();
    let megabytes: u64 = megabytes
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        megabytes < 100,
        "layers of the first attempt were left: {megabytes} MiB"
    );
    services.delete("torn").await.unwrap();
    assert_eq!(leaves(&layers), 0);
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_restart_goes_on_where_it_was() {
    let (cluster, files, mut services) = start().await.unwrap();
    let timeline = services
        .attach("again", &cluster.conninfo("postgres"))
        .await
        .unwrap();
    let one = relation(&cluster, "one").unwrap();
    let before = block_in_place(|| cluster.flush_lsn()).unwrap();
    services
        .wait_for(timeline, |view| view.status.last_record >= before)
        .await
        .unwrap();
    let served = services.served(timeline).await.unwrap();
    let blocks: Vec<_> = (0..20).map(BlockNumber::new).collect();
    let old: Vec<_> = served.pages(one, &blocks, before).await;
    drop(served);
    services.stop().await;

    // Written while nobody listens: the slot keeps it.
    block_in_place(|| fill(&cluster, "two")).unwrap();
    let after = block_in_place(|| cluster.flush_lsn()).unwrap();
    let services = Embedded::start(files.path()).await.unwrap();
    services
        .wait_for(timeline, |view| view.status.last_record >= after)
        .await
        .unwrap();
    let served = services.served(timeline).await.unwrap();
    let again = served.pages(one, &blocks, before).await;
    for (old, again) in old.into_iter().zip(again) {
        assert!(old.unwrap() == again.unwrap());
    }
    let two = relation(&cluster, "two").unwrap();
    let relations = served.relations(after).await.unwrap();
    assert!(
        relations
            .iter()
            .any(|(rel, blocks)| *rel == two && blocks.get() > 50)
    );
    assert!(
        !served
            .relations(before)
            .await
            .unwrap()
            .iter()
            .any(|(rel, _)| *rel == two)
    );
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_losing_a_redo_worker_loses_no_request() {
    let (cluster, _files, mut services) = start().await.unwrap();
    let timeline = services
        .attach("redo", &cluster.conninfo("postgres"))
        .await
        .unwrap();
    // Only records after the backup's images need redo.
    let update = "UPDATE one SET i = i + 1";
    block_in_place(|| cluster.psql("postgres", update)).unwrap();
    block_in_place(|| cluster.psql("postgres", update)).unwrap();
    let end = block_in_place(|| cluster.flush_lsn()).unwrap();
    services
        .wait_for(timeline, |view| view.status.last_record >= end)
        .await
        .unwrap();
    let second = TaskScope::new(services.scope().token().child_token());
    services.start_redo_worker(&second).await.unwrap();
    let mut cluster_view = services.cluster().clone();
    let two = |view: &palimpsest_api::broker::ClusterView| {
        view.addresses(palimpsest_api::broker::Role::RedoWorker)
            .len()
            == 2
    };
    cluster_view.wait_for(two).await.unwrap();

    let one = relation(&cluster, "one").unwrap();
    let served = services.served(timeline).await.unwrap();
    let blocks: Vec<_> = (0..200).map(BlockNumber::new).collect();
    let (pages, ()) = tokio::join!(served.pages(one, &blocks, end), second.stop());
    assert_eq!(pages.len(), blocks.len());
    for page in pages {
        page.unwrap();
    }
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_service_that_stops_in_good_order_is_out_of_the_picture_at_once() {
    let files = tempfile::tempdir().unwrap();
    let services = Embedded::start(files.path()).await.unwrap();
    let mut cluster = services.cluster().clone();
    let second = TaskScope::new(services.scope().token().child_token());
    let worker = services.start_redo_worker(&second).await.unwrap();
    let page_serve = services.start_page_serve(&second).await.unwrap();
    let shown = |view: &ClusterView| {
        let workers = view.addresses(Role::RedoWorker).contains(&worker);
        [
            workers,
            view.addresses(Role::PageServe).contains(&page_serve),
        ]
    };
    cluster
        .wait_for(|view| shown(view) == [true; 2])
        .await
        .unwrap();
    second.stop().await;
    // Far less than the lease.
    let gone = cluster.wait_for(|view| shown(view) == [false; 2]);
    tokio::time::timeout(Duration::from_secs(2), gone)
        .await
        .unwrap()
        .unwrap();
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_cannot_be_represented_stops_the_timeline_with_the_reason() {
    let (mut cluster, _files, mut services) = start().await.unwrap();
    let timeline = services
        .attach("hinted", &cluster.conninfo("postgres"))
        .await
        .unwrap();
    let sql = "ALTER SYSTEM SET wal_log_hints = on";
    block_in_place(|| -> Result<()> {
        cluster.psql("postgres", sql)?;
        cluster.stop()?;
        cluster.start()
    })
    .unwrap();
    let stopped = async || -> Result<()> {
        let mut view = services.cluster().clone();
        let view = view
            .wait_for(|view| {
                let status = view.timeline(timeline).map(|view| &view.status);
                status.is_some_and(|status| status.state == TimelineState::Stopped)
            })
            .await?;
        let reason = view
            .timeline(timeline)
            .map(|view| view.status.reason.clone());
        ensure!(reason.is_some_and(|reason| reason.contains("wal_log_hints")));
        Ok(())
    };
    stopped().await.unwrap();
    services.stop().await;
}
