//! How far those have come who follow a timeline's feed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use palimpsest_types::Lsn;

/// The subscribers of one timeline. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Subscribers {
    positions: Arc<Mutex<Positions>>,
}

/// One subscriber, until it is dropped.
#[derive(Debug)]
pub(super) struct Subscriber {
    all: Subscribers,
    number: u64,
}

#[derive(Debug, Default)]
struct Positions {
    next: u64,
    by_number: HashMap<u64, Lsn>,
}

impl Subscribers {
    /// Somebody who has everything up to `at`.
    pub(super) fn join(&self, at: Lsn) -> Subscriber {
        let mut positions = self.lock();
        let number = positions.next;
        positions.next += 1;
        positions.by_number.insert(number, at);
        Subscriber {
            all: self.clone(),
            number,
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().by_number.len()
    }

    /// What the slowest has; `None` if there is nobody.
    pub(super) fn slowest(&self) -> Option<Lsn> {
        self.lock().by_number.values().min().copied()
    }

    fn lock(&self) -> MutexGuard<'_, Positions> {
        self.positions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber {
    /// It has everything up to `lsn` now.
    pub(super) fn has(&self, lsn: Lsn) {
        self.all.lock().by_number.insert(self.number, lsn);
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.all.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_counts_until_it_leaves() {
        let all = Subscribers::default();
        assert_eq!(all.slowest(), None);
        let (one, other) = (all.join(Lsn::new(10)), all.join(Lsn::new(20)));
        one.has(Lsn::new(30));
        assert_eq!(all.slowest(), Some(Lsn::new(20)));
        drop(other);
        assert_eq!(all.slowest(), Some(Lsn::new(30)));
    }
}
