//! All services in this process, over real gRPC on loopback: what `pal up` runs, for judges.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use palimpsest_api::{
    TimelineRef,
    broker::{BrokerClient, ClusterView, Role, TimelineStatus, TimelineView, watch_cluster},
    channel::connect_lazily,
    page::{PageClient, PagesRequest, ReadAt},
};
use palimpsest_runtime::TaskScope;
use palimpsest_types::{BlockNumber, ByteCount, ErrorKind, Lsn, RelTag};
use tokio::sync::watch;

use crate::{
    oracle::PageSource,
    waiting::{LOOK, PATIENCE, is_readable, wait_for},
};

/// Where `make -C compute/redo` puts what it builds.
pub const REDO_BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../compute/redo/build/15");

/// The services, on free ports, with their files below one directory.
#[derive(Debug)]
pub struct Embedded {
    scope: TaskScope,
    broker: BrokerClient,
    broker_address: String,
    cluster: watch::Receiver<ClusterView>,
    directory: PathBuf,
}

/// A timeline as a page-serve serves it.
#[derive(Debug)]
pub struct ServedTimeline {
    client: PageClient,
    timeline: TimelineRef,
}

/// Layers are small and many, so that a judge reads from memory, from files, and across both.
const LAYER_SIZE: ByteCount = ByteCount::mib(4);
const LAYER_AGE: Duration = Duration::from_secs(3);
/// A reader that asks for what is not there hears so soon.
const LSN_PATIENCE: Duration = Duration::from_secs(3);
/// Blocks in one request.
const BLOCKS: usize = 64;
/// Requests under way.
const REQUESTS: usize = 8;

impl Embedded {
    /// Starts one of each service, with files below `directory`.
    pub async fn start(directory: &Path) -> Result<Self> {
        let embedded = Self::start_without_wal_ingest(directory).await?;
        embedded.start_wal_ingest(&embedded.scope).await?;
        Ok(embedded)
    }

    /// Starts one of each service but wal-ingest.
    pub async fn start_without_wal_ingest(directory: &Path) -> Result<Self> {
        let scope = TaskScope::default();
        let broker_address = start_broker(directory, "127.0.0.1:0", &scope).await?;
        let cluster = watch_cluster(&broker_address, &scope)?;
        let broker = BrokerClient::new(&broker_address)?;
        let directory = directory.to_owned();
        let embedded = Self {
            scope,
            broker,
            broker_address,
            cluster,
            directory,
        };
        embedded.start_redo_worker(&embedded.scope).await?;
        embedded.start_page_serve(&embedded.scope).await?;
        Ok(embedded)
    }

    /// The scope that all services live in.
    pub fn scope(&self) -> &TaskScope {
        &self.scope
    }

    /// Starts a redo-worker, perhaps one more.
    pub async fn start_redo_worker(&self, scope: &TaskScope) -> Result<String> {
        let settings = palimpsest_redo_worker::Settings {
            listen: "127.0.0.1:0".to_owned(),
            broker: self.broker_address.clone(),
            pg_bin: palimpsest_testkit::cluster::pg_bin(),
            redo_build: REDO_BUILD.into(),
            ..palimpsest_redo_worker::Settings::default()
        };
        let running = palimpsest_redo_worker::run(settings, scope).await?;
        Ok(running.address().to_string())
    }

    /// Starts a page-serve, perhaps one more.
    pub async fn start_page_serve(&self, scope: &TaskScope) -> Result<String> {
        let settings = palimpsest_page_serve::Settings {
            listen: "127.0.0.1:0".to_owned(),
            broker: self.broker_address.clone(),
            store: self.store().into(),
            lsn_patience: LSN_PATIENCE,
            ..palimpsest_page_serve::Settings::default()
        };
        let running = palimpsest_page_serve::run(settings, scope).await?;
        Ok(running.address().to_string())
    }

    /// Starts a wal-ingest.
    pub async fn start_wal_ingest(&self, scope: &TaskScope) -> Result<String> {
        let running = palimpsest_wal_ingest::run(self.wal_ingest_settings(), scope).await?;
        Ok(running.address().to_string())
    }

    /// What wal-ingests are started with.
    pub fn wal_ingest_settings(&self) -> palimpsest_wal_ingest::Settings {
        palimpsest_wal_ingest::Settings {
            listen: "127.0.0.1:0".to_owned(),
            broker: self.broker_address.clone(),
            store: self.store().into(),
            data: self.directory.join("wal-ingest"),
            layer_size: LAYER_SIZE,
            layer_age: LAYER_AGE,
            // What judges of restarts and lost disks look at is what a crash would leave.
            flush_at_shutdown: Duration::ZERO,
            ..palimpsest_wal_ingest::Settings::default()
        }
    }

    /// The directory of the object store.
    pub fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    /// Attaches a cluster and waits until it can be read.
    pub async fn attach(&mut self, name: &str, conninfo: &str) -> Result<TimelineRef> {
        let timeline = self.broker.attach_tenant(name, conninfo, None).await?;
        self.wait_for(timeline, is_readable).await?;
        Ok(timeline)
    }

