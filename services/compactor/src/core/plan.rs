//! What to compact next. Pure.

use std::time::Duration;

use palimpsest_manifest::{LayerEntry, LayerKind, LsnSpan};
use palimpsest_types::ByteCount;

/// When layers are compacted, and into what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// So many layers as they were written from WAL are compacted together, at least.
    pub threshold: usize,
    /// No more than this at once: each takes memory while it is read.
    pub at_once: usize,
    /// Layers become about so large.
    pub target: ByteCount,
    /// How long a claim of a timeline holds unless it is renewed.
    pub claim: Duration,
}

/// Layers to make others of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Oldest first; each begins where the one before ends.
    pub inputs: Vec<LayerEntry>,
    /// All their LSNs.
    pub lsns: LsnSpan,
}

/// What to do next about the layers of a timeline, which are in LSN order; `None` if nothing is worth
/// doing. The oldest come first: there the most has piled up.
pub fn choose(layers: &[LayerEntry], policy: &Policy) -> Option<Plan> {
    let fresh: Vec<_> = layers.iter().filter_map(fresh).collect();
    let mut runs = fresh.chunk_by(|(before, _), (next, _)| before.up_to == next.after);
    let run = runs.find(|run| run.len() >= policy.threshold.max(2))?;
    let run = run.get(..policy.at_once).unwrap_or(run);
    let ((first, _), (last, _)) = (run.first()?, run.last()?);
    Some(Plan {
        lsns: LsnSpan {
            after: first.after,
            up_to: last.up_to,
        },
        inputs: run.iter().map(|(_, layer)| (*layer).clone()).collect(),
    })
}

/// The LSNs of a layer as it was written from WAL.
fn fresh(layer: &LayerEntry) -> Option<(LsnSpan, &LayerEntry)> {
    match layer.kind {
        LayerKind::Delta(lsns) if layer.level == 0 => Some((lsns, layer)),
        LayerKind::Delta(_) | LayerKind::Image(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_manifest::KeySpan;
    use palimpsest_types::{Key, Lsn, WriterEpoch};

    use super::*;

    const POLICY: Policy = Policy {
        threshold: 3,
        at_once: 4,
        target: ByteCount::mib(128),
        claim: Duration::from_secs(30),
    };

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
    fn layers_with_a_hole_between_them_are_not_put_together() {
        let fresh = |after: u64| layer(after, after + 10, 0);
        let hole = [fresh(10), fresh(20), fresh(40), fresh(50)];
        assert_eq!(chosen(&hole), None);
        let then = [fresh(10), fresh(30), fresh(40), fresh(50)];
        assert_eq!(chosen(&then), Some((3, 30, 60)));
    }
}
