//! An object store that can be made to fail.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};

/// What happens to operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Nothing.
    None = 0,
    /// They fail, and nothing is done.
    Refuse = 1,
    /// Puts are done and said to have failed.
    LoseAnswers = 2,
    /// They take a second longer.
    Slow = 3,
}

/// A store in which every operation meets the fault that is set at the time.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn object_store::ObjectStore>,
    fault: AtomicU8,
}

const FAULTS: [Fault; 4] = [Fault::None, Fault::Refuse, Fault::LoseAnswers, Fault::Slow];
const SLOW: Duration = Duration::from_secs(1);

impl FaultyStore {
    /// The store `inner`, without a fault yet.
    pub fn new(inner: Arc<dyn object_store::ObjectStore>) -> Self {
        Self {
            inner,
            fault: AtomicU8::new(Fault::None as u8),
        }
    }

    /// From now on this happens.
    pub fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    fn fault(&self) -> Fault {
        let number = usize::from(self.fault.load(Ordering::SeqCst));
        FAULTS.get(number).copied().unwrap_or(Fault::None)
    }

    async fn meet(&self) -> Result<()> {
        match self.fault() {
            Fault::None | Fault::LoseAnswers => Ok(()),
            Fault::Refuse => Err(failure("refused")),
            Fault::Slow => {
                tokio::time::sleep(SLOW).await;
                Ok(())
            }
        }
    }
}

fn failure(why: &'static str) -> Error {
    Error::Generic {
        store: "faulty",
        source: why.into(),
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
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
        self.meet().await?;
        let stored = self.inner.put_opts(path, payload, options).await?;
        match self.fault() {
            Fault::LoseAnswers => Err(failure("the answer did not come in time")),
            _ => Ok(stored),
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.meet().await?;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.meet().await?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.fault() {
            Fault::Refuse => stream::iter([Err(failure("refused"))]).boxed(),
            _ => self.inner.delete_stream(paths),
        }
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fault() {
            Fault::Refuse => stream::iter([Err(failure("refused"))]).boxed(),
            _ => self.inner.list(below),
        }
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.meet().await?;
        self.inner.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.meet().await?;
        self.inner.copy_opts(from, to, options).await
    }
}
