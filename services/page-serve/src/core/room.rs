//! One budget for the changes that all timelines hold in memory.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use palimpsest_api::{TimelineRef, broker::TenantView};
use palimpsest_types::{ByteCount, TenantId};
use tokio::sync::Notify;

/// What the tails of all timelines take together. When there is no more room, the largest one grows no
/// further; if another needs room meanwhile, it lets go of what it has. The same holds within what one tenant may have.
#[derive(Debug)]
pub(super) struct TailRoom {
    limit: ByteCount,
    taken: Mutex<Taken>,
}

/// Who has what, and may have.
#[derive(Debug, Default)]
struct Taken {
    parts: HashMap<TimelineRef, Arc<Part>>,
    /// What tenants may have that may not have all.
    shares: HashMap<TenantId, ByteCount>,
}

/// Timelines that share some room, and what each has.
struct Bounded {
    limit: ByteCount,
    sizes: Vec<(TimelineRef, u64)>,
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
            taken: Mutex::default(),
        })
    }

    /// All that may be held.
    pub(super) fn limit(&self) -> ByteCount {
        self.limit
    }

    /// A part for a timeline, with nothing in it yet.
    pub(super) fn join(self: &Arc<Self>, timeline: TimelineRef) -> Share {
        let part = Arc::<Part>::default();
        self.lock().parts.insert(timeline, Arc::clone(&part));
        Share {
            room: Arc::clone(self),
            timeline,
            part,
        }
    }

    /// These are the tenants, and what they have set.
    pub(super) fn set_shares(&self, tenants: &[TenantView]) {
        let share = |view: &TenantView| {
            let share = view.settings.memory_share?;
            Some((view.tenant, ByteCount::new(share.of(self.limit.get()))))
        };
        self.lock().shares = tenants.iter().filter_map(share).collect();
    }

    /// What bounds a timeline: the room of its tenant, if that has one, and all room.
    fn bounds(&self, taken: &Taken, timeline: TimelineRef) -> impl Iterator<Item = Bounded> {
        let size = |(timeline, part): (&TimelineRef, &Arc<Part>)| {
            (*timeline, part.bytes.load(Ordering::Relaxed))
        };
        let sizes: Vec<_> = taken.parts.iter().map(size).collect();
        let of_tenant = taken.shares.get(&timeline.tenant).map(|limit| {
            let own = sizes.iter().copied();
            Bounded {
                limit: *limit,
                sizes: own
                    .filter(|(one, _)| one.tenant == timeline.tenant)
                    .collect(),
            }
        });
        let limit = self.limit;
        of_tenant.into_iter().chain([Bounded { limit, sizes }])
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// So much is held now.
    pub(super) fn hold(&self, size: ByteCount) {
        self.part.bytes.store(size.get(), Ordering::Relaxed);
    }

    /// Whether it may hold more. If another timeline is in the way, that one is told so.
    pub(super) fn may_grow(&self) -> bool {
        let taken = self.room.lock();
        let bounds = self.room.bounds(&taken, self.timeline);
        let mut verdicts = bounds.map(|bounded| bounded.verdict(self.timeline));
        let first_no = verdicts.find(|verdict| *verdict != Verdict::Yes);
        match first_no.unwrap_or(Verdict::Yes) {
            Verdict::Yes => true,
            Verdict::No => false,
            Verdict::After(largest) => {
                if let Some(part) = taken.parts.get(&largest) {
                    part.told.notify_one();
                }
                false
            }
        }
    }

    /// What it may have, with those that it shares that with.
    pub(super) fn bound(&self) -> ByteCount {
        let of_tenant = self.room.lock().shares.get(&self.timeline.tenant).copied();
        of_tenant.map_or(self.room.limit, |share| share.min(self.room.limit))
    }

    /// Whether there would be room left with so much more.
    pub(super) fn has_room_for(&self, more: ByteCount) -> bool {
        let taken = self.room.lock();
        let mut bounds = self.room.bounds(&taken, self.timeline);
        bounds.all(|bounded| bounded.taken().saturating_add(more.get()) < bounded.limit.get())
    }

    /// Waits until another timeline needs this one's room. Cancel-safe.
    pub(super) async fn is_needed(&self) {
        loop {
            self.part.told.notified().await;
            let taken = self.room.lock();
            // It may have been told long ago.
            let is_in_the_way = |bounded: Bounded| bounded.in_the_way() == Some(self.timeline);
            if self.room.bounds(&taken, self.timeline).any(is_in_the_way) {
                return;
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let parts = &mut self.room.lock().parts;
        // The timeline may have come back with another part.
        if parts
            .get(&self.timeline)
            .is_some_and(|part| Arc::ptr_eq(part, &self.part))
        {
            parts.remove(&self.timeline);
        }
    }
}

impl Bounded {
    fn taken(&self) -> u64 {
        self.sizes.iter().map(|(_, size)| size).sum()
    }

    /// The largest, if there is no more room.
    fn in_the_way(&self) -> Option<TimelineRef> {
        let largest = (self.sizes.iter()).max_by_key(|(timeline, size)| (*size, *timeline));
        let full = self.taken() >= self.limit.get();
        largest.map(|(timeline, _)| *timeline).filter(|_| full)
    }

    fn verdict(&self, asking: TimelineRef) -> Verdict {
        match self.in_the_way() {
            None => Verdict::Yes,
            Some(largest) if largest == asking => Verdict::No,
            Some(largest) => Verdict::After(largest),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use palimpsest_api::tenant_settings::TenantSettings;
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
    fn p7_a_tenant_has_no_more_than_its_share_however_much_room_there_is() {
        let room = TailRoom::new(ByteCount::new(100));
        let branch = TimelineRef {
            timeline: TimelineId::from_bytes([9; 16]),
            ..timeline(1)
        };
        let [main, other] = [1, 2].map(|number| room.join(timeline(number)));
        let branch = room.join(branch);
        let settings = TenantSettings {
            memory_share: "20%".parse().ok(),
            ..TenantSettings::default()
        };
        let tenant = TenantView {
            tenant: timeline(1).tenant,
            name: "shop".to_owned(),
            settings,
        };
        room.set_shares(&[tenant]);
        main.hold(ByteCount::new(15));
        assert!(main.may_grow() && branch.may_grow());
        let bounds = [main.bound(), other.bound()];
        assert_eq!(bounds, [ByteCount::new(20), ByteCount::new(100)]);
        main.hold(ByteCount::new(20));
        assert!(!main.may_grow() && other.may_grow());
        assert!(!branch.may_grow());
        assert!(main.is_needed().now_or_never().is_some(), "by the branch");
        assert!(!branch.has_room_for(ByteCount::new(1)));
        room.set_shares(&[]);
        assert!(main.may_grow() && branch.may_grow());
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
