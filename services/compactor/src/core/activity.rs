//! What a compactor does now and has done.

use std::{
    collections::VecDeque,
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use palimpsest_api::TimelineRef;
use palimpsest_types::ByteCount;

use super::lock::lock;

/// The compaction that goes on, and the last ones that were published.
#[derive(Debug, Default)]
pub struct Activity(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    now: Option<Work>,
    /// Newest first.
    done: VecDeque<Done>,
}

/// A compaction under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Of which timeline.
    pub timeline: TimelineRef,
    /// Layers that are read, and their bytes.
    pub read: (usize, ByteCount),
    /// Layers that are written already.
    pub written: usize,
    /// Of so many, about.
    pub to_write: usize,
}

/// What a compaction came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Of which timeline.
    pub timeline: TimelineRef,
    /// Layers that were replaced, and their bytes.
    pub read: (usize, ByteCount),
    /// Layers that were put in their place, and their bytes.
    pub written: (usize, ByteCount),
    /// When it was published.
    pub ended: SystemTime,
    /// How long it took.
    pub took: Duration,
}

/// A compaction that was begun; it is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Doing<'a> {
    activity: &'a Activity,
    work: Work,
    begun: Instant,
}

/// Compactions that are remembered.
const REMEMBERED: usize = 100;

impl Activity {
    /// What it works on now, and what it has done, the newest first.
    pub fn told(&self) -> (Option<Work>, Vec<Done>) {
        let state = lock(&self.0);
        (state.now, state.done.iter().copied().collect())
    }

    pub(super) fn begin(&self, timeline: TimelineRef, read: (usize, ByteCount)) -> Doing<'_> {
        let work = Work {
            timeline,
            read,
            written: 0,
            to_write: 0,
        };
        lock(&self.0).now = Some(work);
        Doing {
            activity: self,
            work,
            begun: Instant::now(),
        }
    }

    /// So many layers will be written.
    pub(super) fn plan(&self, layers: usize) {
        if let Some(now) = &mut lock(&self.0).now {
            now.to_write = layers;
        }
    }

    /// So many are.
    pub(super) fn wrote(&self, layers: usize) {
        if let Some(now) = &mut lock(&self.0).now {
            now.written = layers;
        }
    }
}

impl Doing<'_> {
    /// It was published.
    pub(super) fn end(self, written: (usize, ByteCount)) -> Done {
        let done = Done {
            timeline: self.work.timeline,
            read: self.work.read,
            written,
            ended: SystemTime::now(),
            took: self.begun.elapsed(),
        };
        let mut state = lock(&self.activity.0);
        state.done.push_front(done);
        state.done.truncate(REMEMBERED);
        done
    }
}

impl Drop for Doing<'_> {
    fn drop(&mut self) {
        lock(&self.activity.0).now = None;
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    #[test]
    fn what_is_done_is_remembered_and_what_is_not_is_forgotten() {
        let timeline = TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        };
        let activity = Activity::default();
        let total = |layers: usize| (layers, ByteCount::mib(layers as u64));
        drop(activity.begin(timeline, total(7)));
        assert_eq!(activity.told(), (None, vec![]));
        for layers in 1..=120 {
            let doing = activity.begin(timeline, total(layers));
            activity.plan(3);
            activity.wrote(2);
            let now = activity.told().0.unwrap();
            assert_eq!((now.written, now.to_write, now.read.0), (2, 3, layers));
            doing.end(total(3));
        }
        let (now, done) = activity.told();
        assert_eq!((now, done.len()), (None, REMEMBERED));
        assert_eq!((done[0].read, done[0].written), (total(120), total(3)));
    }
}
