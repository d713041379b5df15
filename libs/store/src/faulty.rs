//! An object store that can be made to fail, for tests.

use std::{
    fmt,
    path::Path as FilePath,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    FutureExt as _, StreamExt as _, future,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use tokio::sync::watch;

use crate::{ObjectStore, StoreError};

/// What happens to operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// They fail, and nothing is done.
    Refuse,
    /// Puts are done and said to have failed.
    LoseAnswers,
    /// Those on one object take a second longer.
    Slow,
    /// They do not begin until the fault is another: whoever asks stands still.
    Halt,
}

/// A store in which operations meet the fault that is set at the time, and the next of a kind fail
/// as often as was said.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn object_store::ObjectStore>,
    fault: watch::Sender<Fault>,
    /// The fault that comes next, and after how many operations.
    coming: Mutex<Option<(usize, Fault)>>,
    /// Whether an operation stands still.
    halted: watch::Sender<bool>,
    refused_reads: Countdown,
    refused_puts: Countdown,
    refused_deletes: Countdown,
    lost_answers: Countdown,
}

#[derive(Debug, Default)]
struct Countdown(AtomicUsize);

const SLOW: Duration = Duration::from_secs(1);

impl FaultyStore {
    /// The store `inner`, without a fault yet.
    pub fn new(inner: Arc<dyn object_store::ObjectStore>) -> Self {
        Self {
            inner,
            fault: watch::Sender::new(Fault::None),
            coming: Mutex::default(),
            halted: watch::Sender::new(false),
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
        self.come(None);
        self.begin(fault);
    }

    /// So many more operations go as they do now, and from then on this happens to all.
    pub fn set_after(&self, operations: usize, fault: Fault) {
        self.come(Some((operations, fault)));
    }

    /// Waits until an operation stands still.
    pub async fn stands_still(&self) {
        // The sender is here, so this does not end otherwise.
        let _ = self.halted.subscribe().wait_for(|halted| *halted).await;
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
        *self.fault.borrow()
    }

    fn begin(&self, fault: Fault) {
        if fault != Fault::Halt {
            self.halted.send_replace(false);
        }
        self.fault.send_replace(fault);
    }

    fn come(&self, next: Option<(usize, Fault)>) {
        *self.coming.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// Counts an operation, which may go on when this ends.
    fn pass(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        match coming.as_mut() {
            Some((0, fault)) => {
                self.begin(*fault);
                *coming = None;
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        if self.fault() == Fault::Halt {
            self.halted.send_replace(true);
        }
        let mut fault = self.fault.subscribe();
        async move {
            if fault.wait_for(|fault| *fault != Fault::Halt).await.is_err() {
                // It stood still until the store was gone.
                future::pending().await
            }
        }
    }

    /// Whether an operation of this kind may begin.
    fn check(&self, refused: &Countdown) -> Result<()> {
        match self.fault() == Fault::Refuse || refused.take() {
            true => Err(failure("refused")),
            false => Ok(()),
        }
    }

    /// The same, once it does not stand still.
    async fn admit(&self, refused: &Countdown) -> Result<()> {
        self.pass().await;
        self.check(refused)
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

/// What a stream has, once it may begin.
fn after<T: Send + 'static>(
    pass: impl Future<Output = ()> + Send + 'static,
    items: BoxStream<'static, T>,
) -> BoxStream<'static, T> {
    pass.map(move |()| items).flatten_stream().boxed()
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
        self.admit(&self.refused_puts).await?;
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
        self.admit(&self.refused_puts).await?;
        self.slowly().await;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.admit(&self.refused_reads).await?;
        self.slowly().await;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let pass = self.pass();
        match self.check(&self.refused_deletes) {
            Ok(()) => after(pass, self.inner.delete_stream(paths)),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let pass = self.pass();
        match self.check(&self.refused_reads) {
            Ok(()) => after(pass, self.inner.list(below)),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.admit(&self.refused_reads).await?;
        self.slowly().await;
        self.inner.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.admit(&self.refused_puts).await?;
        self.slowly().await;
        self.inner.copy_opts(from, to, options).await
    }
}
