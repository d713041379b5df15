//! How much requests for pages may take at once: of one stream, and of all together.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use palimpsest_types::{ByteCount, PAGE_SIZE};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::error::ServeError;

/// Lets streams in, and requests of theirs. Answers count until they are sent, so that clients who
/// don't read cost no more memory than is set.
#[derive(Debug)]
pub struct Admission {
    /// One permit per page of answers.
    pages: Arc<Semaphore>,
    /// What there is in all, in pages.
    budget: u32,
    streams: Arc<Semaphore>,
}

/// One stream's part.
#[derive(Debug)]
pub struct Lane {
    pages: Arc<Semaphore>,
    /// One permit per page of this stream's answers.
    own_pages: Arc<Semaphore>,
    share: u32,
    /// Requests that are worked on or whose answers are not sent.
    slots: Arc<Semaphore>,
    unsent: Mutex<Unsent>,
    _stream: OwnedSemaphorePermit,
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
/// Requests of one stream that are worked on at once, or whose answers are not sent.
const SLOTS: usize = 64;
/// Streams that can have the whole budget between them: a client that does not read takes no more.
const SHARES: u32 = 8;
/// How long a request waits for room that others take.
const PATIENCE: Duration = Duration::from_secs(10);

impl Admission {
    /// Room for so many bytes of answers.
    pub fn new(answers: ByteCount) -> Self {
        let pages = answers.get() / PAGE_SIZE as u64;
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let budget = u32::try_from(pages).unwrap_or(u32::MAX).clamp(1, most);
        Self {
            pages: Arc::new(Semaphore::new(budget as usize)),
            budget,
            streams: Arc::new(Semaphore::new(STREAMS)),
        }
    }

    /// Lets a stream in.
    ///
    /// # Errors
    /// If there are too many.
    pub fn open(&self) -> Result<Lane, ServeError> {
        let stream = Arc::clone(&self.streams).try_acquire_owned();
        let share = (self.budget / SHARES).max(1);
        Ok(Lane {
            pages: Arc::clone(&self.pages),
            own_pages: Arc::new(Semaphore::new(share as usize)),
            share,
            slots: Arc::new(Semaphore::new(SLOTS)),
            unsent: Mutex::default(),
            _stream: stream.map_err(|_| ServeError::TooManyStreams { limit: STREAMS })?,
        })
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
    /// Waits until a request for so many pages can be worked on. One for more than the stream's share
    /// takes all of it, and so is worked on alone.
    ///
    /// # Errors
    /// If other streams take all room for too long.
    pub async fn enter(&self, pages: usize) -> Result<Room, ServeError> {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX).min(self.share);
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

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use palimpsest_types::ErrorKind;

    use super::*;

    fn pages(count: u64) -> ByteCount {
        ByteCount::new(count * PAGE_SIZE as u64)
    }

    #[tokio::test(start_paused = true)]
    async fn p7_a_stream_that_is_not_read_takes_no_more_than_its_share() {
        let admission = Admission::new(pages(80));
        let stuck = admission.open().unwrap();
        let held = stuck.enter(10).await.unwrap();
        assert!(stuck.enter(1).now_or_never().is_none(), "beyond its share");
        assert_eq!(admission.in_use(), (pages(10), pages(80)));
        let other = admission.open().unwrap();
        other.enter(10).await.unwrap();
        drop(held);
        stuck.enter(1000).await.unwrap();
        assert_eq!(admission.in_use(), (pages(0), pages(80)));
    }

    #[tokio::test(start_paused = true)]
    async fn p7_with_no_room_left_a_request_is_refused_after_a_while() {
        let admission = Admission::new(pages(80));
        let lanes: Vec<_> = (0..9).map(|_| admission.open().unwrap()).collect();
        let mut rooms = Vec::new();
        for lane in &lanes[..8] {
            rooms.push(lane.enter(10).await.unwrap());
        }
        let error = lanes[8].enter(1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Throttled);
        rooms.pop();
        lanes[8].enter(1).await.unwrap();
    }

    #[tokio::test]
    async fn small_requests_wait_for_a_slot() {
        let admission = Admission::new(pages(80_000));
        let lane = admission.open().unwrap();
        let mut rooms = Vec::new();
        for _ in 0..SLOTS {
            rooms.push(lane.enter(1).await.unwrap());
        }
        assert!(lane.enter(1).now_or_never().is_none());
        rooms.pop();
        lane.enter(1).await.unwrap();
    }

    #[test]
    fn p7_there_are_only_so_many_streams() {
        let admission = Admission::new(pages(1));
        let mut lanes: Vec<_> = (0..STREAMS).map(|_| admission.open().unwrap()).collect();
        let error = admission.open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Throttled);
        lanes.pop();
        admission.open().unwrap();
    }

    #[test]
    fn a_client_is_stuck_since_it_last_took_an_answer() {
        let lane = Admission::new(pages(1)).open().unwrap();
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(lane.stuck_for(begun), Duration::ZERO);
        lane.ready(begun);
        lane.ready(begun + second);
        assert_eq!(lane.stuck_for(begun + 3 * second), 3 * second);
        lane.sent(begun + 3 * second);
        assert_eq!(lane.stuck_for(begun + 5 * second), 2 * second);
        lane.sent(begun + 5 * second);
        assert_eq!(lane.stuck_for(begun + 9 * second), Duration::ZERO);
    }
}
