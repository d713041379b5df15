//! Settings of a tenant, with real PostgreSQL: services go by them while they run, and after they were started again.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use palimpsest_api::{
    TimelineRef,
    broker::TimelineView,
    page::{PagesRequest, ReadAt},
    tenant_settings::{EffectiveSetting, SettingOrigin},
};
use palimpsest_integration::embedded::Embedded;
use palimpsest_manifest::TimelineManifests;
use palimpsest_runtime::TaskScope;
use palimpsest_store::ObjectStore;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{BlockNumber, ErrorKind, Lsn, Reason, RelTag};
use tokio::{
    task::block_in_place,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// So long nothing becomes a layer because of its age.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// A cluster that is attached as `shop`, whose changes become no layer by themselves.
struct Site {
    services: Embedded,
    ingest: TaskScope,
    cluster: Cluster,
    main: TimelineRef,
    _files: tempfile::TempDir,
}

impl Site {
    async fn new() -> Result<Self> {
        let mut cluster = Cluster::temporary(ClusterOptions::default())?;
        block_in_place(|| cluster.start())?;
        let files = tempfile::tempdir()?;
        let mut services = Embedded::start_without_wal_ingest(files.path()).await?;
        let ingest = services.scope().child();
        start_ingest(&services, &ingest).await?;
        let conninfo = cluster.conninfo("postgres");
        let main = services.attach("shop", &conninfo).await?;
        Ok(Self {
            services,
            ingest,
            cluster,
            main,
            _files: files,
        })
    }

    fn sql(&self, text: &str) -> Result<String> {
        block_in_place(|| self.cluster.psql("postgres", text))
    }

    /// Writes something; where WAL is then.
    fn write(&self) -> Result<Lsn> {
        self.sql(
            "CREATE TABLE IF NOT EXISTS t (i int); INSERT INTO t SELECT generate_series(1, 1000)",
        )?;
        Ok(self.sql("SELECT pg_current_wal_flush_lsn()")?.parse()?)
    }

    async fn set(&self, set: &[(&str, &str)], unset: &[&str]) -> Result<Vec<EffectiveSetting>> {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let unset = unset.iter().map(|name| (*name).to_owned()).collect();
        let mut broker = self.services.broker();
        let set = broker.set_tenant_settings("shop", set.iter().map(pair).collect(), unset);
        Ok(set.await?)
    }

    async fn reach(&self, arrived: impl FnMut(&TimelineView) -> bool) -> Result<TimelineView> {
        self.services.wait_for(self.main, arrived).await
    }

    /// Layers of changes, as they were written from WAL and as they were compacted.
    async fn layers(&self) -> Result<(usize, usize)> {
        let store = ObjectStore::open(&self.services.store()).await?;
        let TimelineRef { tenant, timeline } = self.main;
        let newest = TimelineManifests::new(store, tenant, timeline)
            .newest()
            .await?;
        let newest = newest.context("there is no manifest")?.state;
        let written = newest
            .layers()
            .iter()
            .filter(|layer| layer.is_written())
            .count();
        let compacted = newest
            .layers()
            .iter()
            .filter(|layer| layer.level > 0)
            .count();
        Ok((written, compacted))
    }
}

async fn start_ingest(services: &Embedded, scope: &TaskScope) -> Result<()> {
    let settings = palimpsest_wal_ingest::Settings {
        layer_age: NEVER,
        ..services.wal_ingest_settings()
    };
    palimpsest_wal_ingest::run(settings, scope).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_become_layers_and_are_compacted_as_the_tenant_has_set_it() {
    let mut site = Site::new().await.unwrap();
    let decoded = site.write().unwrap();
    let first = site
        .reach(|view| view.status.last_record >= decoded)
        .await
        .unwrap();
    let stored = first.status.remote_consistent;
    assert!(stored < decoded, "a layer was made already");

    let told = site.set(&[("layer-age", "100ms")], &[]).await.unwrap();
    let age = told
        .iter()
        .find(|setting| setting.name == "layer-age")
        .unwrap();
    assert_eq!(age.origin, SettingOrigin::Tenant);
    let of_services: Vec<_> = age
        .defaults
        .iter()
        .map(|(value, _)| value.as_str())
        .collect();
    assert_eq!(of_services, ["1day"]);
    site.reach(|view| view.status.remote_consistent >= decoded)
        .await
        .unwrap();

    // Whoever writes it next goes by it, too, from the first moment.
    site.ingest.stop().await;
    let ingest = site.services.scope().child();
    start_ingest(&site.services, &ingest).await.unwrap();
    site.ingest = ingest;
    for _ in 0..4 {
        let end = site.write().unwrap();
        site.reach(|view| view.status.remote_consistent >= end)
            .await
            .unwrap();
    }
    let (written, compacted) = site.layers().await.unwrap();
    assert!(written >= 5 && compacted == 0, "{written}, {compacted}");

    // With a compactor that would wait for a hundred layers, as the tenant first does, too.
    let settings = palimpsest_compactor::Settings {
        listen: "127.0.0.1:0".to_owned(),
        broker: site.services.broker_address().to_owned(),
        store: site.services.store().as_path().into(),
        compaction_threshold: NonZeroUsize::new(100).unwrap(),
        compaction_inputs: NonZeroUsize::new(100).unwrap(),
        ..palimpsest_compactor::Settings::default()
    };
    palimpsest_compactor::run(settings, site.services.scope())
        .await
        .unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(site.layers().await.unwrap().1, 0, "as the compactor has it");
    site.set(&[("compaction-threshold", "3")], &["layer-age"])
        .await
        .unwrap();
    let begun = Instant::now();
    while site.layers().await.unwrap().1 == 0 {
        assert!(begun.elapsed() < PATIENCE, "nothing is compacted");
        sleep(Duration::from_millis(200)).await;
    }
    site.services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_tenant_that_asks_for_more_pages_than_it_may_is_refused_and_others_are_not() {
    let mut site = Site::new().await.unwrap();
    let end = site.write().unwrap();
    let served = site.services.served(site.main).await.unwrap();
    let other = Cluster::temporary(ClusterOptions::default());
    let mut other = other.unwrap();
    block_in_place(|| other.start()).unwrap();
    let conninfo = other.conninfo("postgres");
    let second = site.services.attach("other", &conninfo).await.unwrap();
    site.services.served(second).await.unwrap();
    let client = served.client();
    let mine = || client.pages(pages(site.main, Some(end), 20));
    mine().await.unwrap();
    site.set(&[("pages-per-second", "1")], &[]).await.unwrap();
    let refused = async {
        loop {
            // Until page-serve has heard of it they are answered; then one makes all others wait too long.
            match mine().await {
                Ok(_) => sleep(Duration::from_millis(50)).await,
                Err(error) => return error,
            }
        }
    };
    let error = timeout(PATIENCE, refused)
        .await
        .expect("nothing is refused");
    assert_eq!(error.kind, ErrorKind::Throttled);
    assert_eq!(error.reason, Some(Reason::Overloaded));
    assert!(error.to_string().contains("pages-per-second"), "{error}");
    for _ in 0..20 {
        client.pages(pages(second, None, 20)).await.unwrap();
    }
    assert_eq!(mine().await.unwrap_err().kind, ErrorKind::Throttled);
    site.set(&[], &["pages-per-second"]).await.unwrap();
    let answered = async {
        while mine().await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, answered).await.expect("it stays refused");
    site.services.stop().await;
}

/// So many times the first page of `pg_class`.
fn pages(timeline: TimelineRef, lsn: Option<Lsn>, count: usize) -> PagesRequest {
    PagesRequest {
        timeline,
        rel: pg_class(),
        blocks: vec![BlockNumber::ZERO; count],
        at: ReadAt {
            lsn,
            ..ReadAt::default()
        },
    }
}

/// `pg_class` of database `postgres`, whose file keeps its number in a cluster that is as it was made.
fn pg_class() -> RelTag {
    "1663/5/1259".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_bulk_load_in_a_small_share_of_the_memory_arrives_whole() {
    let site = Site::new().await.unwrap();
    // Of 1 GiB, as much as some dozens of MiB of WAL take. Layers get no larger than 4 MiB by themselves here.
    site.set(&[("memory-share", "1%"), ("layer-size", "512MiB")], &[])
        .await
        .unwrap();
    let is_set = |view: &palimpsest_api::broker::ClusterView| {
        view.settings(site.main.tenant).memory_share.is_some()
    };
    let mut cluster = site.services.cluster().clone();
    timeout(PATIENCE, cluster.wait_for(is_set))
        .await
        .unwrap()
        .unwrap();
    for _ in 0..20 {
        site.sql("CREATE TABLE IF NOT EXISTS f (t text); INSERT INTO f SELECT repeat('x', 1000) FROM generate_series(1, 4000)").unwrap();
    }
    let end: Lsn = site
        .sql("SELECT pg_current_wal_flush_lsn()")
        .unwrap()
        .parse()
        .unwrap();
    let begun = Instant::now();
    let reached = site.reach(|view| view.status.last_record >= end).await;
    let reached = reached.with_context(|| format!("after {:?}", begun.elapsed()));
    if let Err(error) = reached {
        let status = site.services.status(site.main).unwrap();
        panic!("{error:#}: {status:?}");
    }
    // What no layer has yet is in a page-serve's memory, a share of that, too.
    let served = site.services.served(site.main).await.unwrap();
    let newest = async {
        loop {
            match served.client().pages(pages(site.main, Some(end), 1)).await {
                Err(error) if error.kind == ErrorKind::NotReady => {}
                outcome => break outcome,
            }
        }
    };
    let newest = timeout(PATIENCE, newest).await;
    newest.expect("page-serve is behind for good").unwrap();
    let (written, _) = site.layers().await.unwrap();
    assert!(written > 2, "all of it was in memory: {written} layers");
    site.services.stop().await;
}
