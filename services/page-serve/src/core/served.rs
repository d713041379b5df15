use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use palimpsest_api::{
    TimelineRef,
    redo::{RedoTenant, TenantRedo},
};
use palimpsest_manifest::{Ancestor, TimelineManifest, TimelineManifests, Versioned};
use palimpsest_read::{LayerFiles, Layers, Tail, TimelineReader};
use palimpsest_runtime::TaskScope;
use palimpsest_store::StorePath;
use palimpsest_types::ByteCount;
use tokio::sync::watch;

use super::{
    error::ServeError,
    follow::{FollowError, Follower},
    opening::{Attempts, Opening},
    timelines::Shared,
    within::within,
};

/// One timeline: opened from its manifest when it is wanted, then kept up with by the change feed, and
/// by newer manifests as changes become layers.
#[derive(Debug)]
pub(super) struct Served {
    timeline: TimelineRef,
    opened: OnceLock<Opened>,
    wanted: watch::Sender<bool>,
    /// Whether it may change.
    followed: watch::Sender<bool>,
    opening: watch::Sender<Attempts>,
}

/// What is needed to read it and to keep up with it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) reader: Arc<TimelineReader<TenantRedo>>,
    pub(super) tail: Arc<Tail>,
    pub(super) manifests: TimelineManifests,
    pub(super) files: LayerFiles,
}

/// How long to wait before something that failed is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(300);
/// How long a reader waits for an attempt to open a timeline.
const ATTEMPT: Duration = Duration::from_secs(10);

impl Served {
    /// Starts the task that opens and follows the timeline, once it is wanted.
    pub(super) fn start(
        timeline: TimelineRef,
        shared: Arc<Shared>,
        scope: &TaskScope,
    ) -> Arc<Self> {
        let served = Arc::new(Self {
            timeline,
            opened: OnceLock::new(),
            wanted: watch::Sender::new(false),
            followed: watch::Sender::new(false),
            opening: watch::Sender::default(),
        });
        let task = Arc::clone(&served);
        let token = scope.token().clone();
        scope.spawn("timeline", async move {
            // Cancel-safe: all that is lost is memory.
            tokio::select! {
                () = token.cancelled() => {}
                () = task.serve(&shared) => {}
            }
        });
        served
    }

    /// Opens it, unless that has begun.
    fn want(&self) {
        begin(&self.wanted);
    }

    /// Opens it and keeps up with it from now on.
    pub(super) fn follow(&self) {
        begin(&self.followed);
        self.want();
    }

    /// Whether somebody wants it.
    pub(super) fn is_wanted(&self) -> bool {
        *self.wanted.borrow()
    }

    /// Its reader. Waits for an attempt to open it; the first begins when somebody wants it.
    pub(super) async fn reader(&self) -> Result<Arc<TimelineReader<TenantRedo>>, ServeError> {
        if let Some(opened) = self.opened.get() {
            return Ok(Arc::clone(&opened.reader));
        }
        self.want();
        within(ATTEMPT, self.attempted()).await;
        let unopened = || self.opening.borrow().last().error(self.timeline);
        let opened = self.opened.get().ok_or_else(unopened)?;
        Ok(Arc::clone(&opened.reader))
    }

    /// Waits until an attempt to open it has ended that says how it is now.
    async fn attempted(&self) {
        let begun = self.opening.borrow().begun();
        let attempted = |attempts: &Attempts| attempts.is_answer(begun);
        // The sender is here, so it does not go away.
        let _ = self.opening.subscribe().wait_for(attempted).await;
    }

    /// Waits until it is open, or until it is known that waiting does not open it.
    pub(super) async fn settled(&self) {
        // The sender is here, so it does not go away.
        let settled = |attempts: &Attempts| attempts.last().is_settled();
        let _ = self.opening.subscribe().wait_for(settled).await;
    }

    /// What its changes take in memory.
    pub(super) fn tail_size(&self) -> ByteCount {
        let opened = self.opened.get();
        opened.map_or(ByteCount::ZERO, |opened| opened.tail.read().size())
    }

    async fn serve(&self, shared: &Shared) {
        let timeline = self.timeline;
        // The sender is here, so it does not go away.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted).await;
        let manifest = loop {
            self.opening.send_modify(Attempts::begin);
            let outcome = match self.open(shared).await {
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
            self.opening.send_modify(|attempts| attempts.end(outcome));
            tokio::time::sleep(RETRY).await;
        };
        tracing::info!(%timeline, lsn = %manifest.lsn, layers = manifest.layers().len(), "timeline opened");
        let Some(opened) = self.opened.get() else {
            return;
        };
        // The sender is here, so it does not go away.
        let _ = self
            .followed
            .subscribe()
            .wait_for(|followed| *followed)
            .await;
        let follower = Follower::new(timeline, shared, opened);
        // Both go on for ever.
        tokio::join!(
            follower.follow_feed(manifest.writer_epoch),
            follower.follow_manifests(),
        );
    }

    /// Opens the newest manifest; `None` while there is none.
    async fn open(&self, shared: &Shared) -> Result<Option<TimelineManifest>, FollowError> {
        let TimelineRef {
            tenant,
            timeline: id,
        } = self.timeline;
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
        let reader = match manifest.ancestor {
            None => reader,
            Some(Ancestor { timeline, lsn }) => {
                let timeline = TimelineRef { tenant, timeline };
                reader.with_ancestor(shared.ancestor(timeline).await?, lsn)
            }
        };
        let opened = Opened {
            reader: Arc::new(reader),
            tail,
            manifests,
            files,
        };
        // Only this task sets it, and only once.
        let _ = self.opened.set(opened);
        self.opening
            .send_modify(|attempts| attempts.end(Opening::Done));
        Ok(Some(manifest))
    }
}

fn begin(flag: &watch::Sender<bool>) {
    flag.send_if_modified(|flag| !std::mem::replace(flag, true));
}
