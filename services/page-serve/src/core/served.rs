use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::ClusterView,
    channel::connect_lazily,
    feed::{self, FeedBatch},
    redo::{RedoTenant, TenantRedo},
};
use palimpsest_layer::DeltaLayer as _;
use palimpsest_manifest::{ManifestError, TimelineManifest, TimelineManifests, Versioned};
use palimpsest_read::{LayerFiles, Layers, ReadError, Tail, TailError, TimelineReader};
use palimpsest_runtime::TaskScope;
use palimpsest_store::StorePath;
use palimpsest_types::{ByteCount, ErrorKind, Lsn, WriterEpoch};
use tokio::sync::{Notify, watch};

use super::{error::ServeError, opening::Opening, timelines::Shared};

/// One timeline: opened from its manifest, then kept up with by the change feed, and by newer
/// manifests as changes become layers.
#[derive(Debug)]
pub(super) struct Served {
    opened: OnceLock<Opened>,
    /// How the first of many attempts to open it, or the last one, ended.
    opening: watch::Sender<Opening>,
    /// A newer manifest is needed, or worth a look.
    look: Notify,
}

#[derive(Debug)]
struct Opened {
    reader: Arc<TimelineReader<TenantRedo>>,
    tail: Arc<Tail>,
    manifests: TimelineManifests,
    files: LayerFiles,
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
    #[error("a new writer began at {0}; subscribing anew")]
    Rewound(Lsn),
    #[error("the manifest is gone")]
    NoManifest,
}

/// How long to wait before something that failed is tried again.
const RETRY: Duration = Duration::from_millis(300);
/// How often the manifest is looked at when nothing tells of a newer one.
const LOOK: Duration = Duration::from_secs(20);
/// The tail is let go of in pieces of this size.
const PIECE: ByteCount = ByteCount::mib(16);

