use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use palimpsest_api::{
    RemoteError, TimelineRef,
    channel::connect_lazily,
    feed,
    redo::{RedoTenant, TenantRedo},
};
use palimpsest_manifest::{ManifestError, TimelineManifest, TimelineManifests, Versioned};
use palimpsest_read::{BaseLayers, ReadError, Tail, TailError, TimelineReader};
use palimpsest_runtime::TaskScope;
use palimpsest_store::StorePath;
use palimpsest_types::WriterEpoch;

use super::{error::ServeError, timelines::Shared};

/// One timeline: opened from its manifest, then kept up with by the change feed.
#[derive(Debug)]
pub(super) struct Served {
    reader: OnceLock<Arc<TimelineReader<TenantRedo>>>,
}

/// Why a timeline can't be followed at the moment.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the change feed broke")]
    Feed(#[from] RemoteError),
    #[error(transparent)]
    Tail(#[from] TailError),
    #[error("the feed is of writer epoch {found}, {newest} has been seen")]
    Fenced {
        found: WriterEpoch,
        newest: WriterEpoch,
    },
}

/// How long to wait before something that failed is tried again.
const RETRY: Duration = Duration::from_millis(300);

impl Served {
    /// Starts the task that opens and follows the timeline.
    pub(super) fn start(
        timeline: TimelineRef,
        shared: Arc<Shared>,
        scope: &TaskScope,
    ) -> Arc<Self> {
        let served = Arc::new(Self {
            reader: OnceLock::new(),
        });
        let task = Arc::clone(&served);
        let token = scope.token().clone();
        scope.spawn("timeline", async move {
            // Cancel-safe: all that is lost is memory.
            tokio::select! {
                () = token.cancelled() => {}
                () = task.serve(timeline, &shared) => {}
            }
        });
        served
    }

    pub(super) fn reader(
        &self,
        timeline: TimelineRef,
    ) -> Result<Arc<TimelineReader<TenantRedo>>, ServeError> {
        let why = "its base backup is not complete";
        let not_open = || ServeError::NotOpen {
            timeline,
            why: why.to_owned(),
        };
        self.reader.get().cloned().ok_or_else(not_open)
    }

    async fn serve(&self, timeline: TimelineRef, shared: &Shared) {
        let (manifest, tail) = loop {
            match self.open(timeline, shared).await {
                Ok(Some(opened)) => break opened,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%timeline, error = &error as &dyn std::error::Error, "can't open the timeline; trying again");
                }
            }
            tokio::time::sleep(RETRY).await;
        };
        tracing::info!(%timeline, lsn = %manifest.lsn, layers = manifest.layers.len(), "timeline opened");
        follow(timeline, shared, manifest.writer_epoch, &tail).await;
    }

    /// Opens the newest manifest; `None` while there is none.
    async fn open(
        &self,
        timeline: TimelineRef,
        shared: &Shared,
    ) -> Result<Option<(TimelineManifest, Arc<Tail>)>, FollowError> {
        let TimelineRef {
            tenant,
            timeline: id,
        } = timeline;
        let manifests = TimelineManifests::new(shared.store.clone(), tenant, id);
        let Some(Versioned {
            state: manifest, ..
        }) = manifests.newest().await?
        else {
            return Ok(None);
        };
        let directory = StorePath::timeline(tenant, id).child("layers");
        let store = shared.store.clone();
        let base = BaseLayers::open(store, &directory, manifest.lsn, &manifest.layers).await?;
        let tail = Arc::new(Tail::new(manifest.writer_epoch, manifest.lsn));
        let engine = shared.redo.for_tenant(RedoTenant {
            tenant,
            pg_version: manifest.source.pg_version,
            wal_log_hints: manifest.source.wal_log_hints,
        });
        let cache = Arc::clone(&shared.cache);
        let oldest = manifest.oldest_readable;
        let reader = TimelineReader::new(id, oldest, base, Arc::clone(&tail), (cache, engine));
        // Only this task sets it, and only once.
        let _ = self.reader.set(Arc::new(reader));
        Ok(Some((manifest, tail)))
    }
}

/// Follows the feed for ever. A feed that breaks is resumed where the tail ends.
async fn follow(timeline: TimelineRef, shared: &Shared, epoch: WriterEpoch, tail: &Tail) {
    let mut newest_epoch = epoch;
    let opened_at = tail.newest();
    let mut cluster = shared.cluster.clone();
    loop {
        let view = cluster.borrow_and_update().timeline(timeline).cloned();
        let writer = view.and_then(|view| view.writer);
        if let Some(writer) = writer {
            let ended = follow_once(timeline, shared, &writer, &mut newest_epoch, tail).await;
            // Until the first batch has come, the writer may just not be ready yet.
            let begun = tail.newest() > opened_at;
            if let Err(error) = ended
                && begun
            {
                tracing::warn!(%timeline, %writer, at = %tail.newest(), error = &error as &dyn std::error::Error, "not following the timeline; trying again");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow_once(
    timeline: TimelineRef,
    shared: &Shared,
    writer: &str,
    newest_epoch: &mut WriterEpoch,
    tail: &Tail,
) -> Result<(), FollowError> {
    let channel = connect_lazily(writer)?;
    let mut stream = feed::subscribe(channel, timeline, tail.newest()).await?;
    while let Some(batch) = stream.next().await? {
        if batch.epoch < *newest_epoch {
            return Err(FollowError::Fenced {
                found: batch.epoch,
                newest: *newest_epoch,
            });
        }
        *newest_epoch = batch.epoch;
        tail.extend(batch.records, batch.up_to, shared.limits.tail)?;
    }
    Ok(())
}
