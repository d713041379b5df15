use std::{
    ops::RangeInclusive,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use bytes::Bytes;
use palimpsest_layer::{DeltaLayer as _, Visit};
use palimpsest_redo::Engine;
use palimpsest_types::{BlockNumber, ByteCount, Key, KeyRange, Lsn, Oid, RelTag, TimelineId};
use palimpsest_wal::Value;

use crate::{
    cache::PageCache,
    error::ReadError,
    layers::Layers,
    lineage::{Database, Lineage},
    listing::{blocks_at, maps_at, relations_at},
    tail::{Pieces, Tail},
    times::ReadTimes,
    versions::{Listing, Versions},
};

mod ancestor;
mod find;
mod image;
mod pages;
mod same;
mod slru;
mod two_phase;

use ancestor::Ancestor;

/// Reads one timeline: what it has itself, and before it began what its ancestor had.
#[derive(Debug)]
pub struct TimelineReader<E> {
    timeline: TimelineId,
    ancestor: Option<Ancestor<E>>,
    layers: RwLock<Arc<Layers>>,
    tail: Arc<Tail>,
    cache: Arc<PageCache>,
    engine: E,
    times: ReadTimes,
    /// Changes that are found for several pages at once, at most, if that is limited.
    changes: Option<ByteCount>,
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
            ancestor: None,
            layers: RwLock::new(Arc::new(layers)),
            tail,
            cache,
            engine,
            times: ReadTimes::default(),
            changes: None,
        }
    }

    /// The same of a branch, which begins on another timeline at this LSN.
    #[must_use]
    pub fn with_ancestor(self, reader: Arc<Self>, lsn: Lsn) -> Self {
        let ancestor = Some(Ancestor { reader, lsn });
        Self { ancestor, ..self }
    }

    /// The same, for who makes an image of pages: of those that have changed so often that their changes would
    /// take more memory than this, fewer are made at once.
    #[must_use]
    pub fn with_changes_of(self, most: ByteCount) -> Self {
        let changes = Some(most);
        Self { changes, ..self }
    }

    /// The same, measured together with others.
    #[must_use]
    pub fn with_times(self, times: ReadTimes) -> Self {
        Self { times, ..self }
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
        let mut newest = self.newest_arrived();
        while let Some(hole) = self.hole_at(newest) {
            newest = hole.after;
        }
        (self.oldest(), newest)
    }

    /// The LSN to read at: `lsn` when everything that the caller needs of it has arrived, for which
    /// this waits up to `patience`; the newest if it is `None`.
    ///
    /// # Errors
    /// If it is out of the readable window and not pinned.
    pub async fn settle(
        &self,
        lsn: Option<Lsn>,
        not_modified_since: Option<Lsn>,
        patience: Duration,
    ) -> Result<Lsn, ReadError> {
        let oldest = self.oldest();
        let needed = match (lsn, not_modified_since) {
            (Some(lsn), since) => since.map_or(lsn, |since| since.min(lsn).max(oldest)),
            (None, since) => since.unwrap_or(oldest).max(oldest),
        };
        if let Some(lsn) = lsn.filter(|lsn| *lsn < oldest && !self.is_pinned(*lsn)) {
            return Err(ReadError::BelowHorizon { lsn, oldest });
        }
        lsn.map_or(Ok(()), |lsn| self.expect_no_hole(lsn))?;
        let needed = self.behind_hole(lsn).map_or(needed, |end| end.max(needed));
        let at = |newest: Lsn| {
            let at = lsn.map_or(newest, |lsn| lsn.min(newest.max(needed)));
            self.expect_no_hole(at).map(|()| at)
        };
        // Nearly always: without a timer.
        let newest = self.newest_arrived();
        if newest >= needed {
            return at(newest);
        }
        // Cancel-safe: waiting changes nothing.
        let waited = tokio::time::timeout(patience, self.arrival(needed)).await;
        let newest = self.newest_arrived();
        match waited {
            Ok(()) if newest >= needed => at(newest),
            Ok(()) | Err(_) => Err(ReadError::NotYet {
                lsn: needed,
                newest,
            }),
        }
    }

    /// Whether no changes were lost around an LSN, so that it means something.
    ///
    /// # Errors
    /// If it is in a hole.
    pub fn expect_no_hole(&self, lsn: Lsn) -> Result<(), ReadError> {
        match self.hole_at(lsn) {
            None => Ok(()),
            Some(hole) => Err(ReadError::InHole { lsn, hole }),
        }
    }

    /// Where the newest LSN is in a hole, its end: from where on one can read who wants the newest, or what comes later.
    fn behind_hole(&self, lsn: Option<Lsn>) -> Option<Lsn> {
        let hole = self.hole_at(self.newest_arrived())?;
        let is_beyond = lsn.is_none_or(|lsn| lsn >= hole.up_to);
        is_beyond.then_some(hole.up_to)
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
        let lineage = Lineage::of(self, Database::of(rel), lsn).await?;
        self.size_in(&lineage, rel).await
    }

    async fn size_in(
        &self,
        lineage: &Lineage,
        rel: RelTag,
    ) -> Result<Option<BlockNumber>, ReadError> {
        let key_in = |database: Database| Key::RelSize(database.own(rel));
        match lineage.newest(self, key_in).await? {
            None | Some(Value::Dropped) => Ok(None),
            Some(Value::RelSize(blocks)) => Ok(Some(blocks)),
            Some(_) => Err(ReadError::WrongValue(Key::RelSize(rel))),
        }
    }

    /// The relation map file of a database.
    ///
    /// # Errors
    /// If it does not exist at that LSN or a layer can't be read.
    pub async fn relation_map(&self, spc: Oid, db: Oid, lsn: Lsn) -> Result<Bytes, ReadError> {
        let map_of = |Database { spc, db }| Key::RelMap { spc, db };
        let database = Database { spc, db };
        let lineage = Lineage::of(self, database, lsn).await?;
        match lineage.newest(self, map_of).await? {
            None | Some(Value::Dropped) => Err(ReadError::NoRelationMap { spc, db, lsn }),
            Some(Value::File(content)) => Ok(content),
            Some(_) => Err(ReadError::WrongValue(map_of(database))),
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
        Ok(relations_at(self, lsn).await?.into_iter().collect())
    }

    /// The relation map files of all databases, each with the tablespace and the database.
    ///
    /// # Errors
    /// If a layer can't be read.
    pub async fn relation_maps(&self, lsn: Lsn) -> Result<Vec<(Oid, Oid, Bytes)>, ReadError> {
        let maps = maps_at(self, lsn).await?.into_iter();
        maps.map(|map| match map {
            (Key::RelMap { spc, db }, Value::File(content)) => Ok((spc, db, content)),
            (key, _) => Err(ReadError::WrongValue(key)),
        })
        .collect()
    }

    /// Blocks of all forks of a database, in all its tablespaces; `None` if it has no fork.
    ///
    /// # Errors
    /// If a layer can't be read.
    pub async fn database_size(&self, db: Oid, lsn: Lsn) -> Result<Option<u64>, ReadError> {
        blocks_at(self, db, lsn).await
    }
}

