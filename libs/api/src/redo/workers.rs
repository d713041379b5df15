//! What is known about the workers: what each has to do, and which are left alone for a while.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use super::{Job, connection::ConnectionError};

/// What is known about the workers, by address.
#[derive(Debug, Default)]
pub(super) struct Workers {
    pub(super) connected: HashMap<String, Worker>,
    failed: HashMap<String, Failed>,
}

/// A worker, and the way to it.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) address: String,
    pub(super) jobs: mpsc::Sender<Job>,
    outstanding: Arc<AtomicUsize>,
}

/// A worker whose connection ended. The broker takes a while to notice a death, and a dead worker
/// would look like the one with the least to do.
#[derive(Debug, Clone, Copy)]
struct Failed {
    /// It gets no work until then.
    rests_until: Instant,
    /// Others are asked before it until then.
    doubted_until: Instant,
}

/// A job that a worker has and has not answered, until dropped.
pub(super) struct Outstanding(Arc<AtomicUsize>);

/// How long a worker is left alone after its connection ended.
pub(super) const REST: Duration = Duration::from_secs(1);
/// How long one that fell silent is the last to be asked: the next job may cost as much time again.
const DOUBT: Duration = Duration::from_secs(30);

impl Workers {
    /// Forgets those that are not among `alive` or whose connection has ended.
    pub(super) fn retain(&mut self, alive: &[String], now: Instant) {
        self.failed.retain(|_, failed| failed.doubted_until > now);
        self.connected
            .retain(|address, worker| alive.contains(address) && !worker.jobs.is_closed());
    }

    /// Whether there is no connection to a worker, and there should be one.
    pub(super) fn lacks(&self, address: &str, now: Instant) -> bool {
        let rests = |failed: &Failed| failed.rests_until > now;
        !self.connected.contains_key(address) && !self.failed.get(address).is_some_and(rests)
    }

    /// The one with the least to do, rather one that was not tried and has answered lately.
    pub(super) fn least_loaded(&self, tried: &[String]) -> Option<Worker> {
        let rank = |worker: &&Worker| {
            let doubted = self.failed.contains_key(&worker.address);
            let load = worker.outstanding.load(Ordering::Relaxed);
            (tried.contains(&worker.address), doubted, load)
        };
        self.connected.values().min_by_key(rank).cloned()
    }

    /// Leaves a worker alone whose connection has ended.
    pub(super) fn rest(&mut self, address: String, error: Option<&ConnectionError>, now: Instant) {
        let rests_until = now + REST;
        let doubted_until = match error {
            Some(ConnectionError::Silent(_)) => now + DOUBT,
            Some(ConnectionError::Broke(_)) | None => rests_until,
        };
        let failed = Failed {
            rests_until,
            doubted_until,
        };
        self.failed.insert(address, failed);
    }
}

impl Worker {
    /// One with nothing to do yet.
    pub(super) fn new(address: String, jobs: mpsc::Sender<Job>) -> Self {
        Self {
            address,
            jobs,
            outstanding: Arc::default(),
        }
    }

    /// Counts a job as outstanding until the guard is dropped.
    pub(super) fn enter(&self) -> Outstanding {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Outstanding(Arc::clone(&self.outstanding))
    }

    /// Jobs without an answer.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(addresses: &[&str]) -> (Workers, Vec<mpsc::Receiver<Job>>) {
        let (mut workers, mut queues) = (Workers::default(), Vec::new());
        for address in addresses {
            let (jobs, queue) = mpsc::channel(1);
            let worker = Worker::new((*address).to_owned(), jobs);
            workers.connected.insert((*address).to_owned(), worker);
            queues.push(queue);
        }
        (workers, queues)
    }

    fn chosen(workers: &Workers, tried: &[&str]) -> String {
        let tried: Vec<_> = tried.iter().map(|address| (*address).to_owned()).collect();
        workers.least_loaded(&tried).unwrap().address
    }

    #[test]
    fn the_least_loaded_is_chosen_and_the_tried_only_if_there_is_no_other() {
        let (workers, _queues) = workers(&["a", "b"]);
        let _load = workers.connected["a"].enter();
        assert_eq!(chosen(&workers, &[]), "b");
        assert_eq!(chosen(&workers, &["b"]), "a");
        assert_eq!(chosen(&workers, &["a", "b"]), "b");
    }

    #[test]
    fn one_that_fell_silent_rests_and_is_then_asked_last_for_a_while() {
        let (mut workers, _queues) = workers(&["a", "b"]);
        let now = Instant::now();
        let alive = ["a".to_owned(), "b".to_owned()];
        workers.rest("a".to_owned(), Some(&ConnectionError::Silent(REST)), now);
        let a = workers.connected.remove("a").unwrap();
        assert!(!workers.lacks("a", now));
        assert!(workers.lacks("a", now + REST));
        workers.connected.insert("a".to_owned(), a);
        let _load = workers.connected["b"].enter();
        assert_eq!(chosen(&workers, &[]), "b");
        assert_eq!(chosen(&workers, &["b"]), "a", "rather than once again");
        workers.retain(&alive, now + DOUBT);
        assert_eq!(chosen(&workers, &[]), "a");
    }

    #[test]
    fn one_whose_connection_broke_is_as_good_as_any_after_its_rest() {
        let (mut workers, _queues) = workers(&["a", "b"]);
        let now = Instant::now();
        workers.rest("a".to_owned(), None, now);
        let _load = workers.connected["b"].enter();
        workers.retain(&["a".to_owned(), "b".to_owned()], now + REST);
        assert_eq!(chosen(&workers, &[]), "a");
    }
}
