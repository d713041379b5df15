//! What to compact next, apart from what can't be.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
    time::Duration,
};

use palimpsest_api::TimelineRef;
use palimpsest_manifest::LayerEntry;
use tokio::time::Instant;

use super::{
    lock::lock,
    plan::{Plan, Policy, choose},
};

/// Layers that could not be put together because of what is in them. They are left alone for a while, so that
/// all others go on. Only a memory: without it they are tried again.
#[derive(Debug, Default)]
pub(super) struct Setbacks(Mutex<HashMap<TimelineRef, Vec<Aside>>>);

#[derive(Debug)]
struct Aside {
    layers: HashSet<String>,
    until: Instant,
}

/// A damaged layer does not get better by itself; somebody may put a copy in its place.
const PAUSE: Duration = Duration::from_secs(3600);

impl Setbacks {
    /// The layers of a plan can't be put together.
    pub(super) fn note(&self, timeline: TimelineRef, plan: &Plan, now: Instant) {
        let aside = Aside {
            layers: plan.inputs.iter().map(|layer| layer.name.clone()).collect(),
            until: now + PAUSE,
        };
        lock(&self.0).entry(timeline).or_default().push(aside);
    }

    /// They are tried again at once, as far as they are of this timeline.
    pub(super) fn forget(&self, timeline: TimelineRef) {
        lock(&self.0).remove(&timeline);
    }

    /// Whether some have been left alone for long enough since this was asked last.
    pub(super) fn have_ended(&self, timeline: TimelineRef, now: Instant) -> bool {
        let mut all = lock(&self.0);
        let Some(asides) = all.get_mut(&timeline) else {
            return false;
        };
        let before = asides.len();
        asides.retain(|aside| aside.until > now);
        asides.len() < before
    }

    /// What to do next about the layers of a timeline: see [`choose`].
    pub(super) fn choose(
        &self,
        timeline: TimelineRef,
        layers: &[LayerEntry],
        policy: &Policy,
        now: Instant,
    ) -> Option<Plan> {
        let all = lock(&self.0);
        let Some(asides) = all.get(&timeline) else {
            return choose(layers, policy);
        };
        // They are whole generations, so what is left has a hole there, across which nothing is put together.
        let is_aside = |layer: &&LayerEntry| {
            let mut asides = asides.iter().filter(|aside| aside.until > now);
            asides.any(|aside| aside.layers.contains(&layer.name))
        };
        let others: Vec<_> = layers
            .iter()
            .filter(|layer| !is_aside(layer))
            .cloned()
            .collect();
        choose(&others, policy)
    }

    /// Forgets timelines that there are no more.
    pub(super) fn retain(&self, known: &HashSet<TimelineRef>) {
        lock(&self.0).retain(|timeline, asides| known.contains(timeline) && !asides.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_manifest::{KeySpan, LayerKind, LsnSpan};
    use palimpsest_types::{ByteCount, Key, Lsn, TenantId, TimelineId, WriterEpoch};

    use super::*;

    fn layer(after: u64) -> LayerEntry {
        let lsns = LsnSpan {
            after: Lsn::new(after),
            up_to: Lsn::new(after + 10),
        };
        let key = Key::Parameters;
        LayerEntry {
            name: after.to_string(),
            kind: LayerKind::Delta(lsns),
            keys: KeySpan {
                first: key,
                last: key,
            },
            size: ByteCount::mib(1),
            entries: 1,
            level: 0,
            epoch: WriterEpoch::FIRST,
        }
    }

    #[test]
    fn what_failed_is_left_alone_for_a_while_and_the_rest_goes_on() {
        let timeline = TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        };
        let policy = Policy {
            threshold: 2,
            at_once: 2,
            images: 3,
            target: ByteCount::mib(128),
            claim: Duration::from_secs(30),
        };
        let layers: Vec<_> = (1..=5).map(|at| layer(10 * at)).collect();
        let setbacks = Setbacks::default();
        let begun = Instant::now();
        let chosen = |now| {
            let plan = setbacks.choose(timeline, &layers, &policy, now)?;
            Some(plan.lsns.after.get())
        };
        assert_eq!(chosen(begun), Some(10));
        let failed = setbacks.choose(timeline, &layers, &policy, begun).unwrap();
        setbacks.note(timeline, &failed, begun);
        assert_eq!(chosen(begun), Some(30));
        let failed = setbacks.choose(timeline, &layers, &policy, begun).unwrap();
        setbacks.note(timeline, &failed, begun);
        assert_eq!(chosen(begun), None, "one layer is left");
        assert!(!setbacks.have_ended(timeline, begun));
        assert_eq!(chosen(begun + PAUSE), Some(10));
        assert!(setbacks.have_ended(timeline, begun + PAUSE));
        assert!(!setbacks.have_ended(timeline, begun + PAUSE), "told once");
    }
}
