use std::{
    fs::{self, DirBuilder},
    io,
    ops::Range,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use futures::{TryStreamExt as _, future::join_all};
use object_store::{
    ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, local::LocalFileSystem,
    path::Path as RawPath,
};
use palimpsest_types::{TenantId, TimelineId};

use crate::{
    error::StoreError,
    metrics::{Operation, StoreMetrics},
};

/// A name in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(RawPath);

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct ObjectStore {
    inner: Arc<dyn object_store::ObjectStore>,
    metrics: StoreMetrics,
}

/// Writers that race in the start-up probe.
const PROBE_WRITERS: usize = 8;
/// Only the owner may look in: the catalog holds passwords, and pages hold everything else.
const STORE_MODE: u32 = 0o700;

impl StorePath {
    /// What the storage-broker keeps.
    pub fn catalog() -> Self {
        Self(RawPath::from_iter(["catalog"]))
    }

    /// Everything of a tenant.
    pub fn tenant(tenant: TenantId) -> Self {
        Self(RawPath::from_iter(["tenants", &tenant.to_string()]))
    }

    /// Everything of a timeline.
    pub fn timeline(tenant: TenantId, timeline: TimelineId) -> Self {
        Self::tenant(tenant)
            .child("timelines")
            .child(&timeline.to_string())
    }

    /// A name below this one; separators in `name` are escaped.
    pub fn child(&self, name: &str) -> Self {
        Self(self.0.clone().join(name))
    }

    /// The part after the last separator.
    pub fn file_name(&self) -> Option<&str> {
        self.0.filename()
    }
}

impl std::fmt::Display for StorePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl ObjectStore {
    /// A store in a local directory that fsyncs files and directories; probed for an atomic create.
    /// A missing directory is made, for its owner only; one that exists keeps its permissions.
    ///
    /// # Errors
    /// If the directory can't be used or create is not atomic there.
    pub async fn open(directory: &Path) -> Result<Self, StoreError> {
        Self::with(Arc::new(local_files(directory)?)).await
    }

    /// Any store, probed for an atomic create.
    ///
    /// # Errors
    /// If it can't be reached or create is not atomic there.
    pub async fn with(inner: Arc<dyn object_store::ObjectStore>) -> Result<Self, StoreError> {
        let metrics = StoreMetrics::default();
        let store = Self { inner, metrics };
        store.probe().await?;
        Ok(store)
    }

    /// What is asked of it.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.metrics
    }

    /// Lets several writers race for one object: exactly one may win.
    async fn probe(&self) -> Result<(), StoreError> {
        let name = format!("{:032x}", rand::random::<u128>());
        let path = StorePath(RawPath::from_iter(["probe", &name]));
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
        self.delete(&path).await?;
        if winners == 1 {
            Ok(())
        } else {
            Err(StoreError::NotAtomic)
        }
    }

    /// Creates an object that must not exist yet. For one writer only this succeeds.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] if another was first, or if an earlier try of ours that seemed
    /// to fail had in fact succeeded: read it to know.
    pub async fn create(&self, path: &StorePath, body: Bytes) -> Result<(), StoreError> {
        let options = PutOptions::from(PutMode::Create);
        let size = body.len();
        let put = self
            .inner
            .put_opts(&path.0, PutPayload::from_bytes(body), options);
        let put = put.await.map(drop);
        let put = put.map_err(|source| StoreError::from_store(&path.0, source));
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
    pub async fn put_once(&self, path: &StorePath, body: Bytes) -> Result<(), StoreError> {
        match self.create(path, body).await {
            Err(StoreError::AlreadyExists { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// The whole object.
    ///
    /// # Errors
    /// If it does not exist or the store fails.
    pub async fn get(&self, path: &StorePath) -> Result<Bytes, StoreError> {
        let read = async { self.inner.get(&path.0).await?.bytes().await };
        self.note_read(Operation::Get, path, read.await)
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
        let read = self.inner.get_range(&path.0, range).await;
        self.note_read(Operation::GetRange, path, read)
    }

    fn note_read(
        &self,
        operation: Operation,
        path: &StorePath,
        read: object_store::Result<Bytes>,
    ) -> Result<Bytes, StoreError> {
        let read = read.map_err(|source| StoreError::from_store(&path.0, source));
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
        let objects: Result<Vec<_>, _> = self
            .inner
            .list(Some(&below.0))
            .try_collect()
            .await
            .map_err(|source| StoreError::from_store(&below.0, source));
        self.metrics.ended(Operation::List, &objects);
        Ok(objects?
            .into_iter()
            .map(|object| StorePath(object.location))
            .collect())
    }

    /// Removes an object; one that does not exist is removed already.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn delete(&self, path: &StorePath) -> Result<(), StoreError> {
        let deleted = match self.inner.delete(&path.0).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::from_store(&path.0, source)),
        };
        self.metrics.ended(Operation::Delete, &deleted);
        deleted
    }

    /// Removes everything below a path.
    ///
    /// # Errors
    /// If the store fails; some objects may be gone then, and a repeat removes the rest.
    pub async fn delete_below(&self, path: &StorePath) -> Result<(), StoreError> {
        for object in self.list(path).await? {
            self.delete(&object).await?;
        }
        Ok(())
    }
}

/// Objects as files below a directory, each fsynced before it has its name.
pub(crate) fn local_files(directory: &Path) -> Result<LocalFileSystem, StoreError> {
    let path = directory.display().to_string();
    make_private(directory).map_err(|source| StoreError::Directory {
        path: path.clone(),
        source,
    })?;
    let local = LocalFileSystem::new_with_prefix(directory)
        .map_err(|source| StoreError::Store { path, source })?;
    Ok(local.with_fsync(true))
}

/// Makes the directory if it does not exist. Its parents are nothing special.
fn make_private(directory: &Path) -> io::Result<()> {
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(STORE_MODE).create(directory) {
        Err(_) if directory.is_dir() => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    async fn store() -> (tempfile::TempDir, ObjectStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(directory.path()).await.unwrap();
        (directory, store)
    }

    #[tokio::test]
    async fn a_new_directory_is_private_and_an_old_one_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let new = directory.path().join("parent/store");
        ObjectStore::open(&new).await.unwrap();
        assert_eq!(mode(&new), 0o700);

        fs::set_permissions(&new, fs::Permissions::from_mode(0o750)).unwrap();
        ObjectStore::open(&new).await.unwrap();
        assert_eq!(mode(&new), 0o750);

        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let refused = ObjectStore::open(&file).await;
        assert!(matches!(refused, Err(StoreError::Directory { .. })));
    }

    #[tokio::test]
    async fn an_object_is_created_once() {
        let (_directory, store) = store().await;
        let path = StorePath::catalog().child("1");
        store
            .create(&path, Bytes::from_static(b"first"))
            .await
            .unwrap();
        let second = store.create(&path, Bytes::from_static(b"second")).await;
        assert!(matches!(second, Err(StoreError::AlreadyExists { .. })));
        assert_eq!(store.get(&path).await.unwrap(), "first");
        assert_eq!(store.get_range(&path, 1..3).await.unwrap(), "ir");
    }

    #[tokio::test]
    async fn what_is_deleted_is_gone_and_stays_gone() {
        let (_directory, store) = store().await;
        let path = StorePath::catalog();
        for name in ["1", "2"] {
            store.create(&path.child(name), Bytes::new()).await.unwrap();
        }
        assert_eq!(store.list(&path).await.unwrap().len(), 2);
        store.delete_below(&path).await.unwrap();
        store.delete(&path.child("1")).await.unwrap();
        assert!(store.list(&path).await.unwrap().is_empty());
        assert!(matches!(
            store.get(&path.child("1")).await,
            Err(StoreError::NotFound { .. })
        ));
    }
}
