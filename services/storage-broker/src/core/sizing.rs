//! What timelines take in the object store.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use palimpsest_api::{
    TimelineRef,
    admin::{StoredSize, TimelineSize},
    broker::TimelineView,
};
use palimpsest_manifest::LayerEntry;
use palimpsest_types::{ByteCount, Lsn};

use super::{broker::Broker, tenant::Tenant};

/// Manifests that are read at the same time. One has some hundred bytes for each layer.
const AT_ONCE: usize = 32;
/// After this no more are begun to be read.
const LONGEST: Duration = Duration::from_secs(30);

/// How large the layers of a timeline are.
#[derive(Debug)]
struct Measured {
    own: ByteCount,
    /// Those that see something at each of the LSNs that were asked for.
    at: HashMap<Lsn, ByteCount>,
}

type Measurements = HashMap<TimelineRef, Result<Measured, String>>;

impl Broker {
    /// What each of these timelines takes. What they begin on must be among them. A store that does not answer is not
    /// waited for with each.
    pub async fn sizes(&self, timelines: &[TimelineView]) -> Vec<TimelineSize> {
        let points = points(timelines);
        let begun = Instant::now();
        let measuring = stream::iter(points).map(async |(timeline, points)| {
            let newest = match begun.elapsed() > LONGEST {
                true => Err(format!(
                    "reading the manifests takes longer than {LONGEST:?}"
                )),
                false => self.newest_manifest(timeline).await,
            };
            let measured = newest.map(|newest| {
                let layers = newest.as_ref().map(|newest| newest.state.layers());
                measure(layers.unwrap_or_default(), &points)
            });
            (timeline, measured)
        });
        let measured = measuring.buffer_unordered(AT_ONCE).collect().await;
        let catalog = self.catalog();
        let tenants = catalog.tenants().iter();
        // What a tenant's source is read to stays as long as the tenant does.
        let stay = tenants
            .filter(|tenant| tenant.has_source())
            .map(Tenant::main);
        sized(timelines, &measured, &stay.collect())
    }
}

/// The LSNs of each timeline at which others begin.
fn points(timelines: &[TimelineView]) -> HashMap<TimelineRef, Vec<Lsn>> {
    let mut points: HashMap<_, _> = timelines
        .iter()
        .map(|view| (view.timeline, Vec::new()))
        .collect();
    for (parent, lsn) in timelines.iter().filter_map(TimelineView::begins_on) {
        if let Some(points) = points.get_mut(&parent) {
            points.push(lsn);
        }
    }
    points
}

fn measure(layers: &[LayerEntry], points: &[Lsn]) -> Measured {
    let mut layers: Vec<_> = layers
        .iter()
        .map(|layer| (layer.seen_from(), layer.size.get()))
        .collect();
    layers.sort_unstable();
    let sums: Vec<_> = std::iter::once(0)
        .chain(layers.iter().scan(0_u64, |sum, (_, size)| {
            *sum = sum.saturating_add(*size);
            Some(*sum)
        }))
        .collect();
    let size = |layers: usize| ByteCount::new(sums.get(layers).copied().unwrap_or_default());
    let at = |point: &Lsn| size(layers.partition_point(|(from, _)| from <= point));
    Measured {
        own: size(layers.len()),
        at: points.iter().map(|point| (*point, at(point))).collect(),
    }
}

fn sized(
    timelines: &[TimelineView],
    measured: &Measurements,
    stay: &HashSet<TimelineRef>,
) -> Vec<TimelineSize> {
    let views: HashMap<_, _> = timelines.iter().map(|view| (view.timeline, view)).collect();
    let begin = timelines.iter().filter_map(TimelineView::begins_on);
    let begun_on: HashSet<_> = begin.map(|(parent, _)| parent).collect();
    let of = |view: &TimelineView| {
        let own = measured_of(measured, view.timeline)?.own;
        let mut shared = ByteCount::ZERO;
        let mut begins = view.begins_on();
        // As many as there are levels: a timeline begins on an older one.
        while let Some((parent, lsn)) = begins {
            let seen = measured_of(measured, parent)?.at.get(&lsn).copied();
            shared = ByteCount::new(shared.get() + seen.unwrap_or_default().get());
            begins = views
                .get(&parent)
                .copied()
                .and_then(TimelineView::begins_on);
        }
        let is_needed = begun_on.contains(&view.timeline) || stay.contains(&view.timeline);
        let can_go = view.branch.is_some() && !is_needed;
        Ok(StoredSize {
            own,
            shared,
            freed: can_go.then_some(own),
        })
    };
    timelines
        .iter()
        .map(|view| TimelineSize {
            timeline: view.timeline,
            stored: of(view),
        })
        .collect()
}

