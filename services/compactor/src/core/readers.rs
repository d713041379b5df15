//! Reading timelines as they are in the object store, to make images of what is read.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
};

use palimpsest_api::{
    TimelineRef,
    redo::{RedoPool, RedoTenant, TenantRedo},
};
use palimpsest_manifest::TimelineManifest;
use palimpsest_read::{Layers, PageCache, StoredTimelines, TimelineReader};
use palimpsest_redo::Engine;
use palimpsest_types::ByteCount;

use super::{error::CompactError, lock::lock};

/// Where the engines are had from that replay a tenant's records.
pub trait Engines: Debug + Send + Sync + 'static {
    /// Replays them.
    type Engine: Engine + Debug + 'static;

    /// The engine of one tenant.
    fn of(&self, tenant: RedoTenant) -> Self::Engine;
}

/// Readers of all timelines, and what they have in common.
#[derive(Debug)]
pub(super) struct Readers<R> {
    engines: R,
    pages: Arc<PageCache>,
    /// Those that were read last. Opening the next ones of the same timeline costs what is new then.
    layers: Mutex<Option<(TimelineRef, Arc<Layers>)>>,
}

/// Reads a timeline as it is in the object store.
pub(super) type Reader<R> = TimelineReader<<R as Engines>::Engine>;

/// Pages are made once; only what batches have in common is asked for again.
const PAGES: ByteCount = ByteCount::mib(8);
/// Of some pages that are made together. A page that every transaction changes has a megabyte of changes for
/// each few thousand of these.
const CHANGES: ByteCount = ByteCount::mib(8);

impl Engines for RedoPool {
    type Engine = TenantRedo;

    fn of(&self, tenant: RedoTenant) -> TenantRedo {
        self.for_tenant(tenant)
    }
}

impl<R: Engines> Readers<R> {
    /// Readers whose records these engines replay.
    pub(super) fn new(engines: R) -> Self {
        Self {
            engines,
            pages: Arc::new(PageCache::new(PAGES)),
            layers: Mutex::default(),
        }
    }

    pub(super) fn engines(&self) -> &R {
        &self.engines
    }

    /// Pages that were made here.
    pub(super) fn pages(&self) -> Arc<PageCache> {
        Arc::clone(&self.pages)
    }

    /// A reader of what a manifest lists, and of nothing after that.
    ///
    /// # Errors
    /// If a layer can't be read, or what a branch begins on is not in the object store yet.
    pub(super) async fn of(
        &self,
        timeline: TimelineRef,
        stored: &StoredTimelines,
        manifest: &TimelineManifest,
    ) -> Result<Reader<R>, CompactError> {
        let before = lock(&self.layers).clone();
        let before = before.filter(|(of, _)| *of == timeline);
        let before = before.as_ref().map(|(_, layers)| layers.as_ref());
        let engine = || {
            self.engines.of(RedoTenant {
                tenant: timeline.tenant,
                pg_version: manifest.source.pg_version,
                wal_log_hints: manifest.source.wal_log_hints,
            })
        };
        let reader = stored.reader(timeline.timeline, manifest, before, engine);
        let reader = reader.await?.with_changes_of(CHANGES);
        *lock(&self.layers) = Some((timeline, reader.layers()));
        Ok(reader)
    }
}
