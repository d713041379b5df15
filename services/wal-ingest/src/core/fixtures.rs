//! For tests: an object store that fails, and a timeline on it that nothing runs for yet.

use std::{
    io,
    path::Path as FilePath,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use palimpsest_api::{
    TimelineRef,
    broker::{AssignedTask, Assignment, ClusterView},
};
use palimpsest_disk::OsDisk;
use palimpsest_runtime::TaskScope;
use palimpsest_store::ObjectStore;
use palimpsest_types::{TenantId, TimelineId};
use tokio::sync::watch;

use super::{
    node::{Limits, Shared},
    timeline::Timeline,
};

/// Objects in memory. Reads fail and puts lose their answers as often as was said.
#[derive(Debug, Default)]
pub(crate) struct FaultyStore {
    inner: InMemory,
    refused_reads: AtomicUsize,
    refused_puts: AtomicUsize,
}

impl FaultyStore {
    pub(crate) async fn open() -> (Arc<Self>, ObjectStore) {
        let faulty = Arc::new(Self::default());
        let store = ObjectStore::with(Arc::clone(&faulty) as _).await.unwrap();
        (faulty, store)
    }

    /// So many of the next gets and listings fail.
    pub(crate) fn refuse_reads(&self, count: usize) {
        self.refused_reads.store(count, Ordering::SeqCst);
    }

    /// So many of the next puts fail, and nothing is stored.
    pub(crate) fn refuse_puts(&self, count: usize) {
        self.refused_puts.store(count, Ordering::SeqCst);
    }
}

/// Takes one from a counter; fails unless it was zero.
fn meet(counter: &AtomicUsize) -> Result<()> {
    let one_less = |count: usize| count.checked_sub(1);
    match counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
        Ok(_) => Err(Error::Generic {
            store: "faulty",
            source: "refused".into(),
        }),
        Err(_) => Ok(()),
    }
}

impl std::fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl object_store::ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        meet(&self.refused_puts)?;
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        meet(&self.refused_reads)?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let met = stream::iter([meet(&self.refused_reads)]);
        let listed = self.inner.list(below);
        met.map_ok(|()| None)
            .chain(listed.map_ok(Some))
            .try_filter_map(|object| async { Ok(object) })
            .boxed()
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        meet(&self.refused_reads)?;
        self.inner.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A timeline on `store`, with its local files below `directory`, whose source is not there.
pub(crate) fn timeline(store: ObjectStore, directory: &FilePath, limits: Limits) -> Timeline {
    timeline_of(unused_port().unwrap(), store, directory, limits)
}

/// The same, with a source at this port of the local host.
pub(crate) fn timeline_of(
    port: u16,
    store: ObjectStore,
    directory: &FilePath,
    limits: Limits,
) -> Timeline {
    let (_, cluster) = watch::channel(ClusterView::default());
    let disk = Arc::new(OsDisk);
    let shared = Shared::new(store, (disk, directory.to_owned()), limits, cluster);
    let assignment = Assignment {
        timeline: TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        },
        source: format!("host=127.0.0.1 port={port} user=nobody dbname=postgres"),
        slot: "palimpsest_test".to_owned(),
        task: AssignedTask::Ingest,
    };
    let slot = assignment.slot.parse().unwrap();
    Timeline::new(assignment, slot, Arc::new(shared), TaskScope::default())
}

/// A port at which nobody listens.
fn unused_port() -> io::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}
