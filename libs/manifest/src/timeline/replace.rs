//! Replacing layers by what was made of them.

use std::collections::{HashMap, HashSet};

use super::TimelineManifest;
use crate::{
    layer_entry::{KeySpan, LayerEntry, LayerKind, LsnSpan},
    validate::InvalidManifestError,
};

/// What some delta layers hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holding {
    lsns: LsnSpan,
    keys: KeySpan,
    entries: u64,
}

impl TimelineManifest {
    /// Puts delta layers in the place of others that hold the same versions.
    ///
    /// What can be said without reading a file is checked: that there are as many versions as before,
    /// that together they reach as far, that none is where none was, and that no other layer has any of their
    /// LSNs: a read goes down from the older end of a layer, so what reaches above that it would not find.
    ///
    /// # Errors
    /// If a layer to replace is missing or no delta layer, or the others can't hold the same.
    pub fn replace_layers(
        &mut self,
        replaced: &[impl AsRef<str>],
        by: Vec<LayerEntry>,
    ) -> Result<(), InvalidManifestError> {
        let names: HashSet<&str> = replaced.iter().map(AsRef::as_ref).collect();
        let there: HashMap<&str, &LayerEntry> = self
            .layers()
            .iter()
            .filter(|layer| names.contains(layer.name.as_str()))
            .map(|layer| (layer.name.as_str(), layer))
            .collect();
        if let Some(missing) = names.iter().filter(|name| !there.contains_key(*name)).min() {
            return Err(InvalidManifestError::Unknown {
                layer: (*missing).to_owned(),
            });
        }
        let before = holding(there.values().copied())?;
        let after = holding(by.iter())?;
        if !before.is_held_by(&after) {
            return Err(InvalidManifestError::NotTheSame {
                before: before.to_string(),
                after: after.to_string(),
            });
        }
        let is_torn = |layer: &&LayerEntry| {
            let stays = !names.contains(layer.name.as_str());
            stays && matches!(layer.kind, LayerKind::Delta(lsns) if lsns.overlaps(&before.lsns))
        };
        if let Some(layer) = self.layers().iter().find(is_torn) {
            return Err(InvalidManifestError::TornApart {
                lsns: before.lsns,
                layer: layer.name.clone(),
            });
        }
        let mut changed = self.clone();
        changed.remove_layers(replaced)?;
        changed.add_layers(by)?;
        *self = changed;
        Ok(())
    }
}

/// What all of these hold together.
fn holding<'a>(
    layers: impl Iterator<Item = &'a LayerEntry>,
) -> Result<Holding, InvalidManifestError> {
    let mut all: Option<Holding> = None;
    for layer in layers {
        let LayerKind::Delta(lsns) = layer.kind else {
            return Err(InvalidManifestError::NoDelta {
                layer: layer.name.clone(),
            });
        };
        let one = Holding {
            lsns,
            keys: layer.keys,
            entries: layer.entries,
        };
        all = Some(all.map_or(one, |all| all.and(&one)));
    }
    all.ok_or(InvalidManifestError::Nothing)
}

impl Holding {
    fn and(&self, other: &Self) -> Self {
        Self {
            lsns: LsnSpan {
                after: self.lsns.after.min(other.lsns.after),
                up_to: self.lsns.up_to.max(other.lsns.up_to),
            },
            keys: KeySpan {
                first: self.keys.first.min(other.keys.first),
                last: self.keys.last.max(other.keys.last),
            },
            entries: self.entries.saturating_add(other.entries),
        }
    }

    /// Keys may be fewer: a layer without changes is listed with a key that it has not.
    fn is_held_by(&self, after: &Self) -> bool {
        let inside = self.keys.contains(after.keys.first) && self.keys.contains(after.keys.last);
        self.lsns == after.lsns && self.entries == after.entries && inside
    }
}

