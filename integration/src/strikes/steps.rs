//! What an operation of the object store is in the work of a compactor or wal-ingest. Pure.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use bytes::Bytes;
use object_store::path::Path;
use palimpsest_manifest::{CompactorEpoch, TimelineManifests};
use palimpsest_types::WriterEpoch;

use super::Step;

/// The manifests that a process has read or created. Each that it creates is one of them, changed: by
/// the number before.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<Path, Manifest>);

/// What steps change of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Manifest {
    writer: WriterEpoch,
    epoch: CompactorEpoch,
    is_claimed: bool,
    /// Of the edits and the lists, which the layers are made up of.
    layers: u64,
}

/// Which part of a timeline an object is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Manifest,
    Layers,
    Lists,
}

/// How a compactor calls images.
const IMAGE: &str = "image-";

impl Known {
    /// An object was read or created.
    pub(super) fn note(&mut self, path: &Path, object: &Bytes) {
        if is_manifest(path)
            && let Some(manifest) = Manifest::of(object)
        {
            self.0.insert(path.clone(), manifest);
        }
    }

    /// The step that creating an object is.
    pub(super) fn creating(&self, path: &Path, object: &Bytes) -> Option<Step> {
        match part(path)? {
            Part::Layers if path.filename()?.starts_with(IMAGE) => Some(Step::Image),
            Part::Layers => Some(Step::Upload),
            Part::Lists => Some(Step::Fold),
            Part::Manifest => {
                let before = self.0.get(&predecessor(path)?)?;
                Some(Manifest::of(object)?.step_after(before))
            }
        }
    }
}

impl Manifest {
    fn of(object: &Bytes) -> Option<Self> {
        let manifest = TimelineManifests::of_object(object)?;
        // What the layers are made up of is in the object, and for no eyes but the manifest's own.
        let text = serde_json::to_vec(&manifest).ok()?;
        let body: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let mut hasher = DefaultHasher::new();
        for part in ["lists", "edits"] {
            body.get(part)?.to_string().hash(&mut hasher);
        }
        Some(Self {
            writer: manifest.writer_epoch,
            epoch: manifest.compactor_epoch,
            is_claimed: manifest.compactor_claim.is_some(),
            layers: hasher.finish(),
        })
    }

    /// The step that makes it of another. Edits move to a list only when there is one more.
    fn step_after(self, before: &Self) -> Step {
        let is_changed = self.layers != before.layers;
        match (self.is_claimed, is_changed) {
            _ if self.writer != before.writer => Step::TakeOver,
            _ if self.epoch != before.epoch => Step::Claim,
            (true, false) => Step::Renew,
            (true, true) => Step::Add,
            (false, true) => Step::Publish,
            (false, false) => Step::LetGo,
        }
    }
}

/// Whether an object is a manifest of a timeline.
pub(super) fn is_manifest(path: &Path) -> bool {
    part(path) == Some(Part::Manifest)
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

/// The manifest of the number before.
fn predecessor(path: &Path) -> Option<Path> {
    let number: u64 = path.filename()?.parse().ok()?;
    let name = format!("{:020}", number.checked_sub(1)?);
    Some(path.parent()?.join(name))
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
mod tests;
