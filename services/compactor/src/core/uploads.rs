//! Files that were put into the object store and that no manifest names yet.

use std::sync::Mutex;

use palimpsest_store::{ObjectStore, StorePath};

use super::lock::lock;

/// What a compaction has put there, or may have.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<Vec<StorePath>>);

impl Uploads {
    /// This one will be there, or may be.
    pub(super) fn add(&self, path: &StorePath) {
        let mut paths = lock(&self.0);
        paths.push(path.clone());
    }

    /// All of them, which are somebody else's now.
    pub(super) fn take(&self) -> Self {
        let mut paths = lock(&self.0);
        Self(Mutex::new(std::mem::take(&mut paths)))
    }

    /// Removes them: nothing came of the compaction. What can't be removed nobody refers to.
    pub(super) async fn remove(&self, store: &ObjectStore) {
        let paths = std::mem::take(&mut *lock(&self.0));
        for path in paths {
            if let Err(error) = store.delete(&path).await {
                tracing::debug!(%path, error = &error as &dyn std::error::Error, "a file that nobody refers to is left");
            }
        }
    }
}
