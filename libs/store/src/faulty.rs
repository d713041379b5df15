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
    FutureExt as _, StreamExt as _,
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
    faults: Arc<Faults>,
}

/// What operations meet.
#[derive(Debug)]
struct Faults {
    now: watch::Sender<Now>,
    /// The fault that comes next, and after how many operations.
    coming: Mutex<Option<(usize, Fault)>>,
    refused_reads: Countdown,
    refused_puts: Countdown,
    refused_deletes: Countdown,
    lost_answers: Countdown,
}

/// One value, so that nobody is told to stand still once the fault is another.
#[derive(Debug, Clone, Copy)]
struct Now {
    fault: Fault,
    /// Whether an operation stands still.
    halted: bool,
}

#[derive(Debug, Default)]
struct Countdown(AtomicUsize);

const SLOW: Duration = Duration::from_secs(1);

impl FaultyStore {
    /// The store `inner`, without a fault yet.
    pub fn new(inner: Arc<dyn object_store::ObjectStore>) -> Self {
        let now = Now {
            fault: Fault::None,
            halted: false,
        };
        let faults = Faults {
            now: watch::Sender::new(now),
            coming: Mutex::default(),
            refused_reads: Countdown::default(),
            refused_puts: Countdown::default(),
            refused_deletes: Countdown::default(),
            lost_answers: Countdown::default(),
        };
        Self {
            inner,
            faults: Arc::new(faults),
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
        self.faults.come(None);
        self.faults.begin(fault);
    }

    /// So many more operations go as they do now, and from then on this happens to all.
    pub fn set_after(&self, operations: usize, fault: Fault) {
        self.faults.come(Some((operations, fault)));
    }

    /// Waits until an operation stands still.
    pub async fn stands_still(&self) {
        // The sender is here, so this does not end otherwise.
        let _ = self.faults.now.subscribe().wait_for(|now| now.halted).await;
    }

    /// So many of the next gets and listings fail.
    pub fn refuse_reads(&self, count: usize) {
        self.faults.refused_reads.set(count);
    }

    /// So many of the next puts fail, and nothing is stored.
    pub fn refuse_puts(&self, count: usize) {
        self.faults.refused_puts.set(count);
    }

    /// So many of the next deletes fail.
    pub fn refuse_deletes(&self, count: usize) {
        self.faults.refused_deletes.set(count);
    }

    /// The answers of so many of the next puts are lost after the object is stored.
    pub fn lose_answers(&self, count: usize) {
        self.faults.lost_answers.set(count);
    }
}

impl Faults {
    fn fault(&self) -> Fault {
        self.now.borrow().fault
    }

    fn begin(&self, fault: Fault) {
        self.now.send_modify(|now| {
            now.halted &= fault == Fault::Halt;
            now.fault = fault;
        });
    }

    fn come(&self, next: Option<(usize, Fault)>) {
        *self.coming.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// Counts an operation, which is told to stand still if that is the fault now.
    fn count(&self) {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        match coming.as_mut() {
            Some((0, fault)) => {
                self.begin(*fault);
                *coming = None;
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        self.now.send_if_modified(|now| {
            let stops = now.fault == Fault::Halt && !now.halted;
            now.halted |= stops;
            stops
        });
    }

    /// Whether an operation of this kind may begin, once it does not stand still.
    async fn admit(&self, refused: &Countdown) -> Result<()> {
        self.count();
        let goes_on = |now: &Now| now.fault != Fault::Halt;
        // The sender is here, so this does not end otherwise.
        let _ = self.now.subscribe().wait_for(goes_on).await;
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
        self.faults.admit(&self.faults.refused_puts).await?;
        self.faults.slowly().await;
        let stored = self.inner.put_opts(path, payload, options).await?;
        match self.faults.fault() == Fault::LoseAnswers || self.faults.lost_answers.take() {
            true => Err(failure("the answer did not come in time")),
            false => Ok(stored),
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.faults.admit(&self.faults.refused_puts).await?;
        self.faults.slowly().await;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.faults.admit(&self.faults.refused_reads).await?;
        self.faults.slowly().await;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (Arc::clone(&self.inner), Arc::clone(&self.faults));
        let deleted = async move {
            match faults.admit(&faults.refused_deletes).await {
                Ok(()) => inner.delete_stream(paths),
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        };
        deleted.flatten_stream().boxed()
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, faults) = (Arc::clone(&self.inner), Arc::clone(&self.faults));
        let below = below.cloned();
        let listed = async move {
            match faults.admit(&faults.refused_reads).await {
                Ok(()) => inner.list(below.as_ref()),
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        };
        listed.flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.faults.admit(&self.faults.refused_reads).await?;
        self.faults.slowly().await;
        self.inner.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.faults.admit(&self.faults.refused_puts).await?;
        self.faults.slowly().await;
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;
    use object_store::ObjectStore as _;

    use super::*;

    #[tokio::test]
    async fn who_has_stood_still_meets_the_fault_that_there_is_then() {
        let (faulty, _store) = FaultyStore::in_memory().await.unwrap();
        let list = || faulty.list(None).try_collect::<Vec<_>>();
        faulty.set(Fault::Halt);
        let listed = list();
        tokio::pin!(listed);
        tokio::select! {
            biased;
            outcome = &mut listed => panic!("it does not stand still: {outcome:?}"),
            () = faulty.stands_still() => {}
        }
        faulty.set(Fault::Refuse);
        assert!(listed.await.is_err());
        faulty.set(Fault::None);
        assert!(list().await.is_ok());
        assert!(!faulty.faults.now.borrow().halted, "nobody stands still");
    }
}
