//! What is different from one manifest to the next.

use std::{cmp::Ordering, sync::Arc};

use palimpsest_types::Lsn;

use crate::delta::DeltaFile;

/// Which layers of a manifest are new or gone.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) added: Vec<Arc<DeltaFile>>,
    pub(super) removed: Vec<Arc<DeltaFile>>,
}

/// By this manifests order their layers. Names are unique, and never used again.
pub(super) type Order<'a> = (Lsn, Lsn, &'a str);

/// The layers of a manifest, and how they differ from those before, both in the manifest's order. One
/// pass over both, in which only names and LSNs are looked at; everything else is done for what changed.
pub(super) fn compare<'a, T>(
    before: &[Arc<DeltaFile>],
    now: impl Iterator<Item = (Order<'a>, T)>,
    make: impl Fn(T) -> DeltaFile,
) -> (Vec<Arc<DeltaFile>>, Changes) {
    let mut changes = Changes::default();
    let mut listed = Vec::new();
    let mut before = before.iter().peekable();
    for (order, entry) in now {
        while let Some(gone) = before.next_if(|file| order_of(file) < order) {
            changes.removed.push(Arc::clone(gone));
        }
        let known = before.next_if(|file| order_of(file).cmp(&order) == Ordering::Equal);
        let file = known.map(Arc::clone).unwrap_or_else(|| {
            let file = Arc::new(make(entry));
            changes.added.push(Arc::clone(&file));
            file
        });
        listed.push(file);
    }
    changes.removed.extend(before.cloned());
    (listed, changes)
}

fn order_of(file: &DeltaFile) -> Order<'_> {
    let lsns = file.place().lsns;
    (lsns.up_to, lsns.after, file.name())
}
