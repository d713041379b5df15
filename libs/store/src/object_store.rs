use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use object_store::{
    ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, local::LocalFileSystem,
    path::Path as RawPath,
};
use tokio::{task::coop::consume_budget, time::timeout};

use crate::{
    body::Body,
    bucket::{self, Variables, patience},
    directory,
    error::StoreError,
    location::{Bucket, StoreLocation},
    metrics::{Operation, StoreMetrics},
    path::StorePath,
};

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct ObjectStore {
    inner: Arc<dyn object_store::ObjectStore>,
    /// Where it is, if it has to be waited for and may keep silent.
    bucket: Option<Arc<Bucket>>,
    /// The same, if it is files.
    files: Option<Arc<LocalFileSystem>>,
    /// What the thread that asks for a range of a file does after it has read that itself, if it does.
    after_reading: Option<fn()>,
    metrics: StoreMetrics,
}

/// Writers that race in the start-up probe.
const PROBE_WRITERS: usize = 8;
/// Deletes under way when much goes.
const DELETES: usize = 16;

impl ObjectStore {
    /// The store at a place, probed for an atomic create. How a bucket is reached, and who asks, is
    /// said by the variables of this process.
    ///
    /// # Errors
    /// If it can't be reached or used, or create is not atomic there.
    pub async fn open(location: impl Into<StoreLocation>) -> Result<Self, StoreError> {
        Self::open_with(location, &Variables::of_process()).await
    }

    /// As [`ObjectStore::open`], with the variables of another environment.
    ///
    /// In a local directory files and directories are fsynced. A missing directory is made, for its
    /// owner only; one that exists keeps its permissions.
    ///
    /// # Errors
    /// If it can't be reached or used, or create is not atomic there.
    pub async fn open_with(
        location: impl Into<StoreLocation>,
        variables: &Variables,
    ) -> Result<Self, StoreError> {
        match location.into() {
            StoreLocation::Directory(directory) => {
                let files = Arc::new(directory::open(&directory)?);
                let store = Self::with(Arc::clone(&files) as Arc<_>).await?;
                Ok(Self {
                    files: Some(files),
                    ..store
                })
            }
            StoreLocation::Bucket(bucket) => {
                let inner = bucket::open(&bucket, variables);
                let inner = inner.map_err(|error| StoreError::environment(&bucket, &error))?;
                Self::probed(inner, Some(Arc::new(bucket))).await
            }
        }
    }

    /// Any store, probed for an atomic create.
    ///
    /// # Errors
    /// If it can't be reached or create is not atomic there.
    pub async fn with(inner: Arc<dyn object_store::ObjectStore>) -> Result<Self, StoreError> {
        Self::probed(inner, None).await
    }

    async fn probed(
        inner: Arc<dyn object_store::ObjectStore>,
        bucket: Option<Arc<Bucket>>,
    ) -> Result<Self, StoreError> {
        let metrics = StoreMetrics::default();
        let store = Self {
            inner,
            bucket,
            files: None,
            after_reading: None,
            metrics,
        };
        store.probe().await?;
        Ok(store)
    }

    /// The same store for threads that may block: of files, ranges are read by the thread that asks, not by one of those
    /// that tokio has for it. Many small reads take less so, and wake nobody up; but reads that one task asks for at once
    /// come one after the other. After each it does `then`.
    #[must_use]
    pub fn reading_here(&self, then: fn()) -> Self {
        Self {
            after_reading: Some(then),
            ..self.clone()
        }
    }

