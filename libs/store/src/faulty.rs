//! An object store that can be made to fail, for tests.

use std::{
    fmt,
    path::Path as FilePath,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

use crate::{ObjectStore, StoreError};

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
    /// Those on one object take a second longer.
    Slow = 3,
}

/// A store in which operations meet the fault that is set at the time, and the next of a kind fail
/// as often as was said.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn object_store::ObjectStore>,
    fault: AtomicU8,
    refused_reads: Countdown,
    refused_puts: Countdown,
    refused_deletes: Countdown,
    lost_answers: Countdown,
}

#[derive(Debug, Default)]
struct Countdown(AtomicUsize);

const FAULTS: [Fault; 4] = [Fault::None, Fault::Refuse, Fault::LoseAnswers, Fault::Slow];
const SLOW: Duration = Duration::from_secs(1);

impl FaultyStore {
    /// The store `inner`, without a fault yet.
    pub fn new(inner: Arc<dyn object_store::ObjectStore>) -> Self {
        Self {
            inner,
            fault: AtomicU8::new(Fault::None as u8),
            refused_reads: Countdown::default(),
            refused_puts: Countdown::default(),
            refused_deletes: Countdown::default(),
            lost_answers: Countdown::default(),
        }
    }

    /// A store in memory, and the same behind the interface that is used.
    ///
    /// # Errors
    /// None that a store in memory has.
    pub async fn in_memory() -> std::result::Result<(Arc<Self>, ObjectStore), StoreError> {
        let faulty = Arc::new(Self::new(Arc::new(InMemory::new())));
        let store = ObjectStore::with(Arc::clone(&faulty) as _).await?;
        Ok((faulty, store))
    }

    /// A store of files below a directory, as [`ObjectStore::open`] has it, and the same behind the
    /// interface that is used.
    ///
    /// # Errors
    /// If the directory can't be used.
    pub async fn in_directory(
        directory: &FilePath,
    ) -> std::result::Result<(Arc<Self>, ObjectStore), StoreError> {
        let files = crate::directory::open(directory)?;
        let faulty = Arc::new(Self::new(Arc::new(files)));
        let store = ObjectStore::with(Arc::clone(&faulty) as _).await?;
        Ok((faulty, store))
    }

    /// From now on this happens to all operations.
    pub fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    /// So many of the next gets and listings fail.
    pub fn refuse_reads(&self, count: usize) {
        self.refused_reads.set(count);
    }

    /// So many of the next puts fail, and nothing is stored.
    pub fn refuse_puts(&self, count: usize) {
        self.refused_puts.set(count);
    }

    /// So many of the next deletes fail.
    pub fn refuse_deletes(&self, count: usize) {
        self.refused_deletes.set(count);
    }

    /// The answers of so many of the next puts are lost after the object is stored.
    pub fn lose_answers(&self, count: usize) {
        self.lost_answers.set(count);
    }

    fn fault(&self) -> Fault {
        let number = usize::from(self.fault.load(Ordering::SeqCst));
        FAULTS.get(number).copied().unwrap_or(Fault::None)
    }

    /// Whether an operation of this kind may begin.
    fn admit(&self, refused: &Countdown) -> Result<()> {
        match self.fault() == Fault::Refuse || refused.take() {
            true => Err(failure("refused")),
            false => Ok(()),
        }
    }

    async fn slowly(&self) {
        if self.fault() == Fault::Slow {
            tokio::time::sleep(SLOW).await;
        }
    }
}

impl Countdown {
    fn set(&self, count: usize) {
        self.0.store(count, Ordering::SeqCst);
    }

    /// Takes one, unless none is left.
    fn take(&self) -> bool {
        let one_less = |count: usize| count.checked_sub(1);
        let (set, fetch) = (Ordering::SeqCst, Ordering::SeqCst);
        self.0.fetch_update(set, fetch, one_less).is_ok()
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
        self.admit(&self.refused_puts)?;
        self.slowly().await;
        let stored = self.inner.put_opts(path, payload, options).await?;
        match self.fault() == Fault::LoseAnswers || self.lost_answers.take() {
            true => Err(failure("the answer did not come in time")),
            false => Ok(stored),
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.admit(&self.refused_puts)?;
        self.slowly().await;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.admit(&self.refused_reads)?;
        self.slowly().await;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.admit(&self.refused_deletes) {
            Ok(()) => self.inner.delete_stream(paths),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.admit(&self.refused_reads) {
            Ok(()) => self.inner.list(below),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.admit(&self.refused_reads)?;
        self.slowly().await;
        self.inner.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.admit(&self.refused_puts)?;
        self.slowly().await;
        self.inner.copy_opts(from, to, options).await
    }
}
