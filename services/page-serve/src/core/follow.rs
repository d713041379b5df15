//! Keeping up with one timeline: by its change feed, and by newer manifests.

#[cfg(test)]
mod tests;

use std::time::Duration;

use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::ClusterView,
    channel::connect_lazily,
    feed::{self, FeedBatch},
};
use palimpsest_layer::DeltaLayer as _;
use palimpsest_manifest::{ManifestError, TimelineManifest};
use palimpsest_read::{Layers, ReadError, Tail, TailError};
use palimpsest_types::{ByteCount, ErrorKind, Lsn, WriterEpoch};
use tokio::sync::Notify;

use super::{
    error::ServeError,
    room::Share,
    served::{Opened, RETRY},
    timelines::Shared,
};

/// Keeps an open timeline up.
pub(super) struct Follower<'a> {
    timeline: TimelineRef,
    shared: &'a Shared,
    opened: &'a Opened,
    share: Share,
    /// A newer manifest is needed, or worth a look.
    look: Notify,
}

/// Why a timeline can't be followed at the moment.
#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
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
    #[error("changes of all timelines fill their memory")]
    NoRoom,
    #[error("the manifest is gone")]
    NoManifest,
    #[error("there is no timeline {0}, which it begins on")]
    NoAncestor(TimelineRef),
    #[error("what it begins on can't be read: {0}")]
    Ancestor(#[from] ServeError),
}

/// How a feed ended.
enum Ended {
    Feed(Result<(), FollowError>),
    /// The timeline has another writer.
    Superseded,
    /// Another timeline needs the room.
    GivesWay,
}

/// How often the manifest is looked at when nothing tells of a newer one.
const LOOK: Duration = Duration::from_secs(20);
/// The tail is let go of in pieces of this size, or of a part of the room that it may have.
const PIECE: ByteCount = ByteCount::mib(16);
const PIECES: u64 = 8;

fn piece_of(room: ByteCount) -> ByteCount {
    PIECE.min(ByteCount::new(room.get() / PIECES))
}

impl<'a> Follower<'a> {
    /// One that has not begun.
    pub(super) fn new(timeline: TimelineRef, shared: &'a Shared, opened: &'a Opened) -> Self {
        Self {
            timeline,
            shared,
            opened,
            share: shared.room.join(timeline),
            look: Notify::new(),
        }
    }

