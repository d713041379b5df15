use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use bytes::Bytes;
use palimpsest_layer::{DeltaLayer as _, Visit};
use palimpsest_redo::{Chain, Engine, reconstruct};
use palimpsest_types::{
    BlockNumber, Fork, Key, KeyRange, Lsn, Oid, RelTag, TimelineId, WriterEpoch,
};
use palimpsest_wal::Value;

use crate::{
    cache::{PageCache, Version},
    error::ReadError,
    layers::Layers,
    tail::{Pieces, Tail},
};

mod slru;
mod two_phase;

/// Reads one timeline.
#[derive(Debug)]
pub struct TimelineReader<E> {
    timeline: TimelineId,
    layers: RwLock<Arc<Layers>>,
    tail: Arc<Tail>,
    cache: Arc<PageCache>,
    engine: E,
}

/// What is known about a page at an LSN.
struct Found {
    /// The change that made it; `None` if none since the base did.
    version: Option<(WriterEpoch, Lsn)>,
    /// A version before the changes that is cached.
    cached: Option<Bytes>,
    /// Oldest first.
    changes: Vec<Value>,
    /// Where the base is.
    layers: Arc<Layers>,
}

/// Looks for the changes of a key, newest first.
struct Search<'a> {
    timeline: TimelineId,
    key: Key,
    cache: &'a PageCache,
    version: Option<(WriterEpoch, Lsn)>,
    cached: Option<Bytes>,
    /// Newest first.
    changes: Vec<Value>,
    finished: bool,
}

impl<E: Engine> TimelineReader<E> {
    /// A reader of what `layers` and `tail` hold.
    pub fn new(
        timeline: TimelineId,
        layers: Layers,
        tail: Arc<Tail>,
        shared: (Arc<PageCache>, E),
    ) -> Self {
        let (cache, engine) = shared;
        Self {
            timeline,
            layers: RwLock::new(Arc::new(layers)),
            tail,
            cache,
            engine,
        }
    }

