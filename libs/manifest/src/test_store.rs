//! A store whose answers can be lost, for tests.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use palimpsest_store::ObjectStore;

/// Objects in memory. Some puts succeed and say that they failed, some deletes fail.
#[derive(Debug, Default)]
pub(crate) struct FaultyStore {
    inner: InMemory,
    lost_answers: AtomicUsize,
    failing_deletes: AtomicUsize,
}

impl FaultyStore {
    pub(crate) async fn open() -> (Arc<Self>, ObjectStore) {
        let faulty = Arc::new(Self::default());
        let store = ObjectStore::with(Arc::clone(&faulty) as _).await.unwrap();
        (faulty, store)
    }

    /// The answers of the next puts are lost after the object is stored.
    pub(crate) fn lose_answers(&self, puts: usize) {
        self.lost_answers.store(puts, Ordering::SeqCst);
    }

    /// The next deletes fail.
    pub(crate) fn fail_deletes(&self, deletes: usize) {
        self.failing_deletes.store(deletes, Ordering::SeqCst);
    }
}

/// Takes one from a counter unless it is zero.
fn take(counter: &AtomicUsize) -> bool {
    let one_less = |count: usize| count.checked_sub(1);
    counter
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
        .is_ok()
}

fn timeout() -> Error {
    Error::Generic {
        store: "faulty",
        source: "the answer did not come in time".into(),
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
        let stored = self.inner.put_opts(path, payload, options).await?;
        if take(&self.lost_answers) {
            return Err(timeout());
        }
        Ok(stored)
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        if take(&self.failing_deletes) {
            return Box::pin(futures::stream::iter([Err(timeout())]));
        }
        self.inner.delete_stream(paths)
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(below)
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
