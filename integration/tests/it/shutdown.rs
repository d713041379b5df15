//! A wal-ingest that is stopped in good order leaves nothing that only its own disk has, unless the
//! object store is away; and what stays then is not lost.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use palimpsest_api::{TimelineRef, broker::TimelineState};
use palimpsest_disk::OsDisk;
use palimpsest_integration::embedded::Embedded;
use palimpsest_manifest::TimelineManifests;
use palimpsest_runtime::TaskScope;
use palimpsest_store::faulty::{Fault, FaultyStore};
use palimpsest_types::{ByteCount, Lsn};
use palimpsest_wal_ingest::{Backing, Settings};
use tokio::task::block_in_place;

use crate::durability::{Source, start_ingest};

/// What is not done by then is left.
const LIMIT: Duration = Duration::from_secs(4);
/// The server drains, and blocking work ends; on a machine that does more than that.
const SLACK: Duration = Duration::from_secs(8);
/// Nothing becomes a layer in time.
const NEVER: Duration = Duration::from_secs(3600);

struct Scene {
    source: Source,
    services: Embedded,
    faulty: Arc<FaultyStore>,
    backing: Backing,
    settings: Settings,
    ingest: TaskScope,
    timeline: TimelineRef,
    _files: tempfile::TempDir,
}

impl Scene {
    /// A timeline of which only the base backup is in the object store.
    async fn start() -> Result<Self> {
        let source = block_in_place(Source::start)?;
        let files = tempfile::tempdir()?;
        let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
        let (faulty, store) = FaultyStore::in_directory(&services.store()).await?;
        let disk = Arc::new(OsDisk);
        let backing = Backing { disk, store };
        let settings = Settings {
            layer_size: ByteCount::mib(256),
            layer_age: NEVER,
            flush_at_shutdown: LIMIT,
            ..services.wal_ingest_settings()
        };
        let ingest = start_ingest(&services, backing.clone(), settings.clone()).await?;
        let conninfo = source.cable.conninfo("postgres");
        let timeline = services.attach("stopped", &conninfo).await?;
        Ok(Self {
            source,
            services,
            faulty,
            backing,
            settings,
            ingest,
            timeline,
            _files: files,
        })
    }

    /// Writes; gives the end of the source's WAL once it is readable here.
    async fn write(&self) -> Result<Lsn> {
        block_in_place(|| self.source.write(1))?;
        let end = block_in_place(|| self.source.cluster.flush_lsn())?;
        let readable = self
            .services
            .wait_for(self.timeline, |view| view.status.last_record >= end);
        let status = readable.await?.status;
        ensure!(
            status.remote_consistent < end,
            "the object store has all before the stop"
        );
        Ok(end)
    }

    /// Stops wal-ingest; says how long it took.
    async fn stop(&self) -> Duration {
        let begun = Instant::now();
        self.ingest.stop().await;
        begun.elapsed()
    }

    async fn stored(&self) -> Result<Lsn> {
        let TimelineRef { tenant, timeline } = self.timeline;
        let manifests = TimelineManifests::new(self.backing.store.clone(), tenant, timeline);
        let newest = manifests.newest().await?;
        Ok(newest.map_or(Lsn::ZERO, |newest| newest.state.lsn))
    }

    /// Starts wal-ingest and waits for this state; says what is readable then.
    async fn start_again(&mut self, state: TimelineState) -> Result<Lsn> {
        let before = self.services.status(self.timeline)?.epoch;
        let (backing, settings) = (self.backing.clone(), self.settings.clone());
        self.ingest = start_ingest(&self.services, backing, settings).await?;
        let resumed = self.services.wait_for(self.timeline, |view| {
            view.status.epoch > before && view.status.state == state
        });
        Ok(resumed.await?.status.last_record)
    }

    /// The same with the source out of reach: what is readable then was here.
    async fn start_without_source(&mut self) -> Result<Lsn> {
        self.source.cable.unplug();
        self.start_again(TimelineState::Disconnected).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_stop_leaves_nothing_that_only_the_local_disk_has() {
    let mut scene = Scene::start().await.unwrap();
    let end = scene.write().await.unwrap();
    let took = scene.stop().await;
    let stored = scene.stored().await.unwrap();
    eprintln!("stopped in {took:?}; the object store has {stored}, {end} was written");
    assert!(stored >= end, "{stored} of {end}");

    std::fs::remove_dir_all(&scene.settings.data).unwrap();
    let readable = scene.start_without_source().await.unwrap();
    assert!(
        readable >= end,
        "{readable} of {end} without the local disk"
    );
    scene.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_store_that_is_away_holds_a_stop_up_for_a_limited_time_and_loses_nothing() {
    let mut scene = Scene::start().await.unwrap();
    let end = scene.write().await.unwrap();
    let before = scene.stored().await.unwrap();
    scene.faulty.set(Fault::Refuse);
    let took = scene.stop().await;
    eprintln!("stopped in {took:?} without the object store");
    assert!(took < LIMIT + SLACK, "{took:?}");
    scene.faulty.set(Fault::None);
    assert_eq!(scene.stored().await.unwrap(), before);

    let readable = scene.start_without_source().await.unwrap();
    assert!(readable >= end, "{readable} of {end}");
    scene.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_stop_without_a_flush_is_at_once_and_loses_nothing() {
    let mut scene = Scene::start().await.unwrap();
    scene.stop().await;
    scene.settings.flush_at_shutdown = Duration::ZERO;
    let streams = scene.start_again(TimelineState::Streaming);
    streams.await.unwrap();
    let end = scene.write().await.unwrap();
    let before = scene.stored().await.unwrap();
    scene.stop().await;
    assert_eq!(scene.stored().await.unwrap(), before);

    let readable = scene.start_without_source().await.unwrap();
    assert!(readable >= end, "{readable} of {end}");
    scene.services.stop().await;
}