    /// The layers that are read now.
    pub fn layers(&self) -> Arc<Layers> {
        Arc::clone(&self.layers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads these layers from now on. Only after that may the tail let go of what they have.
    pub fn advance(&self, layers: Layers) {
        *self.layers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(layers);
    }

    /// The oldest and the newest LSN that can be read now.
    pub fn readable(&self) -> (Lsn, Lsn) {
        (self.layers().oldest(), self.tail.newest())
    }

    /// The LSN to read at: `lsn` when everything that the caller needs of it has arrived, for which
    /// this waits up to `patience`; the newest if it is `None`.
    ///
    /// # Errors
    /// If it is out of the readable window.
    pub async fn settle(
        &self,
        lsn: Option<Lsn>,
        not_modified_since: Option<Lsn>,
        patience: Duration,
    ) -> Result<Lsn, ReadError> {
        let oldest = self.layers().oldest();
        let needed = match (lsn, not_modified_since) {
            (Some(lsn), since) => since.map_or(lsn, |since| since.min(lsn)),
            (None, since) => since.unwrap_or(oldest).max(oldest),
        };
        if let Some(lsn) = lsn.filter(|lsn| *lsn < oldest) {
            return Err(ReadError::BelowHorizon { lsn, oldest });
        }
        let mut newest = self.tail.watch();
        let arrived = newest.wait_for(|newest| *newest >= needed);
        // Cancel-safe: waiting changes nothing.
        match tokio::time::timeout(patience, arrived).await {
            Ok(Ok(newest)) => Ok(lsn.map_or(*newest, |lsn| lsn.min((*newest).max(needed)))),
            Ok(Err(_)) | Err(_) => Err(ReadError::NotYet {
                lsn: needed,
                newest: self.tail.newest(),
            }),
        }
    }

    /// The size of a fork; `None` if it does not exist.
    ///
    /// # Errors
    /// If a layer can't be read.
    pub async fn relation_size(
        &self,
        rel: RelTag,
        lsn: Lsn,
    ) -> Result<Option<BlockNumber>, ReadError> {
        let key = Key::RelSize(rel);
        match self.newest(key, lsn).await? {
            None | Some(Value::Dropped) => Ok(None),
            Some(Value::RelSize(blocks)) => Ok(Some(blocks)),
            Some(_) => Err(ReadError::WrongValue(key)),
        }
    }

    /// The relation map file of a database.
    ///
    /// # Errors
    /// If it does not exist at that LSN or a layer can't be read.
    pub async fn relation_map(&self, spc: Oid, db: Oid, lsn: Lsn) -> Result<Bytes, ReadError> {
        let key = Key::RelMap { spc, db };
        match self.newest(key, lsn).await? {
            None | Some(Value::Dropped) => Err(ReadError::NoRelationMap { spc, db, lsn }),
            Some(Value::File(content)) => Ok(content),
            Some(_) => Err(ReadError::WrongValue(key)),
        }
    }

    /// The newest version of a key whose versions all stand alone.
    async fn newest(&self, key: Key, lsn: Lsn) -> Result<Option<Value>, ReadError> {
        let mut newest = None;
        let layers = {
            let (layers, tail) = self.snapshot(lsn)?;
            tail.versions(key, lsn, &mut |_, value| {
                newest = Some(value.clone());
                Visit::Stop
            });
            layers
        };
        match newest {
            Some(value) => Ok(Some(value)),
            None => layers.newest_of(key, lsn).await,
        }
    }

    /// Layers and tail that together have everything up to `lsn`, without a gap between them.
    fn snapshot(&self, lsn: Lsn) -> Result<(Arc<Layers>, RwLockReadGuard<'_, Pieces>), ReadError> {
        // The tail first: what it has let go of by now, the layers that are taken next have.
        let tail = self.tail.read();
        let layers = self.layers();
        if tail.last() < lsn {
            let newest = tail.last();
            return Err(ReadError::NotYet { lsn, newest });
        }
        if layers.lsn() < tail.start() {
            return Err(ReadError::Behind {
                layers: layers.lsn(),
                tail: tail.start(),
            });
        }
        Ok((layers, tail))
    }

    /// All forks that exist, with their sizes, in key order.
    ///
    /// # Errors
    /// If a layer can't be read.
    pub async fn relations(&self, lsn: Lsn) -> Result<Vec<(RelTag, BlockNumber)>, ReadError> {
        let sizes = self.newest_in(all_sizes(), lsn).await?;
        let existing = sizes.into_iter().filter_map(|entry| match entry {
            (Key::RelSize(rel), Value::RelSize(blocks)) => Some((rel, blocks)),
            _ => None,
        });
        Ok(existing.collect())
    }

    /// The newest versions of the keys of a range, all of which stand alone.
    async fn newest_in(&self, keys: KeyRange, lsn: Lsn) -> Result<BTreeMap<Key, Value>, ReadError> {
        let mut newer = Vec::new();
        let layers = {
            let (layers, tail) = self.snapshot(lsn)?;
            tail.newest(keys.clone(), lsn, &mut |key, _, value| {
                newer.push((key, value.clone()));
            });
            layers
        };
        let mut newest = BTreeMap::new();
        let mut insert = |key, value: &Value| drop(newest.insert(key, value.clone()));
        layers.newest(keys, lsn, &mut insert).await?;
        newest.extend(newer);
        Ok(newest)
    }

    /// A page.
    ///
    /// # Errors
    /// If it does not exist at that LSN or can't be built.
    pub async fn page(
        &self,
        rel: RelTag,
        block: BlockNumber,
        lsn: Lsn,
    ) -> Result<Bytes, ReadError> {
        let Some(blocks) = self.relation_size(rel, lsn).await? else {
            return Err(ReadError::NoRelation { rel, lsn });
        };
        if block >= blocks {
            return Err(ReadError::BeyondEnd {
                rel,
                lsn,
                block,
                blocks,
            });
        }
        let key = Key::RelBlock(rel, block);
        let found = self.find(key, lsn).await?;
        let version = self.version(key, &found);
        self.cache
            .get_or_make(&version, self.make(rel, block, found))
            .await
    }

    fn version(&self, key: Key, found: &Found) -> Version {
        let base = (WriterEpoch::FIRST, found.layers.base().lsn());
        let (epoch, lsn) = found.version.unwrap_or(base);
        Version {
            timeline: self.timeline,
            epoch,
            key,
            lsn,
        }
    }

    /// The changes of a page at an LSN, back to a version that stands alone or is cached.
    async fn find(&self, key: Key, lsn: Lsn) -> Result<Found, ReadError> {
        let mut search = Search {
            timeline: self.timeline,
            key,
            cache: &self.cache,
            version: None,
            cached: None,
            changes: Vec::new(),
            finished: false,
        };
        let (layers, up_to) = {
            let (layers, tail) = self.snapshot(lsn)?;
            let epoch = tail.epoch();
            tail.versions(key, lsn, &mut |at, value| search.take(epoch, at, value));
            // What the layers have beyond is in the tail, too.
            let up_to = lsn.min(tail.start());
            (layers, up_to)
        };
        if !search.finished {
            let mut visit = |epoch, at, value: &Value| search.take(epoch, at, value);
            layers.versions(key, up_to, &mut visit).await?;
        }
        Ok(search.end(layers))
    }

    async fn make(
        &self,
        rel: RelTag,
        block: BlockNumber,
        found: Found,
    ) -> Result<Bytes, ReadError> {
        let base = base_for(Key::RelBlock(rel, block), &found).await?;
        let chain = Chain {
            rel,
            block,
            base,
            changes: found.changes,
        };
        Ok(reconstruct(&self.engine, chain).await?)
    }
}

impl Search<'_> {
    /// The next older version.
    fn take(&mut self, epoch: WriterEpoch, at: Lsn, value: &Value) -> Visit {
        if self.changes.is_empty() {
            self.version = Some((epoch, at));
        } else {
            self.cached = self.cache.get(&Version {
                timeline: self.timeline,
                epoch,
                key: self.key,
                lsn: at,
            });
        }
        if self.cached.is_none() {
            self.changes.push(value.clone());
        }
        self.finished = self.cached.is_some() || value.stands_alone();
        if self.finished {
            Visit::Stop
        } else {
            Visit::Continue
        }
    }

    fn end(mut self, layers: Arc<Layers>) -> Found {
        self.changes.reverse();
        Found {
            version: self.version,
            cached: self.cached,
            changes: self.changes,
            layers,
        }
    }
}

/// The page that the changes found are to be applied to, if there is one and it matters.
async fn base_for(key: Key, found: &Found) -> Result<Option<Bytes>, ReadError> {
    let begins_alone = found.changes.first().is_some_and(Value::stands_alone);
    match &found.cached {
        Some(page) => Ok(Some(page.clone())),
        None if begins_alone => Ok(None),
        None => base_page(&found.layers, key).await,
    }
}

async fn base_page(layers: &Layers, key: Key) -> Result<Option<Bytes>, ReadError> {
    match layers.base_version(key).await? {
        None => Ok(None),
        Some(Value::Image(page)) => Ok(Some(page)),
        Some(_) => Err(ReadError::WrongValue(key)),
    }
}

/// Sizes of all relation forks there can be.
fn all_sizes() -> KeyRange {
    let first = RelTag {
        spc: 0,
        db: 0,
        rel: 0,
        fork: Fork::Main,
    };
    Key::RelSize(first)..Key::RelBlock(first, BlockNumber::ZERO)
}

#[cfg(test)]
mod tests;
