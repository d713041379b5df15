use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use palimpsest_store::{ObjectStore, StoreError, StorePath};

use crate::{
    envelope::{open, seal},
    error::ManifestError,
    layer_list::{LayerList, ListRef},
};

/// The layer lists of one timeline: objects that never change, so what was read once is known.
#[derive(Debug, Clone)]
pub(crate) struct ListStore {
    store: ObjectStore,
    directory: StorePath,
    cache: Arc<Mutex<HashMap<String, Arc<LayerList>>>>,
}

const MAGIC: [u8; 4] = *b"PALL";
const VERSION: u32 = 1;
/// Lists read at the same time.
const IN_FLIGHT: usize = 8;
/// Edits that the cache holds at most, some 40 MiB of them; what does not fit is read each time.
const CACHED_EDITS: usize = 1 << 17;

impl ListStore {
    pub(crate) fn new(store: ObjectStore, directory: StorePath) -> Self {
        Self {
            store,
            directory,
            cache: Arc::default(),
        }
    }

    /// The lists that a manifest refers to, in its order.
    pub(crate) async fn load(
        &self,
        lists: &[ListRef],
    ) -> Result<Vec<Arc<LayerList>>, ManifestError> {
        // Owned, because a stream of borrowing futures can't be moved between threads.
        let lists = lists.to_vec();
        let reads = lists.into_iter().map(|list| {
            let from = self.clone();
            async move { from.load_one(&list.name).await }
        });
        stream::iter(reads).buffered(IN_FLIGHT).try_collect().await
    }

    async fn load_one(&self, name: &str) -> Result<Arc<LayerList>, ManifestError> {
        if let Some(list) = self.cached().get(name) {
            return Ok(Arc::clone(list));
        }
        let path = self.directory.child(name);
        let object = match self.store.get(&path).await {
            Ok(object) => object,
            Err(StoreError::NotFound { .. }) => {
                let list = path.to_string();
                return Err(ManifestError::MissingList { list });
            }
            Err(error) => return Err(error.into()),
        };
        let list = open::<LayerList>(MAGIC, VERSION, &object).map_err(|source| {
            let list = path.to_string();
            ManifestError::List { list, source }
        })?;
        let list = Arc::new(list);
        self.remember(name, &list);
        Ok(list)
    }

    /// Writes a list under a name of its own.
    pub(crate) async fn create(&self, list: LayerList) -> Result<ListRef, ManifestError> {
        let object = seal(MAGIC, VERSION, &list).map_err(ManifestError::Encode)?;
        let name = format!("{:032x}", rand::random::<u128>());
        self.store
            .put_once(&self.directory.child(&name), object)
            .await?;
        let edits = list.len();
        self.remember(&name, &Arc::new(list));
        Ok(ListRef { name, edits })
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.cached().remove(name);
        self.store.delete(&self.directory.child(name)).await
    }

    /// Forgets all lists but these.
    pub(crate) fn forget_but(&self, lists: &[ListRef]) {
        let wanted: HashSet<_> = lists.iter().map(|list| list.name.as_str()).collect();
        self.cached()
            .retain(|name, _| wanted.contains(name.as_str()));
    }

    fn remember(&self, name: &str, list: &Arc<LayerList>) {
        let mut cache = self.cached();
        let held: usize = cache.values().map(|list| list.len()).sum();
        if held + list.len() <= CACHED_EDITS {
            cache.insert(name.to_owned(), Arc::clone(list));
        }
    }

    /// A panic elsewhere leaves the map whole, so poison does not matter.
    fn cached(&self) -> MutexGuard<'_, HashMap<String, Arc<LayerList>>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
