//! What to compact next. Pure.

use std::{num::NonZeroU32, time::Duration};

use palimpsest_api::tenant_settings::TenantSettings;
use palimpsest_manifest::{KeySpan, LayerEntry, LayerKind, LsnSpan};
use palimpsest_types::{ByteCount, WriterEpoch};

/// When layers are compacted, and into what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// So many generations of layers are compacted together, at least.
    pub threshold: usize,
    /// No more layers than this at once: each takes memory while it is read.
    pub at_once: usize,
    /// So many compacted layers with changes of a key since its last image are worth another, at least.
    pub images: usize,
    /// Layers become about so large.
    pub target: ByteCount,
    /// How long a claim of a timeline holds unless it is renewed.
    pub claim: Duration,
}

impl Policy {
    /// The same for the timelines of a tenant that has set these. How much memory a compaction takes is not theirs to say.
    pub fn of_tenant(self, set: &TenantSettings) -> Self {
        let number = |set: Option<NonZeroU32>| set.map(|set| set.get() as usize);
        let threshold = number(set.compaction_threshold).map(|set| set.min(self.at_once));
        Self {
            threshold: threshold.unwrap_or(self.threshold),
            images: number(set.image_threshold).unwrap_or(self.images),
            ..self
        }
    }
}

/// Layers to make others of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Oldest first.
    pub inputs: Vec<LayerEntry>,
    /// All their LSNs, without a hole.
    pub lsns: LsnSpan,
    /// What a layer that gets no versions is listed with: keys of the oldest input, as any of them do.
    pub keys: KeySpan,
    /// Of what becomes of them: the newest generation of a writer that any input has. Readers take
    /// versions of one LSN for the same only within a generation, so an older one would be wrong, and a
    /// newer one costs nothing.
    pub writer: WriterEpoch,
    /// Of what becomes of them.
    pub level: u8,
}

/// Layers that have LSNs in common: what one compaction made, or what a writer wrote, so all of one level. No
/// other has these LSNs, and they stay together: a read that leaves a layer at its older end looks for nothing
/// newer from there on, so no layer may reach across the end of another that has the same keys.
#[derive(Debug)]
struct Generation<'a> {
    lsns: LsnSpan,
    level: u8,
    layers: Vec<&'a LayerEntry>,
    /// They are of several levels: an earlier version of this compacted a part of them. Reads may go wrong until
    /// they are one again.
    is_torn: bool,
}

/// No more is compacted at once than makes so many layers.
const OUTPUTS: u64 = 16;

/// What to do next about the layers of a timeline, which are in LSN order; `None` if nothing is worth
/// doing. Layers as they are written from WAL come first (but for layers that overlap as they should not), the oldest of them first: there the most has
/// piled up. Then generations that were compacted and are smaller than one layer should be: a timeline
/// that seldom changes would otherwise have more and more of them.
pub fn choose(layers: &[LayerEntry], policy: &Policy) -> Option<Plan> {
    let generations = generations(layers);
    if let Some(torn) = generations.iter().position(|it| it.is_torn) {
        return plan_of(generations.get(torn..=torn)?);
    }
    let runs = generations.chunk_by(|one, next| {
        let follows = one.lsns.up_to == next.lsns.after && one.level == next.level;
        follows && one.is_worth_it(policy) && next.is_worth_it(policy)
    });
    let runs = runs.filter(|run| run.len() >= policy.threshold.max(2));
    let run = runs.min_by_key(|run| run.first().map(|first| first.level))?;
    let (mut count, mut bytes) = (0, 0);
    let most = policy.target.get().saturating_mul(OUTPUTS);
    let at_once = run.iter().enumerate().take_while(|(number, generation)| {
        count += generation.layers.len();
        bytes += generation.bytes();
        *number < 2 || (count <= policy.at_once && bytes <= most)
    });
    plan_of(run.get(..at_once.count())?)
}

