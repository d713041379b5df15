//! What an operation of the object store is in the work of a compactor. Pure.

use bytes::Bytes;
use object_store::path::Path;
use palimpsest_manifest::{CompactorEpoch, TimelineManifests};

use super::Step;

/// What a process is about: the generation in which it has claimed the timeline, if it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Claimed(pub(super) Option<CompactorEpoch>);

/// Which part of a timeline an object is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Manifest,
    Layers,
    Lists,
}

/// The step that creating an object is. With it, for a manifest, the generation that it has.
pub(super) fn creating(
    path: &Path,
    object: &Bytes,
    claimed: Claimed,
) -> Option<(Step, Option<CompactorEpoch>)> {
    match part(path)? {
        Part::Layers => Some((Step::Upload, None)),
        Part::Lists => Some((Step::Fold, None)),
        Part::Manifest => {
            let manifest = TimelineManifests::of_object(object)?;
            let epoch = manifest.compactor_epoch;
            let step = match manifest.compactor_claim {
                None => Step::Publish,
                Some(_) if claimed == Claimed(Some(epoch)) => Step::Renew,
                Some(_) => Step::Claim,
            };
            Some((step, Some(epoch)))
        }
    }
}

/// The step that reading of an object is.
pub(super) fn reading(path: &Path) -> Option<Step> {
    (part(path)? == Part::Layers).then_some(Step::Read)
}

/// The step that listing objects is.
pub(super) fn listing(path: &Path) -> Option<Step> {
    (part(path)? == Part::Manifest).then_some(Step::Look)
}

/// The step that deleting an object is.
pub(super) fn deleting(path: &Path) -> Option<Step> {
    match part(path)? {
        Part::Manifest => Some(Step::Sweep),
        Part::Layers => Some(Step::Remove),
        Part::Lists => None,
    }
}

fn part(path: &Path) -> Option<Part> {
    let below = |name: &str| path.parts().any(|part| part.as_ref() == name);
    if !below("timelines") {
        return None;
    }
    let parts = [
        ("manifest", Part::Manifest),
        ("layers", Part::Layers),
        ("lists", Part::Lists),
    ];
    let (_, part) = parts.into_iter().find(|(name, _)| below(name))?;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_known_by_what_it_is_about() {
        let of = |name: &str| Path::from(format!("tenants/t/timelines/u/{name}"));
        let nothing = Bytes::new();
        let put = |name| creating(&of(name), &nothing, Claimed::default());
        assert_eq!(put("layers/delta"), Some((Step::Upload, None)));
        assert_eq!(put("lists/1"), Some((Step::Fold, None)));
        assert_eq!(put("manifest/1"), None, "it is no manifest");
        assert_eq!(reading(&of("layers/delta")), Some(Step::Read));
        assert_eq!(reading(&of("manifest/1")), None);
        assert_eq!(listing(&of("manifest")), Some(Step::Look));
        assert_eq!(listing(&of("layers")), None);
        assert_eq!(deleting(&of("layers/delta")), Some(Step::Remove));
        assert_eq!(deleting(&of("manifest/1")), Some(Step::Sweep));
        assert_eq!(deleting(&Path::from("probe/layers")), None);
    }
}