impl Served {
    /// Starts the task that opens and follows the timeline.
    pub(super) fn start(
        timeline: TimelineRef,
        shared: Arc<Shared>,
        scope: &TaskScope,
    ) -> Arc<Self> {
        let served = Arc::new(Self {
            opened: OnceLock::new(),
            opening: watch::Sender::new(Opening::Begun),
            look: Notify::new(),
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
        let unopened = || self.opening.borrow().error(timeline);
        let opened = self.opened.get().ok_or_else(unopened)?;
        Ok(Arc::clone(&opened.reader))
    }

    /// Waits until it is open, or until it is known that waiting does not open it.
    pub(super) async fn settled(&self) {
        // The sender is here, so it does not go away.
        let _ = self.opening.subscribe().wait_for(Opening::is_settled).await;
    }

    /// What its changes take in memory.
    pub(super) fn tail_size(&self) -> ByteCount {
        let opened = self.opened.get();
        opened.map_or(ByteCount::ZERO, |opened| opened.tail.read().size())
    }

    async fn serve(&self, timeline: TimelineRef, shared: &Shared) {
        let manifest = loop {
            let outcome = match self.open(timeline, shared).await {
                Ok(Some(manifest)) => break manifest,
                Ok(None) => Opening::NoManifest,
                Err(error) => {
                    tracing::warn!(%timeline, error = &error as &dyn std::error::Error, "can't open the timeline; trying again");
                    Opening::Failed {
                        kind: error.kind(),
                        why: error.to_string(),
                    }
                }
            };
            self.opening.send_replace(outcome);
            tokio::time::sleep(RETRY).await;
        };
        tracing::info!(%timeline, lsn = %manifest.lsn, layers = manifest.layers().len(), "timeline opened");
        let Some(opened) = self.opened.get() else {
            return;
        };
        // Both go on for ever.
        tokio::join!(
            self.follow_feed(timeline, shared, opened, manifest.writer_epoch),
            self.follow_manifests(timeline, shared, opened),
        );
    }

    /// Opens the newest manifest; `None` while there is none.
    async fn open(
        &self,
        timeline: TimelineRef,
        shared: &Shared,
    ) -> Result<Option<TimelineManifest>, FollowError> {
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
        let blocks = Arc::clone(&shared.blocks);
        let files = LayerFiles::new(shared.store.clone(), directory, blocks);
        let layers = Layers::open(files.clone(), &manifest, None).await?;
        let tail = Arc::new(Tail::new(manifest.writer_epoch, manifest.lsn));
        let engine = shared.redo.for_tenant(RedoTenant {
            tenant,
            pg_version: manifest.source.pg_version,
            wal_log_hints: manifest.source.wal_log_hints,
        });
        let cache = Arc::clone(&shared.cache);
        let reader = TimelineReader::new(id, layers, Arc::clone(&tail), (cache, engine))
            .with_times(shared.metrics.times.clone());
        let opened = Opened {
            reader: Arc::new(reader),
            tail,
            manifests,
            files,
        };
        // Only this task sets it, and only once.
        let _ = self.opened.set(opened);
        self.opening.send_replace(Opening::Done);
        Ok(Some(manifest))
    }

    /// Follows the feed for ever. A feed that breaks is resumed where the tail ends.
    async fn follow_feed(
        &self,
        timeline: TimelineRef,
        shared: &Shared,
        opened: &Opened,
        mut newest_epoch: WriterEpoch,
    ) {
        let tail = &opened.tail;
        let opened_at = tail.newest();
        let mut cluster = shared.cluster.clone();
        loop {
            self.wait_for_room(timeline, shared, tail).await;
            let writer = writer_of(timeline, &cluster.borrow_and_update());
            if let Some(writer) = writer {
                let another = |view: &ClusterView| {
                    writer_of(timeline, view).is_some_and(|newest| newest != writer)
                };
                // Cancel-safe: a batch that has come is in the tail, and the next writer is asked
                // for what follows it. A writer that sleeps keeps its connections, and one that
                // was superseded says nothing more, so neither ends the feed by itself.
                let ended = tokio::select! {
                    ended = follow_once(timeline, shared, &writer, &mut newest_epoch, tail) => ended,
                    Ok(_) = cluster.wait_for(another) => continue,
                };
                // Until the first batch has come, the writer may just not be ready yet.
                let begun = tail.newest() > opened_at;
                if let Err(error) = ended {
                    if error.asks_for_layers() {
                        self.look.notify_one();
                    } else if begun {
                        shared.metrics.feed_breaks.inc();
                        tracing::warn!(%timeline, %writer, at = %tail.newest(), error = &error as &dyn std::error::Error, "not following the timeline; trying again");
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Waits until the tail may grow. While it is full nothing is asked for, as nothing could be
    /// kept; what has come is served, later LSNs are "not yet".
    async fn wait_for_room(&self, timeline: TimelineRef, shared: &Shared, tail: &Tail) {
        let limit = shared.limits.tail;
        let mut full = false;
        loop {
            let size = tail.read().size();
            if size < limit {
                break;
            }
            if !full {
                tracing::warn!(%timeline, %size, %limit, at = %tail.newest(), "the changes of a timeline fill their memory; going on when they have become layers");
            }
            full = true;
            // Only a newer manifest makes room.
            self.look.notify_one();
            tokio::time::sleep(RETRY).await;
        }
        if full {
            tracing::info!(%timeline, at = %tail.newest(), "there is room for changes of the timeline again");
        }
    }

    /// Takes newer manifests as they come, so that the tail can let go of what layers have.
    async fn follow_manifests(&self, timeline: TimelineRef, shared: &Shared, opened: &Opened) {
        let mut cluster = shared.cluster.clone();
        loop {
            let at = opened.reader.layers().lsn();
            let published = cluster.wait_for(|view| {
                let status = view.timeline(timeline).map(|view| &view.status);
                status.is_some_and(|status| status.remote_consistent > at)
            });
            // Cancel-safe: nothing is consumed but a reason to look.
            tokio::select! {
                _ = published => {}
                () = self.look.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            if let Err(error) = take_newest(timeline, opened).await {
                tracing::warn!(%timeline, error = &error as &dyn std::error::Error, "can't read the newest manifest; trying again");
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl FollowError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Manifest(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Feed(error) => error.kind,
            Self::Tail(_) | Self::Fenced { .. } | Self::Rewound(_) | Self::NoManifest => {
                ErrorKind::NotReady
            }
        }
    }

    /// Whether a newer manifest may help: the feed begins later than we are, or memory is short.
    fn asks_for_layers(&self) -> bool {
        match self {
            Self::Feed(error) => error.kind == ErrorKind::Conflict,
            Self::Tail(error) => matches!(error, TailError::Full { .. }),
            _ => false,
        }
    }
}

/// Reads layers up to the newest manifest, then lets go of what they have.
async fn take_newest(timeline: TimelineRef, opened: &Opened) -> Result<(), FollowError> {
    let newest = opened.manifests.newest().await?;
    let manifest = newest.ok_or(FollowError::NoManifest)?.state;
    let before = opened.reader.layers();
    if manifest.lsn <= before.lsn() {
        return Ok(());
    }
    let layers = Layers::open(opened.files.clone(), &manifest, Some(&before)).await?;
    tracing::debug!(%timeline, lsn = %layers.lsn(), deltas = layers.deltas(), "taking a newer manifest");
    opened.reader.advance(layers);
    if opened.tail.newest() < manifest.lsn {
        // The feed does not begin so early any more.
        opened.tail.rewind(manifest.writer_epoch, manifest.lsn);
    } else {
        opened.tail.drop_until(manifest.lsn);
    }
    Ok(())
}

/// Where a timeline is written, if anywhere.
fn writer_of(timeline: TimelineRef, view: &ClusterView) -> Option<String> {
    view.timeline(timeline)?.writer.clone()
}

async fn follow_once(
    timeline: TimelineRef,
    shared: &Shared,
    writer: &str,
    newest_epoch: &mut WriterEpoch,
    tail: &Tail,
) -> Result<(), FollowError> {
    let channel = connect_lazily(writer)?;
    let from = tail.newest();
    let mut stream = feed::subscribe(channel, timeline, from).await?;
    while let Some(batch) = stream.next().await? {
        accept_epoch(&batch, newest_epoch, tail)?;
        if tail.newest() < from {
            return Err(FollowError::Rewound(tail.newest()));
        }
        tail.extend(batch.records, batch.up_to, shared.limits.tail)?;
        if tail.read().open_size() >= PIECE {
            tail.freeze();
        }
    }
    Ok(())
}

/// Refuses a writer older than any that this feed or a manifest has shown; forgets what an older one
/// told when a newer one comes.
fn accept_epoch(
    batch: &FeedBatch,
    newest_epoch: &mut WriterEpoch,
    tail: &Tail,
) -> Result<(), FollowError> {
    let held = tail.read().epoch();
    *newest_epoch = held.max(*newest_epoch);
    if batch.epoch < *newest_epoch {
        return Err(FollowError::Fenced {
            found: batch.epoch,
            newest: *newest_epoch,
        });
    }
    *newest_epoch = batch.epoch;
    if batch.epoch > held {
        let start = batch.epoch_start.min(tail.newest());
        tail.rewind(batch.epoch, start);
    }
    Ok(())
}
