//! How the chains of pages are found: several at once, so that a layer is read once for all of them.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use palimpsest_layer::{DeltaLayer as _, Visit};
use palimpsest_redo::Engine;
use palimpsest_types::{ByteCount, Key, Lsn, TimelineId, WriterEpoch};
use palimpsest_wal::Value;

use super::TimelineReader;
use crate::{
    base::BaseValue,
    cache::{PageCache, Version},
    error::ReadError,
    layers::{Layers, Seek},
};

/// What is known about a page in a stretch of history.
pub(super) struct Found {
    /// The version asked for. If nothing changed the page in the stretch, the base's, if that is in it.
    pub(super) version: Version,
    /// What the changes are to be applied to.
    beginning: Beginning,
    /// What came after it, oldest first.
    pub(super) changes: Vec<Value>,
}

/// What a chain of changes begins with.
enum Beginning {
    /// Its first change stands alone, or what is before it is not in the stretch.
    Nothing,
    /// Nothing: the page did not exist.
    Absent,
    /// A version that is cached.
    Cached(Bytes),
    /// The version in the base.
    Stored(BaseValue),
}

/// Looks for the changes of a key, newest first.
struct Search<'a> {
    timeline: TimelineId,
    key: Key,
    /// Older versions do not count.
    from: Lsn,
    /// Newer ones neither.
    up_to: Lsn,
    cache: &'a PageCache,
    version: Option<Version>,
    cached: Option<Bytes>,
    /// Newest first.
    changes: Vec<Value>,
    /// Before these the page did not exist.
    absent: bool,
    finished: bool,
    /// Layers that were looked into.
    visits: u32,
    /// What all changes that are looked for together take, if that is limited.
    taken: Option<&'a Taken>,
}

/// What changes of several pages take.
struct Taken {
    bytes: AtomicU64,
    most: u64,
}

impl<E: Engine> TimelineReader<E> {
    /// The changes of pages at these LSNs, of each back to a version that stands alone or is cached,
    /// or to the base. Of the base nothing is read yet.
    pub(super) async fn find(
        &self,
        keys: &[Key],
        lsns: &RangeInclusive<Lsn>,
    ) -> Result<Vec<Found>, ReadError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        // One alone is found whatever it takes.
        let most = self.changes.filter(|_| keys.len() > 1);
        let taken = most.map(Taken::of);
        let search = |key| Search {
            taken: taken.as_ref(),
            ..Search::new(self.timeline, &self.cache, key, lsns)
        };
        let mut searches: Vec<_> = keys.iter().map(|key| search(*key)).collect();
        // The layers with the base, if that is reached.
        let mut root = None;
        for (reader, lsns) in self.history(lsns) {
            let layers = reader.search(&mut searches, *lsns.end()).await?;
            if searches.iter().all(|search| search.finished) {
                break;
            }
            root = reader.ancestor.is_none().then_some(layers);
        }
        if let (Some(most), Some(taken)) = (most, &taken)
            && taken.is_too_much()
        {
            let pages = keys.len();
            return Err(ReadError::TooManyChanges { pages, most });
        }
        for search in searches.iter().filter(|search| search.visits > 0) {
            self.times.layers.observe(search.visits.into());
        }
        based(root.as_deref(), searches, lsns).await
    }

    /// Goes on with searches in what the timeline has itself, up to an LSN. Gives the layers that were
    /// looked into.
    async fn search(
        &self,
        searches: &mut [Search<'_>],
        up_to: Lsn,
    ) -> Result<Arc<Layers>, ReadError> {
        let unfinished = searches.iter_mut().filter(|search| !search.finished);
        let mut unfinished: Vec<_> = unfinished.collect();
        let layers = {
            let (layers, tail) = self.snapshot(up_to)?;
            let epoch = tail.epoch();
            for search in &mut unfinished {
                search.timeline = self.timeline;
                tail.versions(search.key, up_to, &mut |at, value| {
                    search.take(epoch, at, value)
                });
                // What the layers have beyond is in the tail, too.
                search.up_to = up_to.min(tail.start());
            }
            layers
        };
        unfinished.retain(|search| !search.finished);
        unfinished.sort_unstable_by_key(|search| search.key);
        layers.seek(&mut unfinished).await?;
        Ok(layers)
    }
}

