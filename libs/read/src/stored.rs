//! Timelines as they are in the object store, each with all that it begins on.

use std::sync::Arc;

use palimpsest_manifest::{Ancestor, LsnSpan, ManifestError, TimelineManifest, TimelineManifests};
use palimpsest_redo::Engine;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{ErrorKind, Lsn, TenantId, TimelineId};

use crate::{
    blocks::BlockCache,
    cache::PageCache,
    error::ReadError,
    layers::{LayerFiles, Layers},
    reader::TimelineReader,
    tail::Tail,
};

/// The timelines of a tenant, for who needs no more of them than their manifests list.
#[derive(Debug, Clone)]
pub struct StoredTimelines {
    store: ObjectStore,
    tenant: TenantId,
    blocks: Arc<BlockCache>,
    pages: Arc<PageCache>,
}

/// A timeline can't be read from the object store.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// A manifest can't be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A layer can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What a branch begins on is not there.
    #[error("there is no manifest of timeline {0}, which a branch begins on")]
    NoAncestor(TimelineId),
    /// A branch begins where changes were lost since.
    #[error(
        "a branch begins on timeline {timeline} at {needs}, and the changes of {hole} were lost there at the source; nothing can be read of it"
    )]
    Lost {
        /// What the branch begins on.
        timeline: TimelineId,
        /// Where the branch begins.
        needs: Lsn,
        /// What was lost.
        hole: LsnSpan,
    },
    /// What a branch begins on is in the object store only in part.
    #[error(
        "timeline {timeline} is in the object store up to {has}, and a branch begins on it at {needs}"
    )]
    Behind {
        /// What the branch begins on.
        timeline: TimelineId,
        /// What there is of it.
        has: Lsn,
        /// Where the branch begins.
        needs: Lsn,
    },
}

impl StoredTimelines {
    /// Those of a tenant, which share these caches.
    pub fn new(
        store: ObjectStore,
        tenant: TenantId,
        (pages, blocks): (Arc<PageCache>, Arc<BlockCache>),
    ) -> Self {
        Self {
            store,
            tenant,
            blocks,
            pages,
        }
    }

    /// A reader of what a manifest lists, and of nothing after that. What `before` has of its layers is taken
    /// from it. Each timeline gets an engine of its own.
    ///
    /// # Errors
    /// If something can't be read, or what a branch begins on is not there up to where it does.
    pub async fn reader<E: Engine>(
        &self,
        timeline: TimelineId,
        manifest: &TimelineManifest,
        before: Option<&Layers>,
        engine: impl Fn() -> E,
    ) -> Result<TimelineReader<E>, StoredError> {
        let mut begun_on = None;
        for (ancestor, manifest) in self.ancestors(manifest).await?.iter().rev() {
            let reader = self
                .open(ancestor.timeline, manifest, None, engine())
                .await?;
            begun_on = Some((Arc::new(on(reader, begun_on)), ancestor.lsn));
        }
        let reader = self.open(timeline, manifest, before, engine()).await?;
        Ok(on(reader, begun_on))
    }

    /// What a timeline begins on, what that begins on, and so on.
    async fn ancestors(
        &self,
        manifest: &TimelineManifest,
    ) -> Result<Vec<(Ancestor, TimelineManifest)>, StoredError> {
        let mut ancestors = Vec::new();
        let mut next = manifest.ancestor;
        while let Some(ancestor) = next {
            let Ancestor { timeline, lsn } = ancestor;
            let manifests = TimelineManifests::new(self.store.clone(), self.tenant, timeline);
            let newest = manifests.newest().await?;
            let newest = newest.ok_or(StoredError::NoAncestor(timeline))?.state;
            if newest.lsn < lsn {
                return Err(StoredError::Behind {
                    timeline,
                    has: newest.lsn,
                    needs: lsn,
                });
            }
            if let Some(hole) = newest.hole_at(lsn) {
                let needs = lsn;
                return Err(StoredError::Lost {
                    timeline,
                    needs,
                    hole,
                });
            }
            next = newest.ancestor;
            ancestors.push((ancestor, newest));
        }
        Ok(ancestors)
    }

    async fn open<E: Engine>(
        &self,
        timeline: TimelineId,
        manifest: &TimelineManifest,
        before: Option<&Layers>,
        engine: E,
    ) -> Result<TimelineReader<E>, StoredError> {
        let directory = StorePath::timeline(self.tenant, timeline).child("layers");
        let files = LayerFiles::new(self.store.clone(), directory, Arc::clone(&self.blocks));
        let layers = Layers::open(files, manifest, before).await?;
        let tail = Arc::new(Tail::new(manifest.writer_epoch, manifest.lsn));
        let pages = Arc::clone(&self.pages);
        Ok(TimelineReader::new(timeline, layers, tail, (pages, engine)))
    }
}

/// A reader of a timeline that begins on another, if it does.
fn on<E: Engine>(
    reader: TimelineReader<E>,
    ancestor: Option<(Arc<TimelineReader<E>>, Lsn)>,
) -> TimelineReader<E> {
    match ancestor {
        Some((ancestor, lsn)) => reader.with_ancestor(ancestor, lsn),
        None => reader,
    }
}

impl StoredError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Manifest(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::NoAncestor(_) => ErrorKind::NotFound,
            Self::Lost { .. } => ErrorKind::Invalid,
            Self::Behind { .. } => ErrorKind::NotReady,
        }
    }
}
