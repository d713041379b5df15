//! One budget for the changes that all timelines hold in memory.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use palimpsest_api::TimelineRef;
use palimpsest_types::ByteCount;
use tokio::sync::Notify;

/// What the tails of all timelines take together. When there is no more room, the largest one grows no
/// further; if another needs room meanwhile, it lets go of what it has.
#[derive(Debug)]
pub(super) struct TailRoom {
    limit: ByteCount,
    parts: Mutex<HashMap<TimelineRef, Arc<Part>>>,
}

/// One timeline's part. Given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    room: Arc<TailRoom>,
    timeline: TimelineRef,
    part: Arc<Part>,
}

#[derive(Debug, Default)]
struct Part {
    bytes: AtomicU64,
    /// Another timeline needs its room.
    told: Notify,
}

/// Whether a timeline may hold more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Yes,
    /// No, and it is the largest itself.
    No,
    /// Once that one has let go of its changes.
    After(TimelineRef),
}

impl TailRoom {
    /// Room for so much.
    pub(super) fn new(limit: ByteCount) -> Arc<Self> {
        Arc::new(Self {
            limit,
            parts: Mutex::default(),
        })
    }

    /// All that may be held.
    pub(super) fn limit(&self) -> ByteCount {
        self.limit
    }

    /// A part for a timeline, with nothing in it yet.
    pub(super) fn join(self: &Arc<Self>, timeline: TimelineRef) -> Share {
        let part = Arc::<Part>::default();
        self.lock().insert(timeline, Arc::clone(&part));
        Share {
            room: Arc::clone(self),
            timeline,
            part,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TimelineRef, Arc<Part>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// So much is held now.
    pub(super) fn hold(&self, size: ByteCount) {
        self.part.bytes.store(size.get(), Ordering::Relaxed);
    }

    /// Whether it may hold more. If another timeline is in the way, that one is told so.
    pub(super) fn may_grow(&self) -> bool {
        let parts = self.room.lock();
        match verdict(self.timeline, self.room.limit, &sizes(&parts)) {
            Verdict::Yes => true,
            Verdict::No => false,
            Verdict::After(largest) => {
                if let Some(part) = parts.get(&largest) {
                    part.told.notify_one();
                }
                false
            }
        }
    }

    /// Whether there would be room left with so much more.
    pub(super) fn has_room_for(&self, more: ByteCount) -> bool {
        let taken: u64 = sizes(&self.room.lock()).iter().map(|(_, size)| size).sum();
        taken.saturating_add(more.get()) < self.room.limit.get()
    }

    /// Waits until another timeline needs this one's room. Cancel-safe.
    pub(super) async fn is_needed(&self) {
        loop {
            self.part.told.notified().await;
            let parts = self.room.lock();
            let sizes = sizes(&parts);
            // It may have been told long ago.
            let full = verdict(self.timeline, self.room.limit, &sizes) != Verdict::Yes;
            if full && largest(&sizes) == Some(self.timeline) {
                return;
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut parts = self.room.lock();
        // The timeline may have come back with another part.
        if parts
            .get(&self.timeline)
            .is_some_and(|part| Arc::ptr_eq(part, &self.part))
        {
            parts.remove(&self.timeline);
        }
    }
}

fn sizes(parts: &HashMap<TimelineRef, Arc<Part>>) -> Vec<(TimelineRef, u64)> {
    let size = |(timeline, part): (&TimelineRef, &Arc<Part>)| {
        (*timeline, part.bytes.load(Ordering::Relaxed))
    };
    parts.iter().map(size).collect()
}

fn largest(sizes: &[(TimelineRef, u64)]) -> Option<TimelineRef> {
    let largest = sizes
        .iter()
        .max_by_key(|(timeline, size)| (*size, *timeline));
    largest.map(|(timeline, _)| *timeline)
}

fn verdict(asking: TimelineRef, limit: ByteCount, sizes: &[(TimelineRef, u64)]) -> Verdict {
    let taken: u64 = sizes.iter().map(|(_, size)| size).sum();
    match largest(sizes) {
        _ if taken < limit.get() => Verdict::Yes,
        Some(largest) if largest != asking => Verdict::After(largest),
        _ => Verdict::No,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    fn timeline(number: u8) -> TimelineRef {
        TimelineRef {
            tenant: TenantId::from_bytes([number; 16]),
            timeline: TimelineId::from_bytes([0; 16]),
        }
    }

    #[test]
    fn p7_all_together_take_no_more_than_the_budget() {
        let room = TailRoom::new(ByteCount::new(100));
        let shares: Vec<_> = (0..5).map(|number| room.join(timeline(number))).collect();
        for share in &shares {
            assert!(share.may_grow());
            share.hold(ByteCount::new(20));
        }
        assert!(shares.iter().all(|share| !share.may_grow()));
    }

    #[test]
    fn p7_the_largest_gives_way_to_others_and_only_to_them() {
        let room = TailRoom::new(ByteCount::new(100));
        let [small, large] = [1, 2].map(|number| room.join(timeline(number)));
        small.hold(ByteCount::new(10));
        large.hold(ByteCount::new(90));
        assert!(!large.may_grow());
        assert!(
            large.is_needed().now_or_never().is_none(),
            "it needs it itself"
        );
        assert!(!small.may_grow());
        assert!(large.is_needed().now_or_never().is_some());
        large.hold(ByteCount::ZERO);
        assert!(small.may_grow() && large.may_grow());
        assert!(large.has_room_for(ByteCount::new(89)));
        assert!(
            !large.has_room_for(ByteCount::new(90)),
            "it would be told again"
        );
        assert!(large.is_needed().now_or_never().is_none(), "told once");
    }

    #[test]
    fn who_is_not_the_largest_any_more_keeps_what_it_has() {
        let room = TailRoom::new(ByteCount::new(100));
        let [small, large] = [1, 2].map(|number| room.join(timeline(number)));
        large.hold(ByteCount::new(100));
        assert!(!small.may_grow());
        // Layers took most of it meanwhile.
        large.hold(ByteCount::new(5));
        small.hold(ByteCount::new(10));
        assert!(large.is_needed().now_or_never().is_none());
    }

    #[test]
    fn a_timeline_that_goes_takes_no_room() {
        let room = TailRoom::new(ByteCount::new(100));
        let [gone, left] = [1, 2].map(|number| room.join(timeline(number)));
        gone.hold(ByteCount::new(100));
        assert!(!left.may_grow());
        drop(gone);
        assert!(left.may_grow());
    }
}
