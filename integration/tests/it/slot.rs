//! The slot at the source: what it keeps, who moves it, and that the source stays safe.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use palimpsest_api::{
    TimelineRef,
    broker::{BrokerClient, ClusterView, TimelineState, TimelineStatus, watch_cluster},
};
use palimpsest_disk::OsDisk;
use palimpsest_integration::embedded::start_broker;
use palimpsest_runtime::TaskScope;
use palimpsest_store::{
    ObjectStore,
    faulty::{Fault, FaultyStore},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{ByteCount, Lsn};
use palimpsest_wal_ingest::{Backing, Settings, run_on};
use tokio::{
    sync::watch,
    task::{block_in_place, spawn_blocking},
    time::{sleep, timeout},
};

/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// What has happened is published before this has passed: a few heartbeats.
const PUBLISHED: Duration = Duration::from_secs(10);
/// Longer than a heartbeat, a layer and a visit to the slot take together.
const SETTLING: Duration = Duration::from_secs(10);
/// A clean shutdown of the source must not take longer.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const SAMPLES: usize = 100;

/// A broker and a wal-ingest, which can be stopped alone. Nobody reads pages here.
struct Services {
    all: TaskScope,
    ingest: TaskScope,
    settings: Settings,
    faulty: Arc<FaultyStore>,
    store: ObjectStore,
    broker: BrokerClient,
    cluster: watch::Receiver<ClusterView>,
}

impl Services {
    async fn start(directory: &Path, change: impl FnOnce(&mut Settings)) -> Result<Self> {
        let all = TaskScope::default();
        let address = start_broker(directory, "127.0.0.1:0", &all).await?;
        let mut settings = Settings {
            listen: "127.0.0.1:0".to_owned(),
            broker: address.clone(),
            store: directory.join("store").into(),
            data: directory.join("wal-ingest"),
            layer_age: Duration::from_secs(1),
            ..Settings::default()
        };
        change(&mut settings);
        let (faulty, store) = FaultyStore::in_directory(&directory.join("store")).await?;
        let mut services = Self {
            ingest: all.child(),
            settings,
            faulty,
            store,
            broker: BrokerClient::new(&address)?,
            cluster: watch_cluster(&address, &all)?,
            all,
        };
        services.restart_ingest().await?;
        Ok(services)
    }

    async fn restart_ingest(&mut self) -> Result<()> {
        self.ingest = self.all.child();
        let backing = Backing {
            disk: Arc::new(OsDisk),
            store: self.store.clone(),
        };
        run_on(backing, self.settings.clone(), &self.ingest).await?;
        Ok(())
    }

    /// Attaches and waits until WAL is read.
    async fn attach(&mut self, name: &str, source: &Cluster) -> Result<TimelineRef> {
        let conninfo = source.conninfo("postgres");
        let timeline = self.broker.attach_tenant(name, &conninfo, None).await?;
        self.reach(timeline, |status| status.state == TimelineState::Streaming)
            .await?;
        Ok(timeline)
    }

    fn status(&self, timeline: TimelineRef) -> Option<TimelineStatus> {
        let view = self.cluster.borrow();
        view.timeline(timeline).map(|view| view.status.clone())
    }

    /// Waits for a state of affairs.
    async fn reach(
        &self,
        timeline: TimelineRef,
        arrived: impl Fn(&TimelineStatus) -> bool,
    ) -> Result<TimelineStatus> {
        let begun = Instant::now();
        loop {
            let status = self.status(timeline);
            if let Some(status) = status.as_ref().filter(|status| arrived(status)) {
                return Ok(status.clone());
            }
            if begun.elapsed() > PATIENCE {
                bail!("still waiting; the timeline is {status:?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop(self) {
        self.all.stop().await;
    }
}

/// A running cluster with small WAL segments.
fn source() -> Result<Cluster> {
    let options = ClusterOptions {
        wal_segment_size_mib: 1,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::temporary(options)?;
    block_in_place(|| cluster.start())?;
    Ok(cluster)
}

fn sql(cluster: &Cluster, text: &str) -> Result<String> {
    block_in_place(|| cluster.psql("postgres", text))
}

/// Writes about so many MiB of WAL.
fn write_wal(cluster: &Cluster, mib: u32) -> Result<()> {
    let rows = mib * 128;
    let text = format!(
        "CREATE TABLE IF NOT EXISTS filler (t text); ALTER TABLE filler ALTER t SET STORAGE PLAIN; \
         INSERT INTO filler SELECT repeat('x', 7000) FROM generate_series(1, {rows})"
    );
    sql(cluster, &text).map(drop)
}

fn restart_lsn(cluster: &Cluster, slot: &str) -> Result<Lsn> {
    let text = format!("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'");
    Ok(sql(cluster, &text)?.parse()?)
}

fn slots(cluster: &Cluster) -> Result<String> {
    sql(
        cluster,
        "SELECT coalesce(string_agg(slot_name, ','), '') FROM pg_replication_slots",
    )
}

/// With layers hours away, what the object store has stands still while WAL is flushed here. So
/// nothing excuses a slot that moves, as one does that the stream itself uses.
#[tokio::test(flavor = "multi_thread")]
async fn p3_the_slot_never_passes_what_the_object_store_has_and_follows_it() {
    const SLOT: &str = "palimpsest_follow";
    let cluster = Arc::new(source().unwrap());
    block_in_place(|| cluster.pgbench(&["-i", "-q", "-s", "1", "postgres"])).unwrap();
    let files = tempfile::tempdir().unwrap();
    let late = |settings: &mut Settings| settings.layer_age = Duration::from_secs(3600);
    let mut services = Services::start(files.path(), late).await.unwrap();
    let timeline = services.attach("follow", &cluster).await.unwrap();
    let known = |status: &TimelineStatus| status.remote_consistent > Lsn::ZERO;
    let first = services.reach(timeline, known).await.unwrap();
    let loaded = Arc::clone(&cluster);
    let load = spawn_blocking(move || loaded.pgbench(&["-n", "-c", "2", "-T", "30", "postgres"]));
    for _ in 0..SAMPLES {
        let restart = restart_lsn(&cluster, SLOT).unwrap();
        let status = services.status(timeline).unwrap();
        assert_eq!(status.remote_consistent, first.remote_consistent);
        assert!(
            restart <= first.remote_consistent,
            "the slot is at {restart}, {} is flushed here, the object store has only {}",
            status.flushed,
            first.remote_consistent
        );
        sleep(Duration::from_millis(100)).await;
    }
    let flushed = services.status(timeline).unwrap().flushed;
    assert!(flushed > first.remote_consistent, "no WAL came");

    services.ingest.stop().await;
    services.settings.layer_age = Duration::from_secs(1);
    services.restart_ingest().await.unwrap();
    let moved = follow(&cluster, &services, timeline, SLOT).await;
    load.await.unwrap().unwrap();
    let rest = follow(&cluster, &services, timeline, SLOT).await;
    assert!(moved.union(&rest).max() > Some(&first.remote_consistent));
    services.stop().await;
}

/// Samples the slot until it is where the object store is. What is published lags behind what is
/// true, so each sample waits for it.
async fn follow(
    cluster: &Cluster,
    services: &Services,
    timeline: TimelineRef,
    slot: &str,
) -> BTreeSet<Lsn> {
    let mut positions = BTreeSet::new();
    let begun = Instant::now();
    loop {
        let restart = restart_lsn(cluster, slot).unwrap();
        positions.insert(restart);
        let published = |status: &TimelineStatus| status.remote_consistent >= restart;
        let reached = timeout(PUBLISHED, services.reach(timeline, published)).await;
        let remote = reached
            .expect("the slot passed what the object store has")
            .unwrap()
            .remote_consistent;
        // Both stand still for a moment: nothing is on its way.
        if restart == remote && begun.elapsed() > SETTLING {
            return positions;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "the slot stays at {restart}, the object store has {remote}"
        );
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_synchronous_commit_waits_until_its_wal_is_fsynced_here() {
    let cluster = Arc::new(source().unwrap());
    let files = tempfile::tempdir().unwrap();
    let mut services = Services::start(files.path(), |_| {}).await.unwrap();
    services.attach("sync", &cluster).await.unwrap();
    sql(&cluster, "CREATE TABLE commits (i int)").unwrap();
    sql(
        &cluster,
        "ALTER SYSTEM SET synchronous_standby_names = 'palimpsest_sync'; SELECT pg_reload_conf()",
    )
    .unwrap();
    let begun = Instant::now();
    let state = loop {
        let text = "SELECT sync_state, write_lsn IS NOT NULL, flush_lsn IS NOT NULL, \
                    replay_lsn <= flush_lsn, flush_lsn <= write_lsn \
                    FROM pg_stat_replication WHERE application_name = 'palimpsest_sync'";
        let state = sql(&cluster, text).unwrap();
        if state.starts_with("sync") || begun.elapsed() > PATIENCE {
            break state;
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(state, "sync|t|t|t|t");
    let insert = |i: u32| {
        let cluster = Arc::clone(&cluster);
        // The limit ends the wait should this test fail.
        let text = format!("SET statement_timeout = '100s'; INSERT INTO commits VALUES ({i})");
        spawn_blocking(move || cluster.psql("postgres", &text))
    };
    for i in 0..10 {
        let done = timeout(PATIENCE, insert(i)).await;
        done.expect("a commit hangs").unwrap().unwrap();
    }
    services.ingest.stop().await;
    let mut waiting = insert(10);
    let early = timeout(Duration::from_secs(4), &mut waiting).await;
    assert!(early.is_err(), "a commit did not wait: {early:?}");
    services.restart_ingest().await.unwrap();
    let done = timeout(PATIENCE, waiting).await;
    done.expect("the commit still hangs").unwrap().unwrap();
    assert_eq!(sql(&cluster, "SELECT count(*) FROM commits").unwrap(), "11");
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_slot_dropped_by_hand_stops_the_timeline_and_says_what_to_do() {
    let cluster = source().unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut services = Services::start(files.path(), |_| {}).await.unwrap();
    let timeline = services.attach("gone", &cluster).await.unwrap();
    let drop_it = "SELECT pg_drop_replication_slot('palimpsest_gone')";
    let begun = Instant::now();
    // The keeper may hold it for a moment.
    while let Err(error) = sql(&cluster, drop_it) {
        assert!(begun.elapsed() < PATIENCE, "{error:#}");
        sleep(Duration::from_millis(100)).await;
    }
    let stopped = services
        .reach(timeline, |status| status.state == TimelineState::Stopped)
        .await
        .unwrap();
    let reason = stopped.reason;
    assert!(reason.contains("palimpsest_gone"), "{reason}");
    assert!(reason.contains("pal reattach"), "{reason}");
    assert_eq!(slots(&cluster).unwrap(), "", "it was not made anew");
    services.stop().await;
}

/// With so little room the first WAL pauses the timeline, for good: the segment that is written
/// takes more.
fn no_room(settings: &mut Settings) {
    settings.local_disk = ByteCount::kib(4);
}

/// Nothing goes on by itself after the slot was dropped.
async fn by_hand(broker: &mut BrokerClient) {
    let set = vec![("reattach-after-drop".to_owned(), "false".to_owned())];
    broker
        .set_tenant_settings("full", set, vec![])
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_slot_past_its_limit_is_dropped_while_paused() {
    let cluster = source().unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut services = Services::start(files.path(), |settings| {
        no_room(settings);
        settings.slot_retention_limit = ByteCount::mib(24);
    })
    .await
    .unwrap();
    let conninfo = cluster.conninfo("postgres");
    let attach = services.broker.attach_tenant("full", &conninfo, None);
    let timeline = attach.await.unwrap();
    by_hand(&mut services.broker).await;
    write_wal(&cluster, 2).unwrap();
    let paused = |status: &TimelineStatus| status.state == TimelineState::Paused;
    services.reach(timeline, paused).await.unwrap();
    assert_eq!(slots(&cluster).unwrap(), "palimpsest_full");
    write_wal(&cluster, 40).unwrap();
    let stopped = services
        .reach(timeline, |status| status.state == TimelineState::Stopped)
        .await
        .unwrap();
    let reason = stopped.reason;
    assert!(reason.contains("slot-retention-limit"), "{reason}");
    assert!(reason.contains("palimpsest_full"), "{reason}");
    assert_eq!(slots(&cluster).unwrap(), "");
    services.stop().await;
}

/// Without room nothing is read, and without the object store there is no room: what the source writes meanwhile is lost with
/// the slot, and all else goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn p9_a_timeline_whose_slot_was_dropped_goes_on_from_a_base_backup() {
    let cluster = source().unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut services = Services::start(files.path(), |settings| {
        settings.local_disk = ByteCount::mib(16);
        settings.slot_retention_limit = ByteCount::mib(32);
    })
    .await
    .unwrap();
    let timeline = services.attach("full", &cluster).await.unwrap();
    services.faulty.set(Fault::Refuse);
    write_wal(&cluster, 24).unwrap();
    let paused = |status: &TimelineStatus| status.state == TimelineState::Paused;
    services.reach(timeline, paused).await.unwrap();
    write_wal(&cluster, 40).unwrap();
    let stopped = |status: &TimelineStatus| status.state == TimelineState::Stopped;
    let before = services.reach(timeline, stopped).await.unwrap();
    assert_eq!(slots(&cluster).unwrap(), "");
    sql(&cluster, "CHECKPOINT").unwrap();
    services.faulty.set(Fault::None);
    let goes_on = |status: &TimelineStatus| {
        status.state == TimelineState::Streaming && !status.lost.is_empty()
    };
    let status = services.reach(timeline, goes_on).await.unwrap();
    assert_eq!(slots(&cluster).unwrap(), "palimpsest_full");
    assert_eq!(
        status.lost[0].after, before.last_record,
        "all that came is there"
    );
    write_wal(&cluster, 4).unwrap();
    let end = block_in_place(|| cluster.flush_lsn()).unwrap();
    let stored = |status: &TimelineStatus| status.remote_consistent >= end;
    let status = services.reach(timeline, stored).await.unwrap();
    assert_eq!(status.lost.len(), 1, "it was done once");
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_timeline_outlives_its_slot_while_wal_keeps_coming() {
    const SLOT: &str = "palimpsest_faraway";
    let cluster = source().unwrap();
    let files = tempfile::tempdir().unwrap();
    let limit = |settings: &mut Settings| settings.slot_retention_limit = ByteCount::mib(24);
    let mut services = Services::start(files.path(), limit).await.unwrap();
    let timeline = services.attach("faraway", &cluster).await.unwrap();
    services.faulty.set(Fault::Refuse);
    write_wal(&cluster, 40).unwrap();
    let told = |status: &TimelineStatus| {
        let mut warnings = status.warnings.iter();
        warnings.any(|warning| warning.contains("slot-retention-limit"))
    };
    services.reach(timeline, told).await.unwrap();
    assert_eq!(slots(&cluster).unwrap(), "");
    write_wal(&cluster, 4).unwrap();
    let end = block_in_place(|| cluster.flush_lsn()).unwrap();
    let reads_on = |status: &TimelineStatus| status.last_record >= end;
    let status = services.reach(timeline, reads_on).await.unwrap();
    assert_eq!(status.state, TimelineState::Streaming, "{}", status.reason);
    // Whoever starts next knows that nobody else dropped it.
    services.ingest.stop().await;
    services.restart_ingest().await.unwrap();
    let waits = |status: &TimelineStatus| status.reason.contains("can't resume");
    services.reach(timeline, waits).await.unwrap();
    services.faulty.set(Fault::None);
    let stored = |status: &TimelineStatus| status.remote_consistent >= end;
    services.reach(timeline, stored).await.unwrap();
    let begun = Instant::now();
    while slots(&cluster).unwrap() != SLOT {
        assert!(begun.elapsed() < PATIENCE, "there is no slot again");
        sleep(Duration::from_millis(200)).await;
    }
    let well = |status: &TimelineStatus| status.warnings.iter().all(|it| !it.contains(SLOT));
    services.reach(timeline, well).await.unwrap();
    let kept_from = restart_lsn(&cluster, SLOT).unwrap();
    let stored = services.status(timeline).unwrap().remote_consistent;
    assert!(kept_from <= stored, "{kept_from} is kept, {stored} stored");
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_timeline_goes_on_by_itself() {
    let cluster = source().unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut services = Services::start(files.path(), |settings| {
        settings.memory = ByteCount::mib(8);
        settings.layer_size = ByteCount::mib(4);
    })
    .await
    .unwrap();
    let timeline = services.attach("small", &cluster).await.unwrap();
    write_wal(&cluster, 100).unwrap();
    let end = block_in_place(|| cluster.flush_lsn()).unwrap();
    let arrived = |status: &TimelineStatus| status.last_record >= end;
    services.reach(timeline, arrived).await.unwrap();
    services.stop().await;
}

fn stop_in_time(cluster: &mut Cluster, when: &str) {
    let begun = Instant::now();
    block_in_place(|| cluster.stop())
        .with_context(|| format!("stopping the source while {when}"))
        .unwrap();
    let took = begun.elapsed();
    eprintln!("the source stopped in {took:?} while {when}");
    assert!(took < STOP_LIMIT, "{took:?} while {when}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_the_source_shuts_down_at_once_while_streaming_and_goes_on_after() {
    let mut cluster = source().unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut services = Services::start(files.path(), |_| {}).await.unwrap();
    let timeline = services.attach("stream", &cluster).await.unwrap();
    write_wal(&cluster, 32).unwrap();
    stop_in_time(&mut cluster, "streaming");
    services
        .reach(timeline, |status| {
            status.state == TimelineState::Disconnected
        })
        .await
        .unwrap();
    block_in_place(|| cluster.start()).unwrap();
    write_wal(&cluster, 1).unwrap();
    let end = block_in_place(|| cluster.flush_lsn()).unwrap();
    services
        .reach(timeline, |status| status.flushed >= end)
        .await
        .unwrap();
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_the_source_shuts_down_at_once_while_paused() {
    let mut cluster = source().unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut services = Services::start(files.path(), no_room).await.unwrap();
    let conninfo = cluster.conninfo("postgres");
    let attach = services.broker.attach_tenant("paused", &conninfo, None);
    let timeline = attach.await.unwrap();
    write_wal(&cluster, 2).unwrap();
    let paused = |status: &TimelineStatus| status.state == TimelineState::Paused;
    services.reach(timeline, paused).await.unwrap();
    write_wal(&cluster, 32).unwrap();
    stop_in_time(&mut cluster, "paused");
    services.stop().await;
}
