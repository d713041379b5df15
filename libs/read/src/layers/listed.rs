//! Layers of one kind as a manifest lists them.

use std::sync::Arc;

use palimpsest_manifest::{LayerEntry, LsnSpan};

use super::{
    LayerFiles,
    changes::{Changes, Order, compare},
};
use crate::{delta::DeltaFile, layer_map::LayerMap};

/// Layers of one kind, in the manifest's order and by keys and LSNs.
#[derive(Debug, Default)]
pub(super) struct Listed {
    files: Vec<Arc<DeltaFile>>,
    pub(super) map: LayerMap<Arc<DeltaFile>>,
}

impl Listed {
    /// The layers of a manifest, given those of the one before, and what is different. Whoever has
    /// those keeps them as they are.
    pub(super) fn follow<'a>(
        before: Option<&Self>,
        files: &LayerFiles,
        now: impl Iterator<Item = (&'a LayerEntry, LsnSpan)>,
    ) -> (Self, Changes) {
        let listed = before.map_or(&[][..], |before| &before.files);
        let now = now.map(|(entry, span)| (order_of(entry, span), (entry, span)));
        let make = |(entry, span)| DeltaFile::listed(files, entry, span);
        let (all, changes) = compare(listed, now, make);
        let mut map = before.map(|before| before.map.clone()).unwrap_or_default();
        for file in &changes.removed {
            map.remove(file.place());
        }
        for file in &changes.added {
            map.insert(*file.place(), Arc::clone(file));
        }
        (Self { files: all, map }, changes)
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether these are they.
    pub(super) fn are<'a>(&self, now: impl Iterator<Item = (&'a LayerEntry, LsnSpan)>) -> bool {
        let names = self.files.iter().map(|file| file.name());
        names.eq(now.map(|(entry, _)| entry.name.as_str()))
    }
}

fn order_of(entry: &LayerEntry, span: LsnSpan) -> Order<'_> {
    (span.up_to, span.after, entry.name.as_str())
}
