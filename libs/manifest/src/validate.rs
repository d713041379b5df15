//! Whether a manifest's layers can be its history. Pure.

use palimpsest_types::Lsn;

use crate::{
    layer_entry::{KeySpan, LayerEntry, LayerKind, LsnSpan},
    timeline::TimelineManifest,
};

/// A manifest, or a change of one, contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifestError {
    /// The span of a delta layer has no LSN in it.
    #[error("layer {layer} has the empty LSN span {span}")]
    EmptySpan {
        /// Its name.
        layer: String,
        /// Its span.
        span: LsnSpan,
    },
    /// The first key of a layer is behind its last.
    #[error("the first key of layer {layer} is behind its last")]
    Keys {
        /// Its name.
        layer: String,
    },
    /// An image has keys of which there are none.
    #[error("layer {layer} is an image of keys whose older versions must stay in sight")]
    NotImaged {
        /// Its name.
        layer: String,
    },
    /// An image is of an LSN at which pages are torn.
    #[error("layer {layer} is an image from before the end of a base backup")]
    Torn {
        /// Its name.
        layer: String,
    },
    /// What was lost is no span, or not where something can have been lost.
    #[error(
        "{hole} can't be what was lost: it must begin behind what was lost before, and end where a base backup does"
    )]
    Hole {
        /// What it says was lost.
        hole: LsnSpan,
    },
    /// A layer claims versions that the manifest does not.
    #[error("layer {layer} ends at {up_to}, behind the manifest's LSN {lsn}")]
    Beyond {
        /// Its name.
        layer: String,
        /// Where it ends.
        up_to: Lsn,
        /// Up to where the manifest says that it has everything.
        lsn: Lsn,
    },
    /// Two layers have one name.
    #[error("there are two layers of the name {layer}")]
    Duplicate {
        /// The name.
        layer: String,
    },
    /// What should be removed is not there.
    #[error("there is no layer {layer} to remove; look at the newest manifest")]
    Unknown {
        /// The name.
        layer: String,
    },
    /// A list has not as many edits as the manifest says.
    #[error("layer list {list} has {found} edits instead of {expected}")]
    ListLength {
        /// Its name.
        list: String,
        /// What the manifest says.
        expected: usize,
        /// What it has.
        found: usize,
    },
    /// Neither a base layer nor an ancestor: the changes have nothing to begin from.
    #[error("there is no base layer and no ancestor for the changes to begin from")]
    NoBase,
    /// Changes are missing.
    #[error(transparent)]
    Gap(#[from] GapError),
    /// What should be replaced is no delta layer.
    #[error("layer {layer} holds no changes, so others can't replace it")]
    NoDelta {
        /// Its name.
        layer: String,
    },
    /// No layers, or none in their place.
    #[error("layers are replaced by layers, at least one by at least one")]
    Nothing,
    /// What should replace layers can't hold what they do.
    #[error("{before} can't be replaced by {after}")]
    NotTheSame {
        /// What the layers hold.
        before: String,
        /// What should be in their place.
        after: String,
    },
    /// A layer that stays would have LSNs of those that are replaced: reads would pass versions over.
    #[error("layers of {lsns} can't be replaced without {layer}, which has some of these LSNs")]
    TornApart {
        /// What the layers hold together.
        lsns: LsnSpan,
        /// The layer that should stay.
        layer: String,
    },
    /// A generation can't be raised.
    #[error("there are no more epochs")]
    NoMoreEpochs,
}

/// Changes that no layer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no layer holds the changes of {missing}")]
pub struct GapError {
    /// The first that are missing.
    pub missing: LsnSpan,
}

/// Whether the spans, in any order and overlapping or not, cover all of `(from, up_to]`.
///
/// # Errors
/// The first gap.
pub fn check_contiguity(from: Lsn, mut spans: Vec<LsnSpan>, up_to: Lsn) -> Result<(), GapError> {
    spans.sort_unstable_by_key(|span| span.after);
    let mut covered = from;
    // The last of them stands for the end, so that a gap there is found like any other.
    let end = LsnSpan {
        after: up_to,
        up_to,
    };
    for span in spans.into_iter().chain([end]) {
        if covered >= up_to {
            break;
        }
        if span.after > covered {
            let missing = LsnSpan {
                after: covered,
                up_to: span.after.min(up_to),
            };
            return Err(GapError { missing });
        }
        covered = covered.max(span.up_to);
    }
    Ok(())
}

