use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use palimpsest_layer::{DeltaLayer as _, Visit};
use palimpsest_redo::{Chain, Engine, clog_page, reconstruct};
use palimpsest_types::{BlockNumber, Fork, Key, KeyRange, Lsn, Oid, RelTag, SlruKind, TimelineId};
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
        self.tail.read().versions(key, lsn, &mut |_, value| {
            newest = Some(value.clone());
            Visit::Stop
        });
        match newest {
            Some(value) => Ok(Some(value)),
            None => self.base.get(key).await,
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

    /// A page of an SLRU area; `None` if it does not exist. Of the areas, `pg_xact` is kept.
    ///
    /// # Errors
    /// If it can't be built.
    pub async fn slru_page(
        &self,
        kind: SlruKind,
        page: u32,
        lsn: Lsn,
    ) -> Result<Option<Bytes>, ReadError> {
        let key = Key::SlruBlock(kind, page);
        let found = self.find(key, lsn);
        if found.changes.is_empty() {
            return self.base_page(key).await;
        }
        let version = Version {
            timeline: self.timeline,
            key,
            lsn: found.version,
        };
        let make = self.make_slru(key, found);
        self.cache.get_or_make(&version, make).await.map(Some)
    }

    /// The pages of a segment of an SLRU area that exist, by their number in the area.
    ///
    /// # Errors
    /// If there are none at that LSN or one can't be built.
    pub async fn slru_segment(
        &self,
        kind: SlruKind,
        segment: u32,
        lsn: Lsn,
    ) -> Result<Vec<(u32, Bytes)>, ReadError> {
        let first = segment.checked_mul(SlruKind::PAGES_PER_SEGMENT);
        let numbers = first.map_or(0..0, |first| {
            first..first.saturating_add(SlruKind::PAGES_PER_SEGMENT)
        });
        let mut pages = Vec::new();
        for number in numbers {
            let page = self.slru_page(kind, number, lsn).await?;
            pages.extend(page.map(|page| (number, page)));
        }
        if pages.is_empty() {
            return Err(ReadError::NoSlruSegment { kind, segment, lsn });
        }
        Ok(pages)
    }

    async fn make_slru(&self, key: Key, found: Found) -> Result<Bytes, ReadError> {
        let base = self.base_for(key, &found).await?;
        clog_page(base, &found.changes).map_err(|_| ReadError::WrongValue(key))
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
        let base = self.base_for(Key::RelBlock(rel, block), &found).await?;
        let chain = Chain {
            rel,
            block,
            base,
            changes: found.changes,
        };
        Ok(reconstruct(&self.engine, chain).await?)
    }

    /// The page that the changes found are to be applied to, if there is one and it matters.
    async fn base_for(&self, key: Key, found: &Found) -> Result<Option<Bytes>, ReadError> {
        let begins_alone = found.changes.first().is_some_and(Value::stands_alone);
        match &found.cached {
            Some(page) => Ok(Some(page.clone())),
            None if begins_alone => Ok(None),
            None => self.base_page(key).await,
        }
    }

    async fn base_page(&self, key: Key) -> Result<Option<Bytes>, ReadError> {
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
