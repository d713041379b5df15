//! Pages of relations.

use bytes::Bytes;
use futures::future::try_join_all;
use palimpsest_redo::{Chain, Engine, reconstruct};
use palimpsest_types::{BlockNumber, Key, Lsn, RelTag};

use super::{TimelineReader, find::Found};
use crate::{
    error::ReadError,
    lineage::{Database, Lineage, Stretch},
    times::timed,
};

/// What is known about a page in a stretch in which it belongs to this relation.
struct Part {
    rel: RelTag,
    found: Found,
}

/// A page whose history is being traced back.
struct Pending {
    /// Its place among those asked for.
    at: usize,
    block: BlockNumber,
    /// What changed it in stretches of copies, newest first.
    later: Vec<Part>,
}

/// All that makes a page.
struct Trace {
    page: Pending,
    oldest: Part,
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
        let page = self.pages(rel, &[block], lsn).await?.pop();
        page.ok_or(ReadError::WrongValue(Key::RelBlock(rel, block)))
    }

    /// Pages of a fork, in this order. What they have in common is looked up once, what lies together
    /// is read together, and they are made side by side, each as soon as what it needs is there.
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
        let traces = self.trace(&lineage, rel, blocks).await?;
        let at_hand: Option<Vec<_>> = traces.iter().map(Trace::page).collect();
        if let Some(pages) = at_hand {
            return Ok(pages);
        }
        let make = |trace| self.page_of(trace);
        // Apart, as the rare case: the state of what makes a page is large, and moved about.
        Box::pin(try_join_all(traces.into_iter().map(make))).await
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

    /// What makes pages that exist, stretch by stretch, newest first, until of each is known what it
    /// begins with.
    async fn trace(
        &self,
        lineage: &Lineage,
        rel: RelTag,
        blocks: &[BlockNumber],
    ) -> Result<Vec<Trace>, ReadError> {
        let pending = blocks.iter().enumerate();
        let mut pending: Vec<_> = pending
            .map(|(at, block)| Pending::new(at, *block))
            .collect();
        let mut traces = Vec::with_capacity(pending.len());
        for stretch in lineage.copies() {
            let parts = self.parts(stretch, rel, &pending).await?;
            let mut unfinished = Vec::new();
            for (mut page, part) in pending.into_iter().zip(parts) {
                if part.found.is_complete() {
                    traces.push(Trace { page, oldest: part });
                    continue;
                }
                // Where nothing changes it, it is the page, and the cache entry, of before.
                if !part.found.changes.is_empty() {
                    page.later.push(part);
                }
                unfinished.push(page);
            }
            pending = unfinished;
        }
        let parts = self.parts(lineage.root(), rel, &pending).await?;
        let rest = pending.into_iter().zip(parts);
        traces.extend(rest.map(|(page, oldest)| Trace { page, oldest }));
        traces.sort_unstable_by_key(|trace| trace.page.at);
        Ok(traces)
    }

    /// What is known about pages in a stretch of their database's history.
    async fn parts(
        &self,
        stretch: &Stretch,
        rel: RelTag,
        pages: &[Pending],
    ) -> Result<Vec<Part>, ReadError> {
        let rel = stretch.database.own(rel);
        let keys = pages.iter().map(|page| Key::RelBlock(rel, page.block));
        let keys: Vec<_> = keys.collect();
        let found = timed(&self.times.find, self.find(&keys, &stretch.lsns)).await?;
        let part = |found| Part { rel, found };
        Ok(found.into_iter().map(part).collect())
    }

    /// The page of a trace. If its database was copied, the page of the database copied is made
    /// first, as records of that name it. Then come the changes since.
    async fn page_of(&self, trace: Trace) -> Result<Bytes, ReadError> {
        let Pending {
            block, mut later, ..
        } = trace.page;
        let mut page = match trace.oldest.found.page() {
            Some(page) => page.clone(),
            None => self.made(trace.oldest, block, None).await?,
        };
        while let Some(part) = later.pop() {
            page = self.made(part, block, Some(page)).await?;
        }
        Ok(page)
    }

    /// The page of a part, from the cache or made on `origin`.
    async fn made(
        &self,
        part: Part,
        block: BlockNumber,
        origin: Option<Bytes>,
    ) -> Result<Bytes, ReadError> {
        let version = part.found.version;
        let make = async || {
            let Part { rel, found } = part;
            let base = match origin {
                Some(page) => Some(page),
                None => found.base().await?,
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
}

impl Trace {
    /// The page, if it needs not be made.
    fn page(&self) -> Option<Bytes> {
        let is_newest = self.page.later.is_empty();
        self.oldest.found.page().filter(|_| is_newest).cloned()
    }
}

impl Pending {
    fn new(at: usize, block: BlockNumber) -> Self {
        Self {
            at,
            block,
            later: Vec::new(),
        }
    }
}