/// What is wrong with one layer whatever the others are.
pub(crate) fn check_layer(layer: &LayerEntry) -> Result<(), InvalidManifestError> {
    let name = || layer.name.clone();
    if layer.keys.first > layer.keys.last {
        return Err(InvalidManifestError::Keys { layer: name() });
    }
    match layer.kind {
        LayerKind::Delta(span) if span.is_empty() => Err(InvalidManifestError::EmptySpan {
            layer: name(),
            span,
        }),
        LayerKind::Image(lsn) if LsnSpan::only(lsn).is_empty() => {
            Err(InvalidManifestError::EmptySpan {
                layer: name(),
                span: LsnSpan::only(lsn),
            })
        }
        LayerKind::Image(_) if !is_imaged(layer.keys) => {
            Err(InvalidManifestError::NotImaged { layer: name() })
        }
        LayerKind::Delta(_) | LayerKind::Image(_) | LayerKind::Base(_) => Ok(()),
    }
}

/// Whether all of these are keys of which there may be an image.
fn is_imaged(keys: KeySpan) -> bool {
    KeySpan::IMAGED
        .iter()
        .any(|imaged| imaged.contains(keys.first) && imaged.contains(keys.last))
}

impl TimelineManifest {
    /// Whether the layers hold everything up to the manifest's LSN. Unique names are seen to where
    /// layers are added.
    pub(crate) fn check(&self) -> Result<(), InvalidManifestError> {
        // The layers are in the order of their ends.
        if let Some(last) = self.layers().last()
            && last.up_to() > self.lsn
        {
            return Err(InvalidManifestError::Beyond {
                layer: last.name.clone(),
                up_to: last.up_to(),
                lsn: self.lsn,
            });
        }
        self.check_holes()?;
        let mut spans = Vec::new();
        let mut base = self.ancestor.map(|ancestor| ancestor.lsn);
        for layer in self.layers() {
            match layer.kind {
                LayerKind::Delta(span) => spans.push(span),
                LayerKind::Base(lsn) => base = Some(base.map_or(lsn, |base| base.min(lsn))),
                // Of some keys; the changes that lead to it are still there.
                LayerKind::Image(lsn)
                    if lsn >= self.oldest_readable && self.hole_at(lsn).is_none() => {}
                LayerKind::Image(_) => {
                    let layer = layer.name.clone();
                    return Err(InvalidManifestError::Torn { layer });
                }
            }
        }
        let base = base.ok_or(InvalidManifestError::NoBase)?;
        // Below the cutoff only what pins need is left, which may have gaps.
        check_contiguity(base.max(self.gc_cutoff), spans, self.lsn)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(after: u64, up_to: u64) -> LsnSpan {
        LsnSpan {
            after: Lsn::new(after),
            up_to: Lsn::new(up_to),
        }
    }

    fn check(from: u64, spans: &[LsnSpan], up_to: u64) -> Result<(), LsnSpan> {
        check_contiguity(Lsn::new(from), spans.to_vec(), Lsn::new(up_to))
            .map_err(|error| error.missing)
    }

    #[test]
    fn names_the_first_gap() {
        let chain = [span(30, 40), span(10, 20), span(15, 30)];
        assert_eq!(check(10, &chain, 40), Ok(()));
        assert_eq!(check(10, &chain, 35), Ok(()), "more than needed");
        assert_eq!(check(9, &chain, 40), Err(span(9, 10)), "at the beginning");
        assert_eq!(check(10, &chain, 41), Err(span(40, 41)), "at the end");
        assert_eq!(check(10, &chain[..2], 40), Err(span(20, 30)), "between");
        assert_eq!(check(10, &chain[..1], 20), Err(span(10, 20)), "all of it");
    }

    #[test]
    fn nothing_after_the_base_needs_no_layer() {
        assert_eq!(check(10, &[], 10), Ok(()));
        assert_eq!(check(10, &[], 5), Ok(()));
        assert_eq!(check(10, &[], 11), Err(span(10, 11)));
    }
}