    /// What is asked of it.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.metrics
    }

    /// Lets several writers race for one object: exactly one may win.
    async fn probe(&self) -> Result<(), StoreError> {
        let name = format!("{:032x}", rand::random::<u128>());
        let path = StorePath(RawPath::from_iter(["probe", &name]));
        // Alone, so that a store that can't be reached is not told by all of them.
        self.list(&path).await?;
        let writers = (0..PROBE_WRITERS).map(|writer| {
            let body = Bytes::from(writer.to_string());
            self.create(&path, body)
        });
        let mut winners = 0;
        for outcome in join_all(writers).await {
            match outcome {
                Ok(()) => winners += 1,
                Err(StoreError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if winners == 0 {
            // The winner's answer was lost, and its repeat lost against itself.
            self.get(&path).await?;
        }
        self.delete(&path).await?;
        match winners {
            0 | 1 => Ok(()),
            _ => Err(StoreError::NotAtomic { store: self.name() }),
        }
    }

    fn name(&self) -> String {
        match &self.bucket {
            Some(bucket) => bucket.to_string(),
            None => self.inner.to_string(),
        }
    }

    /// The answer to what is asked about `path`, if it comes in the time that a bucket has for so
    /// many bytes. A system that does not answer for its files stands still itself.
    async fn answer<T>(
        &self,
        path: &RawPath,
        bytes: u64,
        asked: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        let Some(bucket) = &self.bucket else {
            return asked
                .await
                .map_err(|source| StoreError::of_files(path, source));
        };
        let limit = patience(bytes);
        match timeout(limit, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(StoreError::of_bucket(bucket, path, &error)),
            Err(_) => Err(StoreError::silence(bucket, path, limit)),
        }
    }

    /// Creates an object that must not exist yet. For one writer only this succeeds.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] if another was first, or if an earlier try of ours that seemed
    /// to fail had in fact succeeded: read it to know. Tries are also made out of sight, by the
    /// client of a bucket. S3 rarely says it, too, of an object that is not there: if it was deleted
    /// at the same time.
    pub async fn create(&self, path: &StorePath, body: impl Into<Body>) -> Result<(), StoreError> {
        let body = body.into();
        let options = PutOptions::from(PutMode::Create);
        let size = body.len();
        let put = self.inner.put_opts(&path.0, body.0, options);
        let put = self.answer(&path.0, size as u64, put).await.map(drop);
        self.metrics.ended(Operation::Create, &put);
        if put.is_ok() {
            self.metrics.written(size);
        }
        put
    }

    /// Stores an object whose name nobody else makes. Trying again after a failure is safe: an
    /// object that is there already is the one that an earlier try has stored after all.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn put_once(
        &self,
        path: &StorePath,
        body: impl Into<Body>,
    ) -> Result<(), StoreError> {
        match self.create(path, body).await {
            // Seen, before anybody relies on it.
            Err(StoreError::AlreadyExists { .. }) => self.look(path).await,
            outcome => outcome,
        }
    }

    /// Fails unless the object exists.
    async fn look(&self, path: &StorePath) -> Result<(), StoreError> {
        let found = self.answer(&path.0, 0, self.inner.head(&path.0)).await;
        self.metrics.ended(Operation::Look, &found);
        found.map(drop)
    }

    /// The whole object.
    ///
    /// # Errors
    /// If it does not exist or the store fails.
    pub async fn get(&self, path: &StorePath) -> Result<Bytes, StoreError> {
        let read = async {
            let found = self.answer(&path.0, 0, self.inner.get(&path.0)).await?;
            let size = found.meta.size;
            self.answer(&path.0, size, found.bytes()).await
        };
        self.note_read(Operation::Get, read.await)
    }

    /// Some bytes of an object.
    ///
    /// # Errors
    /// If it does not exist, is shorter, or the store fails.
    pub async fn get_range(
        &self,
        path: &StorePath,
        range: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        if let Some((files, then)) = self.files.as_deref().zip(self.after_reading) {
            // Many in a row would never wait, so nobody could stop them.
            consume_budget().await;
            let read = directory::read(files, &path.0, range);
            let read = read.map_err(|source| StoreError::of_files(&path.0, source));
            then();
            return self.note_read(Operation::GetRange, read);
        }
        let size = range.end.saturating_sub(range.start);
        let read = self.inner.get_range(&path.0, range);
        let read = self.answer(&path.0, size, read).await;
        self.note_read(Operation::GetRange, read)
    }

    fn note_read(
        &self,
        operation: Operation,
        read: Result<Bytes, StoreError>,
    ) -> Result<Bytes, StoreError> {
        self.metrics.ended(operation, &read);
        if let Ok(bytes) = &read {
            self.metrics.read(bytes.len());
        }
        read
    }

    /// Objects directly or indirectly below a path, in no order.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn list(&self, below: &StorePath) -> Result<Vec<StorePath>, StoreError> {
        let listed = self.list_all(below).await;
        self.metrics.ended(Operation::List, &listed);
        listed
    }

    async fn list_all(&self, below: &StorePath) -> Result<Vec<StorePath>, StoreError> {
        let mut listing = self.inner.list(Some(&below.0));
        let mut objects = Vec::new();
        // Each portion has its time: a listing may be long.
        while let Some(object) = self.answer(&below.0, 0, listing.try_next()).await? {
            objects.push(StorePath(object.location));
        }
        Ok(objects)
    }

    /// Removes an object; one that does not exist is removed already.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn delete(&self, path: &StorePath) -> Result<(), StoreError> {
        let deleted = self.inner.delete(&path.0);
        let deleted = match self.answer(&path.0, 0, deleted).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            outcome => outcome,
        };
        self.metrics.ended(Operation::Delete, &deleted);
        deleted
    }

    /// Removes everything below a path.
    ///
    /// # Errors
    /// If the store fails; some objects may be gone then, and a repeat removes the rest.
    pub async fn delete_below(&self, path: &StorePath) -> Result<(), StoreError> {
        let objects = stream::iter(self.list(path).await?);
        objects
            .map(|object| async move { self.delete(&object).await })
            .buffer_unordered(DELETES)
            .try_collect()
            .await
    }
}

#[cfg(test)]
mod tests;
