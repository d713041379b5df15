//! One timeline, from its assignment to its end.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use palimpsest_api::{
    TimelineRef,
    broker::{Assignment, TimelineState, TimelineStatus},
};
use palimpsest_manifest::{TimelineManifest, TimelineManifests, Versioned};
use palimpsest_postgres::SlotName;
use palimpsest_read::{BaseLayers, Tail};
use palimpsest_store::StorePath;
use palimpsest_types::{BlockNumber, Fork, Key, Lsn, RelTag};
use palimpsest_wal::{RelationSizes, SegmentSize, Value};
use tokio::sync::watch;

use super::{
    attach,
    decoder::Decoder,
    error::{IngestError, Remedy},
    node::Shared,
    stream,
    wal_files::WalFiles,
};

/// What the node and the feed know of a timeline.
#[derive(Debug)]
pub(super) struct Timeline {
    pub(super) assignment: Assignment,
    pub(super) slot: SlotName,
    pub(super) shared: Arc<Shared>,
    status: watch::Sender<TimelineStatus>,
    tail: OnceLock<Arc<Tail>>,
}

/// A timeline that is ready to read more WAL.
pub(super) struct Resumed {
    pub(super) manifest: TimelineManifest,
    pub(super) files: WalFiles,
    pub(super) decoder: Decoder,
}

/// Between attempts, growing from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

impl Timeline {
    pub(super) fn new(assignment: Assignment, slot: SlotName, shared: Arc<Shared>) -> Self {
        let (status, _) = watch::channel(TimelineStatus::default());
        Self {
            assignment,
            slot,
            shared,
            status,
            tail: OnceLock::new(),
        }
    }

    pub(super) fn id(&self) -> TimelineRef {
        self.assignment.timeline
    }

    pub(super) fn status(&self) -> TimelineStatus {
        self.status.borrow().clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut TimelineStatus)) {
        self.status.send_modify(change);
    }

    pub(super) fn tail(&self) -> Option<&Arc<Tail>> {
        self.tail.get()
    }

    pub(super) fn wal_directory(&self) -> PathBuf {
        self.directory().join("pg_wal")
    }

    /// Everything local of this timeline.
    pub(super) fn directory(&self) -> PathBuf {
        let TimelineRef { tenant, timeline } = self.id();
        self.shared
            .directory
            .join(tenant.to_string())
            .join(timeline.to_string())
    }

    pub(super) fn store_path(&self) -> StorePath {
        let TimelineRef { tenant, timeline } = self.id();
        StorePath::timeline(tenant, timeline)
    }

    pub(super) fn manifests(&self) -> TimelineManifests {
        let TimelineRef { tenant, timeline } = self.id();
        TimelineManifests::new(self.shared.store.clone(), tenant, timeline)
    }

    /// Attaches or resumes, then reads WAL until something can't be mended.
    pub(super) async fn run(&self) {
        let resumed = match self.prepare().await {
            Ok(resumed) => resumed,
            Err(error) => return self.stop(&error),
        };
        stream::run(self, resumed).await;
    }

    /// What can't be done at the moment is tried again; an attach that fails is not.
    async fn prepare(&self) -> Result<Resumed, IngestError> {
        let mut back_off = BackOff::default();
        loop {
            let outcome = match self.manifests().newest().await {
                Ok(Some(manifest)) => self.resume(manifest).await,
                Ok(None) => {
                    self.update(|status| status.state = TimelineState::Attaching);
                    attach::attach(self).await?;
                    continue;
                }
                Err(error) => Err(error.into()),
            };
            match outcome {
                Err(error) if error.remedy() == Remedy::Retry => {
                    tracing::warn!(timeline = %self.id(), error = error.in_words(), "can't resume the timeline; trying again");
                    back_off.wait().await;
                }
                done => return done,
            }
        }
    }

    /// Takes the timeline over under a new epoch and decodes the WAL that is on our disk.
    async fn resume(&self, newest: Versioned<TimelineManifest>) -> Result<Resumed, IngestError> {
        let Versioned {
            number,
            state: mut manifest,
        } = newest;
        let epoch = manifest
            .writer_epoch
            .next()
            .unwrap_or(manifest.writer_epoch);
        manifest.writer_epoch = epoch;
        self.manifests().publish(number, manifest.clone()).await?;
        let directory = self.store_path().child("layers");
        let store = self.shared.store.clone();
        let base = BaseLayers::open(store, &directory, manifest.lsn, &manifest.layers).await?;
        let sizes = base_sizes(&base).await?;
        let tail = Arc::new(Tail::new(epoch, manifest.lsn));
        let segment_size = SegmentSize::new(manifest.source.wal_segment_size.get())
            .unwrap_or(SegmentSize::DEFAULT);
        let limit = self.shared.limits.tail;
        let decoder = Decoder::new(manifest.lsn, segment_size, sizes, Arc::clone(&tail), limit);
        let (wal, pg_timeline, start) = (
            self.wal_directory(),
            manifest.source.pg_timeline,
            manifest.lsn,
        );
        let read_back = tokio::task::spawn_blocking(move || {
            let files = WalFiles::open(wal, segment_size, pg_timeline, start)?;
            read_back(files, decoder, start)
        });
        let (files, decoder) = read_back.await.map_err(|error| IngestError::WalFile {
            path: self.wal_directory(),
            source: std::io::Error::other(error),
        })??;
        self.update(|status| {
            status.epoch = epoch;
            status.remote_consistent = manifest.lsn;
            status.oldest_readable = manifest.oldest_readable;
            status.received = files.end();
            status.flushed = files.end();
            status.last_record = decoder.last_record();
        });
        // Set once: a timeline is prepared once in the life of this value.
        let _ = self.tail.set(tail);
        tracing::info!(timeline = %self.id(), %epoch, at = %decoder.last_record(), "timeline resumed");
        Ok(Resumed {
            manifest,
            files,
            decoder,
        })
    }

    /// The end of the road: says why.
    pub(super) fn stop(&self, error: &IngestError) {
        let reason = error.in_words();
        tracing::error!(timeline = %self.id(), reason, "timeline stopped");
        self.update(|status| {
            status.state = TimelineState::Stopped;
            status.reason = reason;
        });
    }
}