    /// Deletes a tenant and waits until nothing is left of it.
    pub async fn delete(&mut self, name: &str) -> Result<()> {
        self.broker.delete_tenant(name, false).await?;
        let mut cluster = self.cluster.clone();
        let gone = cluster.wait_for(|view| view.find(name).is_none());
        tokio::time::timeout(PATIENCE, gone)
            .await
            .context("the tenant is still there")??;
        Ok(())
    }

    /// Waits until a timeline is as `arrived` wants it.
    pub async fn wait_for(
        &self,
        timeline: TimelineRef,
        arrived: impl FnMut(&TimelineView) -> bool,
    ) -> Result<TimelineView> {
        wait_for(self.cluster.clone(), timeline, arrived).await
    }

    /// How far a timeline was when its writer last said so.
    pub fn status(&self, timeline: TimelineRef) -> Result<TimelineStatus> {
        let cluster = self.cluster.borrow();
        let view = cluster.timeline(timeline);
        Ok(view.context("the timeline is gone")?.status.clone())
    }

    /// A client of the broker.
    pub fn broker(&self) -> BrokerClient {
        self.broker.clone()
    }

    /// Where the broker is.
    pub fn broker_address(&self) -> &str {
        &self.broker_address
    }

    /// The view of the cluster, as it changes.
    pub fn cluster(&self) -> &watch::Receiver<ClusterView> {
        &self.cluster
    }

    /// A timeline, read from the first page-serve, once that has opened it.
    pub async fn served(&self, timeline: TimelineRef) -> Result<ServedTimeline> {
        let address = self.page_serve().await?;
        let served = self.served_by(&address, timeline).await?;
        let opened = async {
            while let Err(error) = served.client.readable(timeline).await {
                ensure!(error.kind == ErrorKind::NotReady, "{error}");
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        let opened = tokio::time::timeout(PATIENCE, opened).await;
        opened.context("page-serve does not open the timeline")??;
        Ok(served)
    }

    /// A timeline, read from a page-serve.
    pub async fn served_by(&self, address: &str, timeline: TimelineRef) -> Result<ServedTimeline> {
        let client = PageClient::connect(connect_lazily(address)?).await?;
        Ok(ServedTimeline { client, timeline })
    }

    async fn page_serve(&self) -> Result<String> {
        let mut cluster = self.cluster.clone();
        let there = cluster.wait_for(|view| !view.addresses(Role::PageServe).is_empty());
        let addresses = tokio::time::timeout(PATIENCE, there)
            .await??
            .addresses(Role::PageServe);
        let address = addresses.first().context("no page-serve is alive")?;
        Ok(address.clone())
    }

    /// Stops all services in good order.
    pub async fn stop(self) {
        self.scope.stop().await;
    }
}

/// Starts a storage-broker; returns its address.
pub async fn start_broker(directory: &Path, listen: &str, scope: &TaskScope) -> Result<String> {
    let settings = palimpsest_storage_broker::Settings {
        listen: listen.to_owned(),
        store: directory.join("store").into(),
        ..palimpsest_storage_broker::Settings::default()
    };
    Ok(palimpsest_storage_broker::run(settings, scope)
        .await?
        .address()
        .to_string())
}

impl ServedTimeline {
    /// What this client reads of a timeline.
    pub fn new(client: PageClient, timeline: TimelineRef) -> Self {
        Self { client, timeline }
    }

    /// The client, for what pages alone do not show.
    pub fn client(&self) -> &PageClient {
        &self.client
    }

    async fn some_pages(
        &self,
        rel: RelTag,
        blocks: Vec<BlockNumber>,
        lsn: Lsn,
    ) -> Vec<Result<Bytes>> {
        let at = ReadAt {
            lsn: Some(lsn),
            ..ReadAt::default()
        };
        let count = blocks.len();
        let request = PagesRequest {
            timeline: self.timeline,
            at,
            rel,
            blocks,
        };
        match self.client.pages(request).await {
            Ok(answer) => answer.pages.into_iter().map(Ok).collect(),
            Err(error) => (0..count).map(|_| Err(error.clone().into())).collect(),
        }
    }
}

impl PageSource for ServedTimeline {
    async fn relations(&self, lsn: Lsn) -> Result<Vec<(RelTag, BlockNumber)>> {
        let at = ReadAt {
            lsn: Some(lsn),
            ..ReadAt::default()
        };
        Ok(self.client.relations(self.timeline, at).await?.1)
    }

    async fn pages(&self, rel: RelTag, blocks: &[BlockNumber], lsn: Lsn) -> Vec<Result<Bytes>> {
        let portions: Vec<Vec<_>> = blocks.chunks(BLOCKS).map(<[_]>::to_vec).collect();
        let read = |some: Vec<_>| self.some_pages(rel, some, lsn);
        let answers: Vec<_> = stream::iter(portions)
            .map(read)
            .buffered(REQUESTS)
            .collect()
            .await;
        answers.into_iter().flatten().collect()
    }
}
