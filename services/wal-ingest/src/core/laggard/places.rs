//! How many laggards of a node are served at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::core::follow::FollowError;

/// The laggards of a node. Decoding is what they cost, so places are taken for that alone: a
/// subscriber that is slow to take what it is sent keeps nobody else waiting.
#[derive(Debug)]
pub(in crate::core) struct Places {
    decoding: Arc<Semaphore>,
    behind: AtomicUsize,
}

/// One laggard of a node, until it is dropped.
#[derive(Debug)]
pub(super) struct Behind(Arc<Places>);

impl Places {
    /// So many may decode at once.
    pub(in crate::core) fn new(places: usize) -> Self {
        Self {
            decoding: Arc::new(Semaphore::new(places)),
            behind: AtomicUsize::new(0),
        }
    }

    /// How many laggards there are.
    pub(in crate::core) fn behind(&self) -> usize {
        self.behind.load(Ordering::Relaxed)
    }

    /// One more laggard.
    pub(super) fn join(self: &Arc<Self>) -> Behind {
        self.behind.fetch_add(1, Ordering::Relaxed);
        Behind(Arc::clone(self))
    }

    /// A place to decode some WAL, in turn.
    pub(super) async fn decode(&self) -> Result<OwnedSemaphorePermit, FollowError> {
        let place = Arc::clone(&self.decoding).acquire_owned().await;
        place.map_err(|_| FollowError::Over)
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.0.behind.fetch_sub(1, Ordering::Relaxed);
    }
}