    /// Follows the feed for ever. A feed that breaks is resumed where the tail ends.
    pub(super) async fn follow_feed(&self, mut newest_epoch: WriterEpoch) {
        let (timeline, tail) = (self.timeline, &self.opened.tail);
        let opened_at = tail.newest();
        let mut cluster = self.shared.cluster.clone();
        loop {
            self.wait_for_room().await;
            let writer = writer_of(timeline, &cluster.borrow_and_update());
            if let Some(writer) = writer {
                let another = |view: &ClusterView| {
                    writer_of(timeline, view).is_some_and(|newest| newest != writer)
                };
                // Cancel-safe: a batch that has come is in the tail, and the next writer is asked
                // for what follows it. A writer that sleeps keeps its connections, and one that
                // was superseded says nothing more, so neither ends the feed by itself.
                let ended = tokio::select! {
                    ended = self.follow_once(&writer, &mut newest_epoch) => Ended::Feed(ended),
                    Ok(_) = cluster.wait_for(another) => Ended::Superseded,
                    () = self.share.is_needed() => Ended::GivesWay,
                };
                match ended {
                    Ended::Superseded => continue,
                    Ended::GivesWay => self.give_way().await,
                    Ended::Feed(Ok(())) => {}
                    Ended::Feed(Err(error)) if error.asks_for_layers() => self.look.notify_one(),
                    Ended::Feed(Err(error)) => {
                        // Until the first batch has come, the writer may just not be ready yet.
                        if tail.newest() > opened_at {
                            self.shared.metrics.feed_breaks.inc();
                            tracing::warn!(%timeline, %writer, at = %tail.newest(), error = &error as &dyn std::error::Error, "not following the timeline; trying again");
                        }
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow_once(
        &self,
        writer: &str,
        newest_epoch: &mut WriterEpoch,
    ) -> Result<(), FollowError> {
        let tail = &self.opened.tail;
        let channel = connect_lazily(writer)?;
        let from = tail.newest();
        let mut stream = feed::subscribe(channel, self.timeline, from).await?;
        while let Some(batch) = stream.next().await? {
            accept_epoch(&batch, newest_epoch, tail)?;
            if tail.newest() < from {
                return Err(FollowError::Rewound(tail.newest()));
            }
            if !batch.records.is_empty() && !self.share.may_grow() {
                return Err(FollowError::NoRoom);
            }
            tail.extend(batch.records, batch.up_to, self.shared.room.limit())?;
            // In a small room, too, layers make place for what comes, a piece at a time.
            if tail.read().open_size() >= piece_of(self.share.bound()) {
                tail.freeze();
            }
            self.share.hold(tail.read().size());
        }
        Ok(())
    }

    /// Waits until the tail may grow. While it may not, nothing is asked for, as nothing could be
    /// kept; what has come is served, later LSNs are "not yet".
    async fn wait_for_room(&self) {
        let (timeline, tail) = (self.timeline, &self.opened.tail);
        let mut full = false;
        while !self.share.may_grow() {
            if !full {
                let (size, limit) = (tail.read().size(), self.share.bound());
                tracing::warn!(%timeline, %size, %limit, at = %tail.newest(), "the changes of all timelines, or of the tenant's, fill their memory; going on when there is room");
            }
            full = true;
            // A newer manifest makes room.
            self.look.notify_one();
            // Cancel-safe: nothing is lost but a while.
            tokio::select! {
                () = self.share.is_needed() => self.give_way().await,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        if full {
            tracing::info!(%timeline, at = %tail.newest(), "there is room for changes of the timeline again");
        }
    }

    /// Lets go of all changes, so that a smaller timeline goes on. This one is served as far as layers
    /// go, until these have come to where it was or all that it had fits again: otherwise two large
    /// ones would drive each other out in turns.
    async fn give_way(&self) {
        let Opened { reader, tail, .. } = self.opened;
        let was = tail.newest();
        let (epoch, had) = {
            let pieces = tail.read();
            (pieces.epoch(), pieces.size())
        };
        let layers = reader.layers().lsn();
        tail.rewind(epoch, layers);
        // What is left begins before, and layers have it.
        tail.drop_until(layers);
        self.share.hold(tail.read().size());
        self.shared.metrics.gave_way.inc();
        let timeline = self.timeline;
        tracing::warn!(%timeline, at = %tail.newest(), %was, "the timeline lets go of its changes, so that others have room; later LSNs wait for layers");
        while reader.layers().lsn() < was && !self.share.has_room_for(had) {
            self.look.notify_one();
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Takes newer manifests as they come, so that the tail can let go of what layers have.
    pub(super) async fn follow_manifests(&self) {
        let timeline = self.timeline;
        let mut cluster = self.shared.cluster.clone();
        loop {
            let at = self.opened.reader.layers().lsn();
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
            if let Err(error) = self.take_newest().await {
                tracing::warn!(%timeline, error = &error as &dyn std::error::Error, "can't read the newest manifest; trying again");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Reads layers up to the newest manifest, then lets go of what they have.
    async fn take_newest(&self) -> Result<(), FollowError> {
        let Opened {
            reader,
            tail,
            manifests,
            files,
        } = self.opened;
        let newest = manifests.newest().await?;
        let manifest = newest.ok_or(FollowError::NoManifest)?.state;
        let before = reader.layers();
        if before.are_superseded_by(&manifest) {
            let layers = Layers::open(files.clone(), &manifest, Some(&before)).await?;
            let timeline = self.timeline;
            tracing::debug!(%timeline, lsn = %layers.lsn(), "taking a newer manifest");
            reader.advance(layers);
        }
        take_over(&manifest, tail);
        self.share.hold(tail.read().size());
        Ok(())
    }
}

impl FollowError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Manifest(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Feed(error) => error.kind,
            Self::Ancestor(error) => error.kind(),
            Self::NoAncestor(_)
            | Self::Tail(_)
            | Self::Fenced { .. }
            | Self::Rewound(_)
            | Self::NoRoom
            | Self::NoManifest => ErrorKind::NotReady,
        }
    }

    /// Whether a newer manifest may help: the feed begins later than we are, or memory is short.
    fn asks_for_layers(&self) -> bool {
        match self {
            Self::Feed(error) => error.kind == ErrorKind::Conflict,
            Self::Tail(error) => matches!(error, TailError::Full { .. }),
            Self::NoRoom => true,
            _ => false,
        }
    }
}

/// Where a timeline is written, if anywhere.
fn writer_of(timeline: TimelineRef, view: &ClusterView) -> Option<String> {
    view.timeline(timeline)?.writer.clone()
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
    begin_epoch(batch.epoch, batch.epoch_start, tail);
    Ok(())
}

/// What a manifest, whose layers are read by now, means for the changes that are held: those of its
/// layers go, and if it is of a newer writer, so do those that an older one told of later LSNs.
fn take_over(manifest: &TimelineManifest, tail: &Tail) {
    begin_epoch(manifest.writer_epoch, manifest.epoch_start, tail);
    if tail.newest() < manifest.lsn {
        // The feed does not begin so early any more.
        let epoch = tail.read().epoch();
        tail.rewind(epoch, manifest.lsn);
    } else {
        // The piece that grows is never dropped: what of it layers have would stay while nothing comes.
        tail.freeze();
        tail.drop_until(manifest.lsn);
    }
}

/// Forgets what an older writer told of LSNs after the start of a newer one.
fn begin_epoch(epoch: WriterEpoch, start: Lsn, tail: &Tail) {
    if epoch > tail.read().epoch() {
        tail.rewind(epoch, start.min(tail.newest()));
    }
}
