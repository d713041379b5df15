//! Pages of relations, and how the chain of a page is found.

use std::{ops::RangeInclusive, sync::Arc};

use bytes::Bytes;
use futures::future::try_join_all;
use palimpsest_layer::{DeltaLayer as _, Visit};
use palimpsest_redo::{Chain, Engine, reconstruct};
use palimpsest_types::{BlockNumber, Key, Lsn, RelTag, TimelineId, WriterEpoch};
use palimpsest_wal::Value;

use super::TimelineReader;
use crate::{
    cache::{PageCache, Version},
    error::ReadError,
    layers::Layers,
    lineage::{Database, Lineage, Stretch},
    times::timed,
};

/// What is known about a page in a stretch of history.
pub(super) struct Found {
    /// The version asked for. If nothing changed the page in the stretch, the base's, if that is in it.
    pub(super) version: Version,
    /// That or an older version, which is cached.
    cached: Option<Bytes>,
    /// What came after the cached one, oldest first.
    pub(super) changes: Vec<Value>,
    /// Whether the base is in the stretch.
    has_base: bool,
    /// Where the base is.
    layers: Arc<Layers>,
}

/// What is known about a page in a stretch in which it belongs to this relation.
struct Part {
    rel: RelTag,
    found: Found,
}

/// Looks for the changes of a key, newest first.
struct Search<'a> {
    timeline: TimelineId,
    key: Key,
    /// Older versions do not count.
    from: Lsn,
    cache: &'a PageCache,
    version: Option<Version>,
    cached: Option<Bytes>,
    /// Newest first.
    changes: Vec<Value>,
    finished: bool,
}

impl<E: Engine> TimelineReader<E> {
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
        let lineage = self.lineage_with(rel, &[block], lsn).await?;
        self.page_of(&lineage, rel, block).await
    }

    /// Pages of a fork, in this order. What they have in common is looked up once, and they are made
    /// together.
    ///
    /// # Errors
    /// If one does not exist at that LSN or can't be built.
    pub async fn pages(
        &self,
        rel: RelTag,
        blocks: &[BlockNumber],
        lsn: Lsn,
    ) -> Result<Vec<Bytes>, ReadError> {
        let lineage = self.lineage_with(rel, blocks, lsn).await?;
        let page = |block: &BlockNumber| self.page_of(&lineage, rel, *block);
        try_join_all(blocks.iter().map(page)).await
    }

    /// The lineage of a fork's database, if the fork has these blocks.
    async fn lineage_with(
        &self,
        rel: RelTag,
        blocks: &[BlockNumber],
        lsn: Lsn,
    ) -> Result<Lineage, ReadError> {
        let lineage = Lineage::of(self, Database::of(rel), lsn).await?;
        let Some(size) = self.size_in(&lineage, rel).await? else {
            return Err(ReadError::NoRelation { rel, lsn });
        };
        match blocks.iter().find(|block| **block >= size) {
            Some(&block) => Err(ReadError::BeyondEnd {
                rel,
                lsn,
                block,
                blocks: size,
            }),
            None => Ok(lineage),
        }
    }

    /// A page that exists. If its database was copied, the page of the database copied is made first,
    /// as records of that name it. Then come the changes since.
    async fn page_of(
        &self,
        lineage: &Lineage,
        rel: RelTag,
        block: BlockNumber,
    ) -> Result<Bytes, ReadError> {
        let mut later = Vec::new();
        let mut oldest = None;
        for stretch in lineage.copies() {
            let part = self.part(stretch, rel, block).await?;
            if part.found.is_complete() {
                oldest = Some(part);
                break;
            }
            // Where nothing changes it, it is the page, and the cache entry, of before.
            if !part.found.changes.is_empty() {
                later.push(part);
            }
        }
        let oldest = match oldest {
            Some(part) => part,
            None => self.part(lineage.root(), rel, block).await?,
        };
        let mut page = self.made(oldest, block, None).await?;
        while let Some(part) = later.pop() {
            page = self.made(part, block, Some(page)).await?;
        }
        Ok(page)
    }

    /// What is known about a page in a stretch of its database's history.
    async fn part(
        &self,
        stretch: &Stretch,
        rel: RelTag,
        block: BlockNumber,
    ) -> Result<Part, ReadError> {
        let rel = stretch.database.own(rel);
        let key = Key::RelBlock(rel, block);
        let finding = self.find(key, stretch.lsns.clone());
        let found = timed(&self.times.find, finding).await?;
        Ok(Part { rel, found })
    }

    /// The page of a part, from the cache or made on `origin`.
    async fn made(
        &self,
        part: Part,
        block: BlockNumber,
        origin: Option<Bytes>,
    ) -> Result<Bytes, ReadError> {
        let version = part.found.version;
        let make = async {
            let Part { rel, found } = part;
            let base = match origin {
                Some(page) => Some(page),
                None => base_for(&found).await?,
            };
            let chain = Chain {
                rel,
                block,
                base,
                changes: found.changes,
            };
            let made = reconstruct(&self.engine, chain);
            Ok(timed(&self.times.redo, made).await?)
        };
        self.cache.get_or_make(&version, make).await
    }

    /// The changes of a page at these LSNs, back to a version that stands alone or is cached.
    pub(super) async fn find(
        &self,
        key: Key,
        lsns: RangeInclusive<Lsn>,
    ) -> Result<Found, ReadError> {
        let (from, lsn) = (*lsns.start(), *lsns.end());
        let mut search = Search {
            timeline: self.timeline,
            key,
            from,
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
            layers.versions(key, &(from..=up_to), &mut visit).await?;
        }
        Ok(search.end(layers))
    }
}

impl Search<'_> {
    /// The next older version.
    fn take(&mut self, epoch: WriterEpoch, at: Lsn, value: &Value) -> Visit {
        if at < self.from {
            self.finished = true;
            return Visit::Stop;
        }
        let version = self.version_at(epoch, at);
        self.version.get_or_insert(version);
        self.cached = self.cache.get(&version);
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

    fn version_at(&self, epoch: WriterEpoch, lsn: Lsn) -> Version {
        Version {
            timeline: self.timeline,
            epoch,
            key: self.key,
            lsn,
        }
    }

    fn end(mut self, layers: Arc<Layers>) -> Found {
        self.changes.reverse();
        let base = layers.base().lsn();
        // Without the base a stretch may have no version at all. Then it begins with an LSN at which
        // nothing is cached.
        let oldest = self.version_at(WriterEpoch::FIRST, self.from.max(base));
        Found {
            version: self.version.unwrap_or(oldest),
            cached: self.cached,
            changes: self.changes,
            has_base: self.from <= base,
            layers,
        }
    }
}

impl Found {
    /// Whether nothing older is needed to make the version.
    fn is_complete(&self) -> bool {
        self.cached.is_some() || self.changes.first().is_some_and(Value::stands_alone)
    }
}

/// The page that the changes found are to be applied to, if there is one and it matters.
pub(super) async fn base_for(found: &Found) -> Result<Option<Bytes>, ReadError> {
    match &found.cached {
        Some(page) => Ok(Some(page.clone())),
        None if found.is_complete() || !found.has_base => Ok(None),
        None => base_page(&found.layers, found.version.key).await,
    }
}

async fn base_page(layers: &Layers, key: Key) -> Result<Option<Bytes>, ReadError> {
    match layers.base_version(key).await? {
        None => Ok(None),
        Some(Value::Image(page)) => Ok(Some(page)),
        Some(_) => Err(ReadError::WrongValue(key)),
    }
}