impl std::fmt::Display for Holding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            lsns,
            keys,
            entries,
        } = self;
        let (first, last) = (keys.first, keys.last);
        write!(f, "{entries} versions of {first} to {last} in {lsns}")
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{ByteCount, Lsn, SystemIdentifier};

    use super::*;
    use crate::{
        SourceCluster,
        test_layers::{base, delta},
    };

    fn manifest() -> TimelineManifest {
        let source = SourceCluster {
            system_identifier: SystemIdentifier::new(7),
            pg_version: 15,
            pg_timeline: 1,
            wal_segment_size: ByteCount::mib(16),
            wal_log_hints: false,
        };
        let mut manifest = TimelineManifest::new(source, Lsn::new(100), Lsn::new(100));
        manifest.lsn = Lsn::new(160);
        let layers = vec![
            base("base", 100),
            delta("a", 100, 120),
            delta("b", 120, 140),
            delta("c", 140, 160),
        ];
        manifest.add_layers(layers).unwrap();
        manifest
    }

    /// A layer of so many versions.
    fn compacted(name: &str, after: u64, up_to: u64, entries: u64) -> LayerEntry {
        LayerEntry {
            entries,
            level: 1,
            ..delta(name, after, up_to)
        }
    }

    fn names(manifest: &TimelineManifest) -> Vec<&str> {
        let layers = manifest.layers().iter();
        layers.map(|layer| layer.name.as_str()).collect()
    }

    #[test]
    fn p5_what_replaces_layers_has_as_much() {
        let mut manifest = manifest();
        let before = manifest.clone();
        let mut replace = |by| manifest.replace_layers(&["a", "b"], by);
        let refused = [
            vec![compacted("x", 100, 140, 19)],
            vec![compacted("x", 100, 140, 21)],
            vec![compacted("x", 100, 139, 20)],
            vec![compacted("x", 99, 140, 20)],
            vec![],
            vec![base("x", 140)],
        ];
        for by in refused {
            assert!(replace(by.clone()).is_err(), "{by:?}");
        }
        let by = vec![
            compacted("x", 100, 140, 5),
            compacted("y", 100, 120, 7),
            compacted("z", 120, 140, 8),
        ];
        assert_eq!(before, manifest);
        manifest.replace_layers(&["a", "b"], by).unwrap();
        assert_eq!(names(&manifest), ["base", "y", "x", "z", "c"]);
        manifest.check().unwrap();
    }

    #[test]
    fn p1_layers_are_not_replaced_without_others_of_their_lsns() {
        let mut manifest = manifest();
        let by = vec![
            compacted("hot, older", 100, 120, 6),
            compacted("hot, newer", 120, 140, 7),
            compacted("cold", 100, 140, 7),
        ];
        manifest.replace_layers(&["a", "b"], by).unwrap();
        let before = manifest.clone();
        // It seems to go on with the newer part of what was cut by LSN.
        let by = vec![compacted("both", 120, 160, 17)];
        let torn = manifest.replace_layers(&["hot, newer", "c"], by);
        assert!(
            matches!(torn, Err(InvalidManifestError::TornApart { ref layer, .. }) if layer == "cold"),
            "{torn:?}"
        );
        assert_eq!(manifest, before);
        let all = ["hot, older", "hot, newer", "cold", "c"];
        let by = vec![compacted("all", 100, 160, 30)];
        manifest.replace_layers(&all, by).unwrap();
    }

    #[test]
    fn only_delta_layers_that_are_there_are_replaced() {
        let mut manifest = manifest();
        let by = || vec![compacted("x", 100, 120, 10)];
        let gone = manifest.replace_layers(&["a", "q"], by());
        assert!(matches!(gone, Err(InvalidManifestError::Unknown { layer }) if layer == "q"));
        let base = manifest.replace_layers(&["base"], by());
        assert!(matches!(base, Err(InvalidManifestError::NoDelta { layer }) if layer == "base"));
        manifest.replace_layers(&["a"], by()).unwrap();
        let twice = manifest.replace_layers(&["b"], by());
        assert!(twice.is_err(), "a name that is there already");
    }
}