/// Decodes what is on our disk. Bytes at the end that are not WAL were cut off by a crash and are
/// dropped: the source still has them, because they were never acknowledged.
fn read_back(
    mut files: WalFiles,
    mut decoder: Decoder,
    start: Lsn,
) -> Result<(WalFiles, Decoder), IngestError> {
    let mut damaged = None;
    files.read(start, |at, bytes| {
        if damaged.is_none() {
            match decoder.decode(at, bytes) {
                Err(IngestError::Wal(error)) => damaged = Some(error),
                other => other?,
            }
        }
        Ok(())
    })?;
    if let Some(error) = damaged {
        tracing::warn!(%error, from = %decoder.last_record(), "the end of the local WAL is damaged; reading it again from the source");
        files.truncate(decoder.last_record())?;
        decoder.resync();
    }
    Ok((files, decoder))
}

async fn base_sizes(base: &BaseLayers) -> Result<RelationSizes, IngestError> {
    let first = RelTag {
        spc: 0,
        db: 0,
        rel: 0,
        fork: Fork::Main,
    };
    let all = Key::RelSize(first)..Key::RelBlock(first, BlockNumber::ZERO);
    let mut sizes = RelationSizes::default();
    for (key, value) in base.range(all).await? {
        if let (Key::RelSize(rel), Value::RelSize(blocks)) = (key, value) {
            sizes.set(rel, blocks);
        }
    }
    Ok(sizes)
}

/// Waits longer after each failure, with jitter so that many do not come back at once.
#[derive(Debug)]
pub(super) struct BackOff {
    next: Duration,
}

impl Default for BackOff {
    fn default() -> Self {
        Self { next: BACK_OFF.0 }
    }
}

impl BackOff {
    pub(super) async fn wait(&mut self) {
        let jitter = self.next.mul_f64(rand::random::<f64>() / 2.0);
        tokio::time::sleep(self.next + jitter).await;
        self.next = (self.next * 2).min(BACK_OFF.1);
    }
}
