//! Following a timeline from any LSN since the manifest's: from memory, and from the local WAL as
//! far back as memory does not reach.

use palimpsest_api::feed::FeedBatch;
use palimpsest_layer::LogRecord;
use palimpsest_types::{ErrorKind, Lsn};
use tokio::sync::watch;

use super::{
    error::IngestError,
    laggard::{BATCH, Laggard, Portion},
    subscribers::Subscriber,
    timeline::Feed,
};

/// One who follows a timeline. Slow ones hold nobody up: memory that is needed is let go of, and
/// they read the local WAL instead.
#[derive(Debug)]
pub struct Follower {
    feed: Feed,
    after: Lsn,
    newest: watch::Receiver<Lsn>,
    place: Place,
}

/// What cannot be told any more.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The object store has it, and only that.
    #[error("changes after {asked} are in layers up to {start} already; read the manifest")]
    Gone {
        /// What the follower has.
        asked: Lsn,
        /// Where the manifest's layers end.
        start: Lsn,
    },
    /// The local WAL can't be decoded again.
    #[error("local WAL can't be read again for a feed that is behind")]
    Local(#[source] Box<IngestError>),
    /// Nothing more will come from here.
    #[error("this writer has ended; ask the timeline's next one")]
    Over,
}

#[derive(Debug, Default)]
enum Place {
    /// Not known before something was looked for.
    #[default]
    Unknown,
    /// What memory has comes next. While it does, memory is kept if it can be.
    Memory(Subscriber),
    /// What comes next is on the disk only.
    Disk(Box<Laggard>),
}

impl FollowError {
    /// What the follower may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Gone { .. } => ErrorKind::Conflict,
            Self::Local(_) => ErrorKind::Internal,
            Self::Over => ErrorKind::NotReady,
        }
    }
}

impl Follower {
    /// One who has everything up to `after`.
    pub(super) fn new(feed: Feed, after: Lsn) -> Self {
        let newest = feed.tail.watch();
        Self {
            feed,
            after,
            newest,
            place: Place::Unknown,
        }
    }

    /// Who writes the timeline, and since where: what a follower must know before anything else. If
    /// that is before what it has, it is to ask again from there.
    pub fn head(&self) -> FeedBatch {
        self.batch(Vec::new(), Lsn::ZERO)
    }

    /// The next changes, when there are any. A follower whose call was cancelled is of no more use.
    ///
    /// # Errors
    /// If they can't be told from here.
    pub async fn next(&mut self) -> Result<FeedBatch, FollowError> {
        let over = self.feed.over.clone();
        // The caller gives up the follower after an error, so nothing is lost.
        tokio::select! {
            () = over.cancelled() => Err(FollowError::Over),
            next = self.wait_for_next() => next,
        }
    }

    async fn wait_for_next(&mut self) -> Result<FeedBatch, FollowError> {
        loop {
            let held = self.feed.tail.read().log_after(self.after, BATCH);
            match held {
                Some((records, up_to)) => {
                    let more = up_to > self.after;
                    self.after = self.after.max(up_to);
                    self.stay_in_memory();
                    if more {
                        return Ok(self.batch(records, up_to));
                    }
                    let changed = self.newest.changed().await;
                    changed.map_err(|_| FollowError::Over)?;
                }
                None => {
                    if let Some(batch) = self.read_disk().await? {
                        return Ok(batch);
                    }
                }
            }
        }
    }

    /// Counts among those for whom memory is kept.
    fn stay_in_memory(&mut self) {
        match &self.place {
            Place::Memory(subscriber) => subscriber.has(self.after),
            Place::Unknown | Place::Disk(_) => {
                if let Place::Disk(_) = self.place {
                    tracing::info!(at = %self.after, "a feed that was behind has caught up with memory");
                }
                self.place = Place::Memory(self.feed.subscribers.join(self.after));
            }
        }
    }

    /// Goes on in the local WAL; `None` if that has brought nothing new, and memory, the manifest or
    /// the WAL is to be looked at again.
    async fn read_disk(&mut self) -> Result<Option<FeedBatch>, FollowError> {
        let history = &self.feed.history;
        let laggard = match std::mem::take(&mut self.place) {
            Place::Disk(laggard) => *laggard,
            Place::Unknown | Place::Memory(_) => history.begin(self.after).await?,
        };
        // Memory may have moved on since it was looked at; it never goes back.
        let until = self.feed.tail.read().start();
        let (laggard, portion) = history.next(laggard, self.after, until).await?;
        let Portion::Decoded(records, up_to) = portion else {
            return Ok(None);
        };
        self.place = Place::Disk(Box::new(laggard));
        if up_to <= self.after {
            return Ok(None);
        }
        self.after = up_to;
        Ok(Some(self.batch(records, up_to)))
    }

    fn batch(&self, records: Vec<LogRecord>, up_to: Lsn) -> FeedBatch {
        FeedBatch {
            epoch: self.feed.epoch,
            epoch_start: self.feed.epoch_start,
            up_to,
            records,
        }
    }
}