/// What the timeline has itself.
impl<E: Engine> TimelineReader<E> {
    async fn newest_here(
        &self,
        key: Key,
        lsns: RangeInclusive<Lsn>,
    ) -> Result<Option<(Lsn, Value)>, ReadError> {
        let mut newest = None;
        let layers = {
            let (layers, tail) = self.snapshot(*lsns.end())?;
            tail.versions(key, *lsns.end(), &mut |at, value| {
                newest = Some((at, value.clone()));
                Visit::Stop
            });
            layers
        };
        match newest {
            Some(newest) => Ok(Some(newest).filter(|(at, _)| lsns.contains(at))),
            None => layers.newest(key, lsns).await,
        }
    }

    async fn newest_in_here(&self, keys: KeyRange, lsn: Lsn) -> Result<Listing, ReadError> {
        let mut newer = Vec::new();
        let layers = {
            let (layers, tail) = self.snapshot(lsn)?;
            tail.newest(keys.clone(), lsn, &mut |key, at, value| {
                newer.push((key, (at, value.clone())));
            });
            layers
        };
        let mut listing = layers.newest_in(keys, lsn).await?;
        // A tail may begin before an image, which knows better what has become of a key by then.
        let images = &listing.images;
        newer.retain(|(key, (at, _))| images.of(*key).is_none_or(|image| image < *at));
        listing.versions.extend(newer);
        Ok(listing)
    }
}

/// Layers, tail and ancestors as one.
impl<E: Engine> Versions for TimelineReader<E> {
    async fn newest(
        &self,
        key: Key,
        lsns: RangeInclusive<Lsn>,
    ) -> Result<Option<(Lsn, Value)>, ReadError> {
        for (reader, lsns) in self.history(&lsns) {
            let newest = reader.newest_here(key, lsns).await?;
            if newest.is_some() {
                return Ok(newest);
            }
        }
        Ok(None)
    }

    async fn newest_in(&self, keys: KeyRange, lsn: Lsn) -> Result<Listing, ReadError> {
        let mut listing = Listing::default();
        for (reader, lsns) in self.history(&(Lsn::ZERO..=lsn)) {
            listing.add_older(reader.newest_in_here(keys.clone(), *lsns.end()).await?);
        }
        Ok(listing)
    }
}

#[cfg(test)]
mod tests;
