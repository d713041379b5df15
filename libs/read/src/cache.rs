use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use palimpsest_types::{ByteCount, Key, Lsn, PAGE_SIZE, TimelineId, WriterEpoch};
use quick_cache::sync::Cache;

use crate::{
    error::ReadError,
    loads::{Loaded, get_or_load},
};

/// Versions of pages that were made already, of all timelines, within a bound.
///
/// Identical reads at the same time make a page once.
#[derive(Debug)]
pub struct PageCache {
    pages: Cache<Version, Loaded<Bytes>>,
    /// How often one was made. The cache's own count of misses has looks for older versions, too.
    made: AtomicU64,
}

/// A version of a key: it never changes, so neither does what is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Version {
    pub(crate) timeline: TimelineId,
    /// Generation of the writer that told of the change.
    pub(crate) epoch: WriterEpoch,
    pub(crate) key: Key,
    /// LSN of the change that made it.
    pub(crate) lsn: Lsn,
}

/// How a cache is used.
#[derive(Debug, Clone, Copy)]
pub struct CacheUse {
    /// Lookups that it answered.
    pub hits: u64,
    /// Lookups that it could not answer.
    pub misses: u64,
    /// Memory that what is cached takes.
    pub used: ByteCount,
    /// Memory that it may take.
    pub budget: ByteCount,
}

impl PageCache {
    /// A cache of about `size`.
    pub fn new(size: ByteCount) -> Self {
        Self {
            pages: Cache::new(size.as_len() / PAGE_SIZE),
            made: AtomicU64::new(0),
        }
    }

    /// How it is used.
    pub fn in_use(&self) -> CacheUse {
        let page = PAGE_SIZE as u64;
        CacheUse {
            hits: self.pages.hits(),
            misses: self.made.load(Ordering::Relaxed),
            used: ByteCount::new(self.pages.weight() * page),
            budget: ByteCount::new(self.pages.capacity() * page),
        }
    }

    /// The version, if it is there.
    pub(crate) fn get(&self, version: &Version) -> Option<Bytes> {
        self.pages.get(version).and_then(Loaded::value)
    }

    /// The version, made by `make` unless it is there or being made. An error is that of all who wait
    /// for it.
    pub(crate) async fn get_or_make<M: Future<Output = Result<Bytes, ReadError>>>(
        &self,
        version: &Version,
        make: impl FnOnce() -> M,
    ) -> Result<Bytes, ReadError> {
        let made = || {
            self.made.fetch_add(1, Ordering::Relaxed);
            make()
        };
        get_or_load(&self.pages, version, made).await
    }
}
