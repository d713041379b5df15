//! How much requests may take at once: those of one stream for pages, calls beside the streams, and all
//! together.

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use palimpsest_types::{ByteCount, PAGE_SIZE, SlruKind};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::{answer_memory::AnswerMemory, error::ServeError};

/// Lets streams in, and requests of theirs; and calls that are no streams. Answers count until they are
/// sent, so that clients who don't read cost no more memory than is set.
#[derive(Debug)]
pub struct Admission {
    /// What there is in all, in pages.
    budget: u32,
    pages: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Calls together have what one stream has.
    calls: Share,
    /// So have base backups, which last: others must not wait for their end.
    backups: Share,
}

/// One stream's part.
#[derive(Debug)]
pub struct Lane {
    share: Share,
    unsent: Mutex<Unsent>,
    _stream: OwnedSemaphorePermit,
}

/// What a call asks for that is answered outside of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A size, or a small file.
    Small,
    /// All pages of an SLRU segment.
    SlruSegment,
    /// All relations, or what is counted over them.
    Listing,
    /// All that a timeline is at an LSN.
    BaseBackup,
}

/// The part that some requests have of all room.
#[derive(Debug)]
struct Share {
    /// One permit per page of all answers.
    pages: Arc<Semaphore>,
    /// One permit per page of answers of these.
    own_pages: Arc<Semaphore>,
    own: u32,
    /// Requests that are worked on or whose answers are not sent.
    slots: Arc<Semaphore>,
}

/// What a request and its answer take, until dropped.
#[derive(Debug)]
pub struct Room {
    _permits: [OwnedSemaphorePermit; 3],
}

/// Answers that are ready and not sent.
#[derive(Debug, Default)]
struct Unsent {
    count: usize,
    /// Since when none of them was taken.
    since: Option<Instant>,
}

/// Streams at the same time.
const STREAMS: usize = 1024;
/// Requests of one stream, or calls, that are worked on at once, or whose answers are not sent.
const SLOTS: usize = 64;
/// What a listing counts as, in pages: how long it is shows only when it is made. That is what a hundred
/// thousand relations take while they are sent; making the list of them takes more, for a moment.
const LISTING: u32 = 256;
/// What a base backup counts as, in pages: those that are read ahead, and chunks that wait to be sent.
const BASE_BACKUP: u32 = 512;
/// How long a request waits for room that others take.
const PATIENCE: Duration = Duration::from_secs(10);

impl Admission {
    /// Room for so much of answers.
    pub fn new(answers: AnswerMemory) -> Self {
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let budget = u32::try_from(answers.pages()).unwrap_or(u32::MAX).min(most);
        let pages = Arc::new(Semaphore::new(budget as usize));
        Self {
            budget,
            streams: Arc::new(Semaphore::new(STREAMS)),
            calls: Share::new(budget, &pages),
            backups: Share::new(budget, &pages),
            pages,
        }
    }

    /// Lets a stream in.
    ///
    /// # Errors
    /// If there are too many.
    pub fn open(&self) -> Result<Lane, ServeError> {
        let stream = Arc::clone(&self.streams).try_acquire_owned();
        Ok(Lane {
            share: Share::new(self.budget, &self.pages),
            unsent: Mutex::default(),
            _stream: stream.map_err(|_| ServeError::TooManyStreams { limit: STREAMS })?,
        })
    }

    /// Waits until a call can be worked on.
    ///
    /// # Errors
    /// If others take all room for too long.
    pub async fn call(&self, call: Call) -> Result<Room, ServeError> {
        // Cancel-safe: who waits has nothing yet. Its share, too, is taken by others here.
        let share = match call {
            Call::BaseBackup => &self.backups,
            Call::Small | Call::SlruSegment | Call::Listing => &self.calls,
        };
        let entered = timeout(PATIENCE, share.enter(call.pages())).await;
        entered.unwrap_or(Err(ServeError::Overloaded { waited: PATIENCE }))
    }

    /// What answers take at the moment, and may take.
    pub fn in_use(&self) -> (ByteCount, ByteCount) {
        let free = self.pages.available_permits() as u64;
        let bytes = |pages: u64| ByteCount::new(pages * PAGE_SIZE as u64);
        let budget = u64::from(self.budget);
        (bytes(budget.saturating_sub(free)), bytes(budget))
    }
}

impl Lane {
    /// Waits until a request for so many pages can be worked on.
    ///
    /// # Errors
    /// If other streams take all room for too long.
    pub fn enter(&self, pages: usize) -> impl Future<Output = Result<Room, ServeError>> + Send {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        self.share.enter(pages)
    }

    /// An answer is ready to be sent.
    pub fn ready(&self, now: Instant) {
        let mut unsent = self.lock();
        unsent.count += 1;
        unsent.since.get_or_insert(now);
    }

    /// An answer is being sent.
    pub fn sent(&self, now: Instant) {
        let mut unsent = self.lock();
        unsent.count = unsent.count.saturating_sub(1);
        unsent.since = (unsent.count > 0).then_some(now);
    }

    /// For how long there have been answers of which the client takes none.
    pub fn stuck_for(&self, now: Instant) -> Duration {
        let since = self.lock().since;
        since
            .map(|since| now.saturating_duration_since(since))
            .unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// What it may take.
    const fn pages(self) -> u32 {
        match self {
            Self::Small => 1,
            Self::SlruSegment => SlruKind::PAGES_PER_SEGMENT,
            Self::Listing => LISTING,
            Self::BaseBackup => BASE_BACKUP,
        }
    }
}

impl Share {
    fn new(budget: u32, pages: &Arc<Semaphore>) -> Self {
        let own = budget / AnswerMemory::SHARES;
        Self {
            pages: Arc::clone(pages),
            own_pages: Arc::new(Semaphore::new(own as usize)),
            own,
            slots: Arc::new(Semaphore::new(SLOTS)),
        }
    }

    async fn enter(&self, pages: u32) -> Result<Room, ServeError> {
        // No request is for more; one that was would wait for ever.
        let pages = pages.min(self.own);
        // For its own answers to be read a client may wait as long as it likes.
        let slot = acquire(&self.slots, 1).await?;
        let own = acquire(&self.own_pages, pages).await?;
        let all = match at_once(&self.pages, pages) {
            Some(all) => all,
            None => timeout(PATIENCE, acquire(&self.pages, pages))
                .await
                .unwrap_or(Err(ServeError::Overloaded { waited: PATIENCE }))?,
        };
        Ok(Room {
            _permits: [slot, own, all],
        })
    }
}

async fn acquire(
    semaphore: &Arc<Semaphore>,
    permits: u32,
) -> Result<OwnedSemaphorePermit, ServeError> {
    if let Some(permit) = at_once(semaphore, permits) {
        return Ok(permit);
    }
    let permit = Arc::clone(semaphore).acquire_many_owned(permits).await;
    // They are never closed.
    permit.map_err(|_| ServeError::Overloaded {
        waited: Duration::ZERO,
    })
}

/// The permits, if nobody has to be waited for. Nearly always so: and waiting, even for nothing, counts
/// against what a task may do before it has to yield, at which a stream would go on in many tasks.
fn at_once(semaphore: &Arc<Semaphore>, permits: u32) -> Option<OwnedSemaphorePermit> {
    let permit = Arc::clone(semaphore).try_acquire_many_owned(permits);
    permit.ok()
}
