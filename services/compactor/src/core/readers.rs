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
use palimpsest_read::{Layers, PageCache, TimelineReader};
use palimpsest_redo::Engine;
use palimpsest_types::ByteCount;

use super::{error::CompactError, lock::lock, making::Workshop};

/// Where the engines are had from that replay a tenant's records.
pub trait Engines: Debug + Clone + Send + Sync + 'static {
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

    /// Opens a reader of what a manifest lists, and of nothing after that. For a thread that may block.
    ///
    /// # Errors
    /// If a layer can't be read, or what a branch begins on is not in the object store yet.
    pub(super) fn of(
        &self,
        shop: &Workshop,
        timeline: TimelineRef,
        manifest: &TimelineManifest,
    ) -> impl Future<Output = Result<Reader<R>, CompactError>> + Send + use<R> {
        let stored = shop.stored(timeline, Arc::clone(&self.pages));
        let before = lock(&self.layers).clone();
        let before = before.filter(|(of, _)| *of == timeline);
        let (engines, manifest) = (self.engines.clone(), manifest.clone());
        let tenant = RedoTenant {
            tenant: timeline.tenant,
            pg_version: manifest.source.pg_version,
            wal_log_hints: manifest.source.wal_log_hints,
        };
        async move {
            let before = before.as_ref().map(|(_, layers)| layers.as_ref());
            let engine = || engines.of(tenant);
            let reader = stored.reader(timeline.timeline, &manifest, before, engine);
            Ok(reader.await?.with_changes_of(CHANGES))
        }
    }

    /// Keeps the layers of a timeline for the next that reads it.
    pub(super) fn keep(&self, timeline: TimelineRef, layers: Arc<Layers>) {
        *lock(&self.layers) = Some((timeline, layers));
    }
}