/// Putting these generations together, which follow each other.
fn plan_of(run: &[Generation<'_>]) -> Option<Plan> {
    let (first, last) = (run.first()?, run.last()?);
    let inputs = run.iter().flat_map(|it| it.layers.iter().copied());
    Some(Plan {
        inputs: inputs.cloned().collect(),
        lsns: LsnSpan {
            after: first.lsns.after,
            up_to: last.lsns.up_to,
        },
        keys: first.layers.first()?.keys,
        writer: run
            .iter()
            .flat_map(|it| it.layers.iter().map(|layer| layer.epoch))
            .max()?,
        level: first.level.saturating_add(1),
    })
}

/// The generations of all levels, oldest first.
fn generations(layers: &[LayerEntry]) -> Vec<Generation<'_>> {
    let mut changes: Vec<_> = layers
        .iter()
        .filter_map(|layer| match layer.kind {
            LayerKind::Delta(lsns) => Some((lsns, layer)),
            LayerKind::Base(_) | LayerKind::Image(_) => None,
        })
        .collect();
    changes.sort_by_key(|(lsns, _)| (lsns.after, lsns.up_to));
    let mut generations: Vec<Generation<'_>> = Vec::new();
    for (lsns, layer) in changes {
        match generations.last_mut() {
            Some(last) if lsns.after < last.lsns.up_to => last.add(lsns, layer),
            _ => generations.push(Generation {
                lsns,
                level: layer.level,
                layers: vec![layer],
                is_torn: false,
            }),
        }
    }
    generations
}

impl<'a> Generation<'a> {
    fn add(&mut self, lsns: LsnSpan, layer: &'a LayerEntry) {
        self.lsns.up_to = self.lsns.up_to.max(lsns.up_to);
        self.is_torn |= self.level != layer.level;
        self.level = self.level.max(layer.level);
        self.layers.push(layer);
    }

    fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size.get()).sum()
    }

    /// A read visits one layer of it already, unless it is as written.
    fn is_worth_it(&self, policy: &Policy) -> bool {
        self.level == 0 || self.bytes() < policy.target.get()
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{Key, Lsn};

    use super::*;

    const POLICY: Policy = Policy {
        threshold: 3,
        at_once: 4,
        images: 3,
        target: ByteCount::mib(128),
        claim: Duration::from_secs(30),
    };

    #[test]
    fn a_tenant_says_how_many_layers_are_worth_it_but_not_how_much_memory_it_takes() {
        let set = TenantSettings {
            compaction_threshold: NonZeroU32::new(2),
            image_threshold: NonZeroU32::new(7),
            ..TenantSettings::default()
        };
        let expected = Policy {
            threshold: 2,
            images: 7,
            ..POLICY
        };
        assert_eq!(POLICY.of_tenant(&set), expected);
        assert_eq!(POLICY.of_tenant(&TenantSettings::default()), POLICY);
        let many = TenantSettings {
            compaction_threshold: NonZeroU32::new(1000),
            ..TenantSettings::default()
        };
        assert_eq!(POLICY.of_tenant(&many).threshold, POLICY.at_once);
    }

    fn layer(after: u64, up_to: u64, level: u8) -> LayerEntry {
        let lsns = LsnSpan {
            after: Lsn::new(after),
            up_to: Lsn::new(up_to),
        };
        LayerEntry {
            name: format!("{after}-{up_to}-{level}"),
            kind: LayerKind::Delta(lsns),
            keys: KeySpan {
                first: Key::Parameters,
                last: Key::Parameters,
            },
            size: ByteCount::mib(1),
            entries: 1,
            level,
            epoch: WriterEpoch::FIRST,
        }
    }

    fn chosen(layers: &[LayerEntry]) -> Option<(usize, u64, u64)> {
        let plan = choose(layers, &POLICY)?;
        let LsnSpan { after, up_to } = plan.lsns;
        Some((plan.inputs.len(), after.get(), up_to.get()))
    }

    #[test]
    fn enough_layers_that_follow_each_other_are_compacted_oldest_first() {
        let fresh = |after: u64| layer(after, after + 10, 0);
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[fresh(10), fresh(20)]), None, "too few");
        let three = [fresh(10), fresh(20), fresh(30)];
        assert_eq!(chosen(&three), Some((3, 10, 40)));
        let many: Vec<_> = (1..=9).map(|at| fresh(10 * at)).collect();
        assert_eq!(chosen(&many), Some((4, 10, 50)), "not all at once");
        let behind_others = [layer(10, 40, 1), fresh(40), fresh(50), fresh(60)];
        assert_eq!(chosen(&behind_others), Some((3, 40, 70)));
    }

    #[test]
    fn what_was_compacted_is_compacted_again_while_it_is_small() {
        let small = |after: u64| layer(after, after + 10, 1);
        let mut layers = vec![small(10), small(20), small(30)];
        assert_eq!(chosen(&layers), Some((3, 10, 40)));
        assert_eq!(choose(&layers, &POLICY).unwrap().level, 2);
        // Two layers of the same LSNs are one generation.
        layers.insert(1, small(10));
        assert_eq!(chosen(&layers), Some((4, 10, 40)));
        layers.truncate(3);
        assert_eq!(chosen(&layers), None, "two generations");
        let mut large = [small(10), small(20), small(30)];
        large[1].size = POLICY.target;
        assert_eq!(chosen(&large), None, "large enough");
    }

    #[test]
    fn layers_that_a_compaction_cut_by_lsn_stay_together() {
        // The last part of a hot key, cut from (10,50], seems to go on with (50,60].
        let hot = [layer(10, 20, 1), layer(20, 40, 1), layer(40, 50, 1)];
        let [one, two, three] = hot;
        let layers = vec![one, two, layer(10, 50, 1), three, layer(50, 60, 1)];
        assert_eq!(chosen(&layers), None, "two generations");
        let layers = [layers, vec![layer(60, 70, 1)]].concat();
        assert_eq!(chosen(&layers), Some((5, 10, 60)), "all of it or nothing");
    }

    #[test]
    fn what_was_torn_apart_is_put_together_first() {
        let fresh = |after: u64| layer(after, after + 10, 0);
        let torn = vec![
            layer(10, 20, 1),
            layer(20, 40, 1),
            layer(10, 50, 1),
            layer(40, 80, 2),
        ];
        let layers = [torn, vec![fresh(80), fresh(90), fresh(100)]].concat();
        assert_eq!(chosen(&layers), Some((4, 10, 80)));
        assert_eq!(choose(&layers, &POLICY).unwrap().level, 3);
    }

    #[test]
    fn no_more_is_compacted_at_once_than_makes_some_layers() {
        let mut layers: Vec<_> = (1..=4).map(|at| layer(10 * at, 10 * at + 10, 0)).collect();
        for layer in &mut layers {
            layer.size = ByteCount::new(6 * POLICY.target.get());
        }
        assert_eq!(chosen(&layers), Some((2, 10, 30)));
    }

    #[test]
    fn what_is_made_is_of_the_newest_writer() {
        let mut layers = [layer(10, 20, 0), layer(20, 30, 0), layer(30, 40, 0)];
        let newer = WriterEpoch::FIRST.next().unwrap();
        layers[1].epoch = newer;
        assert_eq!(choose(&layers, &POLICY).unwrap().writer, newer);
    }

    #[test]
    fn layers_with_a_hole_between_them_are_not_put_together() {
        let fresh = |after: u64| layer(after, after + 10, 0);
        let hole = [fresh(10), fresh(20), fresh(40), fresh(50)];
        assert_eq!(chosen(&hole), None);
        let then = [fresh(10), fresh(30), fresh(40), fresh(50)];
        assert_eq!(chosen(&then), Some((3, 30, 60)));
    }
}