/// What was found in a stretch, with where in the base it begins.
async fn based(
    root: Option<&Layers>,
    searches: Vec<Search<'_>>,
    lsns: &RangeInclusive<Lsn>,
) -> Result<Vec<Found>, ReadError> {
    let root = root.filter(|layers| lsns.contains(&layers.base().lsn()));
    let in_stretch = root.map(|layers| layers.base().lsn());
    let found = searches.into_iter().map(|search| search.end(in_stretch));
    let mut found: Vec<_> = found.collect();
    let mut open: Vec<_> = found
        .iter_mut()
        .filter_map(|(found, asks_base)| asks_base.then_some(found))
        .collect();
    let keys: Vec<_> = open.iter().map(|found| found.version.key).collect();
    // Apart, as the rare case: a page that is cached must not move the state of this about.
    let values = match root.filter(|_| !keys.is_empty()) {
        None => Vec::new(),
        Some(layers) => Box::pin(layers.base().values(layers.files(), &keys)).await?,
    };
    for (found, value) in open.iter_mut().zip(values) {
        found.beginning = value.map_or(Beginning::Nothing, Beginning::Stored);
    }
    Ok(found.into_iter().map(|(found, _)| found).collect())
}

impl<'a> Search<'a> {
    fn new(
        timeline: TimelineId,
        cache: &'a Arc<PageCache>,
        key: Key,
        lsns: &RangeInclusive<Lsn>,
    ) -> Self {
        Self {
            timeline,
            key,
            from: *lsns.start(),
            up_to: *lsns.end(),
            cache,
            version: None,
            cached: None,
            changes: Vec::new(),
            absent: false,
            finished: false,
            visits: 0,
            taken: None,
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

    /// What was found, and whether it begins with the version in the base, whose LSN this is if that is
    /// in the stretch.
    fn end(mut self, base: Option<Lsn>) -> (Found, bool) {
        self.changes.reverse();
        // Without the base a stretch may have no version at all. Then it begins with an LSN at which
        // nothing is cached.
        let oldest = self.version_at(WriterEpoch::FIRST, base.unwrap_or(self.from));
        if self.version.is_none() && base.is_some() {
            self.cached = self.cache.get(&oldest);
        }
        let stands_alone = self.changes.first().is_some_and(Value::stands_alone);
        let is_open = self.cached.is_none() && !stands_alone && !self.absent;
        let found = Found {
            version: self.version.unwrap_or(oldest),
            beginning: match self.cached {
                Some(page) => Beginning::Cached(page),
                None if self.absent => Beginning::Absent,
                None => Beginning::Nothing,
            },
            changes: self.changes,
        };
        (found, is_open && base.is_some())
    }
}

impl Seek for &mut Search<'_> {
    fn key(&self) -> Key {
        self.key
    }

    fn lsns(&self) -> RangeInclusive<Lsn> {
        self.from..=self.up_to
    }

    fn visit(&mut self) {
        self.visits += 1;
    }

    fn take(&mut self, epoch: WriterEpoch, at: Lsn, value: &Value) -> Visit {
        Search::take(self, epoch, at, value)
    }

    fn absent(&mut self, epoch: WriterEpoch, at: Lsn) {
        let version = self.version_at(epoch, at);
        self.version.get_or_insert(version);
        self.absent = true;
        self.finished = true;
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
        let mut is_enough = false;
        if self.cached.is_none() {
            self.changes.push(value.clone());
            is_enough = self.taken.is_some_and(|taken| taken.add(value));
        }
        self.finished = self.cached.is_some() || value.stands_alone() || is_enough;
        if self.finished {
            Visit::Stop
        } else {
            Visit::Continue
        }
    }
}

impl Taken {
    fn of(most: ByteCount) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            most: most.get(),
        }
    }

    /// One more; whether that is too much.
    fn add(&self, value: &Value) -> bool {
        let size = size_of::<Value>() as u64 + value.own_bytes() + value.record_bytes();
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.is_too_much()
    }

    fn is_too_much(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > self.most
    }
}

impl Found {
    /// The version, if it is cached.
    pub(super) fn page(&self) -> Option<&Bytes> {
        match &self.beginning {
            Beginning::Cached(page) if self.changes.is_empty() => Some(page),
            _ => None,
        }
    }

    /// Whether nothing older is needed to make the version.
    pub(super) fn is_complete(&self) -> bool {
        let is_known = matches!(self.beginning, Beginning::Cached(_) | Beginning::Absent);
        is_known || self.changes.first().is_some_and(Value::stands_alone)
    }

    /// The page that the changes are to be applied to, if there is one and it matters.
    pub(super) async fn base(&self) -> Result<Option<Bytes>, ReadError> {
        let stored = match &self.beginning {
            Beginning::Nothing | Beginning::Absent => return Ok(None),
            Beginning::Cached(page) => return Ok(Some(page.clone())),
            Beginning::Stored(stored) => stored.clone(),
        };
        match stored.read().await? {
            Value::Image(page) => Ok(Some(page)),
            _ => Err(ReadError::WrongValue(self.version.key)),
        }
    }
}
