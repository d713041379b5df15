use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use palimpsest_layer::{DeltaLayer as _, Visit};
use palimpsest_redo::{Chain, Engine, reconstruct};
use palimpsest_types::{BlockNumber, Fork, Key, KeyRange, Lsn, RelTag, TimelineId};
use palimpsest_wal::Value;

use crate::{
    base::BaseLayers,
    cache::{PageCache, Version},
    error::ReadError,
    tail::Tail,
};

/// Reads one timeline.
#[derive(Debug)]
pub struct TimelineReader<E> {
    timeline: TimelineId,
    oldest: Lsn,
    base: BaseLayers,
    tail: Arc<Tail>,
    cache: Arc<PageCache>,
    engine: E,
}

/// What the tail knows about a page.
struct Found {
    /// LSN of the newest change, or of the base.
    version: Lsn,
    /// A version before the changes that is cached.
    cached: Option<Bytes>,
    /// Oldest first.
    changes: Vec<Value>,
}

impl<E: Engine> TimelineReader<E> {
    /// A reader of what `base` and `tail` hold; LSNs below `oldest` are refused.
    pub fn new(
        timeline: TimelineId,
        oldest: Lsn,
        base: BaseLayers,
        tail: Arc<Tail>,
        shared: (Arc<PageCache>, E),
    ) -> Self {
        let (cache, engine) = shared;
        Self {
            timeline,
            oldest,
            base,
            tail,
            cache,
            engine,
        }
    }

    /// The oldest and the newest LSN that can be read now.
    pub fn readable(&self) -> (Lsn, Lsn) {
        (self.oldest, self.tail.newest())
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
        let needed = match (lsn, not_modified_since) {
            (Some(lsn), since) => since.map_or(lsn, |since| since.min(lsn)),
            (None, since) => since.unwrap_or(self.oldest).max(self.oldest),
        };
        if lsn.is_some_and(|lsn| lsn < self.oldest) {
            return Err(ReadError::BelowHorizon {
                lsn: needed,
                oldest: self.oldest,
            });
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
        let mut newest = None;
        self.tail.read().versions(key, lsn, &mut |_, value| {
            newest = Some(value.clone());
            Visit::Stop
        });
        let value = match newest {
            Some(value) => Some(value),
            None => self.base.get(key).await?,
        };
        match value {
            None | Some(Value::Dropped) => Ok(None),
            Some(Value::RelSize(blocks)) => Ok(Some(blocks)),
            Some(_) => Err(ReadError::WrongValue(key)),
        }
    }

    /// All forks that exist, with their sizes, in key order.
    ///
    /// # Errors
    /// If a layer can't be read.
    pub async fn relations(&self, lsn: Lsn) -> Result<Vec<(RelTag, BlockNumber)>, ReadError> {
        let base = self.base.range(all_sizes()).await?;
        let mut sizes: BTreeMap<Key, Value> = base.into_iter().collect();
        self.tail
            .read()
            .newest(all_sizes(), lsn, &mut |key, _, value| {
                sizes.insert(key, value.clone());
            });
        let existing = sizes.into_iter().filter_map(|entry| match entry {
            (Key::RelSize(rel), Value::RelSize(blocks)) => Some((rel, blocks)),
            _ => None,
        });
        Ok(existing.collect())
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
        let found = self.find(key, lsn);
        let version = Version {
            timeline: self.timeline,
            key,
            lsn: found.version,
        };
        self.cache
            .get_or_make(&version, self.make(rel, block, found))
            .await
    }

    /// What the tail has of a page at an LSN, back to a version that stands alone or is cached.
    fn find(&self, key: Key, lsn: Lsn) -> Found {
        let mut found = Found {
            version: self.base.lsn(),
            cached: None,
            changes: Vec::new(),
        };
        self.tail.read().versions(key, lsn, &mut |at, value| {
            if found.changes.is_empty() {
                found.version = at;
            } else {
                let version = Version {
                    timeline: self.timeline,
                    key,
                    lsn: at,
                };
                found.cached = self.cache.get(&version);
            }
            if found.cached.is_some() {
                return Visit::Stop;
            }
            found.changes.push(value.clone());
            if value.stands_alone() {
                Visit::Stop
            } else {
                Visit::Continue
            }
        });
        found.changes.reverse();
        found
    }

    async fn make(
        &self,
        rel: RelTag,
        block: BlockNumber,
        found: Found,
    ) -> Result<Bytes, ReadError> {
        let begins_alone = found.changes.first().is_some_and(Value::stands_alone);
        let base = match found.cached {
            Some(page) => Some(page),
            None if begins_alone => None,
            None => self.base_page(rel, block).await?,
        };
        let chain = Chain {
            rel,
            block,
            base,
            changes: found.changes,
        };
        Ok(reconstruct(&self.engine, chain).await?)
    }

    async fn base_page(&self, rel: RelTag, block: BlockNumber) -> Result<Option<Bytes>, ReadError> {
        let key = Key::RelBlock(rel, block);
        match self.base.get(key).await? {
            None => Ok(None),
            Some(Value::Image(page)) => Ok(Some(page)),
            Some(_) => Err(ReadError::WrongValue(key)),
        }
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
