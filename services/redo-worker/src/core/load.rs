//! The jobs of a process: it does them in the order in which it gets them, so those that nobody waits for get
//! there a few at a time.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use palimpsest_api::redo::Urgency;
use tokio::sync::{Mutex, Notify};

/// What a process has to do, and what waits in front of it.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Jobs that somebody waits for. All are with the process.
    awaited: AtomicUsize,
    /// Those in the background that are with the process.
    placed: AtomicUsize,
    /// All in the background.
    background: AtomicUsize,
    /// Held by the one that has the next place. Its queue is fair.
    next: Mutex<()>,
    /// There may be a place for that one.
    changed: Notify,
}

/// A job of a process, until dropped.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    load: &'a Load,
    urgency: Urgency,
    placed: bool,
}

/// One that is worked on and the next, so that a process with nothing else to do need not wait for it.
const LEAST: usize = 2;
/// Beside so many jobs that somebody waits for there is one in the background: so images are made however many
/// reads there are, which are slow without them.
const SHARE: usize = 4;

impl Load {
    /// How much it has to do, for a job that may be given to another process.
    pub(super) fn rank(&self, urgency: Urgency) -> usize {
        match urgency {
            Urgency::Awaited => self.awaited.load(SeqCst) + self.placed.load(SeqCst),
            Urgency::Background => self.background.load(SeqCst),
        }
    }

    /// Waits until a job may be given to the process. Dropping the future gives up its place.
    pub(super) async fn enter(&self, urgency: Urgency) -> Entered<'_> {
        let mut entered = Entered {
            load: self,
            urgency,
            placed: false,
        };
        match urgency {
            Urgency::Awaited => {
                self.awaited.fetch_add(1, SeqCst);
                if self.background.load(SeqCst) > 0 {
                    self.changed.notify_one();
                }
            }
            Urgency::Background => {
                self.background.fetch_add(1, SeqCst);
                let _next = self.next.lock().await;
                while self.placed.load(SeqCst) >= places(self.awaited.load(SeqCst)) {
                    self.changed.notified().await;
                }
                self.placed.fetch_add(1, SeqCst);
                entered.placed = true;
            }
        }
        entered
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        match self.urgency {
            Urgency::Awaited => {
                self.load.awaited.fetch_sub(1, SeqCst);
            }
            Urgency::Background => {
                self.load.background.fetch_sub(1, SeqCst);
                if self.placed {
                    self.load.placed.fetch_sub(1, SeqCst);
                    self.load.changed.notify_one();
                }
            }
        }
    }
}

/// How many jobs in the background may be with a process beside those that somebody waits for.
fn places(awaited: usize) -> usize {
    LEAST.max(awaited / SHARE)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt as _;
    use tokio::task::yield_now;

    use super::*;

    #[test]
    fn reads_wait_for_few_others_and_leave_them_a_share() {
        let expected = [(0, 2), (1, 2), (11, 2), (12, 3), (64, 16), (256, 64)];
        assert_eq!(
            expected.map(|(awaited, _)| (awaited, places(awaited))),
            expected
        );
    }

    #[tokio::test]
    async fn places_come_and_go_with_what_is_awaited() {
        let load = Arc::new(Load::default());
        let background = |load: &Arc<Load>| {
            let load = Arc::clone(load);
            tokio::spawn(async move {
                let _entered = load.enter(Urgency::Background).await;
                std::future::pending::<()>().await;
            })
        };
        let jobs: Vec<_> = (0..10).map(|_| background(&load)).collect();
        let placed = async || {
            for _ in 0..100 {
                yield_now().await;
            }
            load.placed.load(SeqCst)
        };
        assert_eq!(placed().await, 2);
        assert_eq!(load.rank(Urgency::Background), 10);
        let mut awaited = Vec::new();
        for _ in 0..20 {
            let entered = load.enter(Urgency::Awaited).now_or_never();
            awaited.push(entered.expect("nothing waits for a place but the background"));
        }
        assert_eq!(placed().await, 5);
        assert_eq!(load.rank(Urgency::Awaited), 25);
        awaited.clear();
        // Those that are there stay, and nobody takes their places.
        assert_eq!(placed().await, 5);
        for job in jobs.iter().take(3) {
            job.abort();
        }
        assert_eq!(placed().await, 2);
        // One that is given up while it is next makes way.
        jobs[5].abort();
        jobs[3].abort();
        assert_eq!(placed().await, 2);
        jobs.iter().for_each(|job| job.abort());
        assert_eq!(placed().await, 0);
        assert_eq!(load.rank(Urgency::Background), 0);
    }
}