fn measured_of(measured: &Measurements, timeline: TimelineRef) -> Result<&Measured, String> {
    match measured.get(&timeline) {
        Some(Ok(measured)) => Ok(measured),
        Some(Err(problem)) => Err(problem.clone()),
        None => Err(format!("there is no timeline {timeline}")),
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_api::broker::Promotion;
    use palimpsest_manifest::{KeySpan, LayerKind, LsnSpan};
    use palimpsest_types::{Key, WriterEpoch};

    use super::*;
    use crate::core::fixture::Site;

    fn layer(kind: LayerKind, size: u64) -> LayerEntry {
        LayerEntry {
            name: format!("{kind:?}"),
            kind,
            keys: KeySpan {
                first: Key::ControlFile,
                last: Key::ControlFile,
            },
            size: ByteCount::new(size),
            entries: 1,
            level: 0,
            epoch: WriterEpoch::new(1),
        }
    }

    fn delta(after: u64, up_to: u64, size: u64) -> LayerEntry {
        let span = LsnSpan {
            after: Lsn::new(after),
            up_to: Lsn::new(up_to),
        };
        layer(LayerKind::Delta(span), size)
    }

    #[test]
    fn an_lsn_sees_what_begins_at_or_before_it() {
        let layers = [
            delta(120, 160, 10),
            delta(160, 200, 100),
            layer(LayerKind::Base(Lsn::new(120)), 1),
            layer(LayerKind::Image(Lsn::new(180)), 1000),
        ];
        let points = [119, 120, 121, 160, 161, 179, 180, 200, 900].map(Lsn::new);
        let measured = measure(&layers, &points);
        let seen = points.map(|point| measured.at[&point].get());
        assert_eq!(seen, [0, 1, 11, 11, 111, 111, 1111, 1111, 1111]);
        assert_eq!(measured.own, ByteCount::new(1111));
        assert_eq!(measure(&[], &points).own, ByteCount::ZERO);
    }

    #[tokio::test]
    async fn what_is_shared_is_that_of_all_it_begins_on() {
        let site = Site::up_to(200).await;
        site.grow(site.main, 300).await;
        // A base and two deltas.
        let all = ByteCount::kib(24);
        let before_200 = ByteCount::kib(16);
        let late = site.branch(site.main, "late", Some(250)).await.unwrap();
        let early = site.branch(site.main, "early", Some(165)).await.unwrap();
        let next = site.branch(late.timeline, "next", Some(250)).await.unwrap();
        let sizes = async || {
            let timelines = site.broker.timelines(None).unwrap();
            let sizes = site.broker.sizes(&timelines).await.into_iter();
            let sizes = sizes.map(|size| (size.timeline, size.stored));
            sizes.collect::<HashMap<_, _>>()
        };
        let size = |own, shared, freed| StoredSize { own, shared, freed };
        let none = ByteCount::ZERO;
        let known = sizes().await;
        assert_eq!(known[&site.main], Ok(size(all, none, None)));
        assert_eq!(known[&late.timeline], Ok(size(none, all, None)));
        assert_eq!(known[&next.timeline], Ok(size(none, all, Some(none))));
        assert_eq!(
            known[&early.timeline],
            Ok(size(none, before_200, Some(none)))
        );

        site.damage(site.main).await;
        let known = sizes().await;
        assert_eq!(known.len(), 4);
        for (timeline, stored) in known {
            let problem = stored.unwrap_err();
            assert!(problem.contains("manifest"), "{timeline}: {problem}");
        }
    }

    #[tokio::test]
    async fn what_goes_on_with_a_source_that_was_promoted_can_not_be_freed() {
        let site = Site::new().await;
        let promotion = Promotion {
            at: Lsn::new(165),
            pg_timeline: 2,
            end: Lsn::new(200),
        };
        let main = site.follow(site.main, promotion).await.unwrap().timeline;
        let timelines = site.broker.timelines(None).unwrap();
        let sizes = site.broker.sizes(&timelines).await;
        let size = sizes.iter().find(|size| size.timeline == main).unwrap();
        assert_eq!(size.stored.as_ref().unwrap().freed, None);
    }
}
