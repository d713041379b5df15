//! The layers of a manifest, and the edits that change them.
//!
//! What a change writes to the store depends on its edits alone. In memory it is a pass over the
//! entries, some milliseconds at 100,000, which is nothing beside the object store's answer.

use std::{collections::HashSet, sync::Arc};

use super::TimelineManifest;
use crate::{
    layer_entry::LayerEntry,
    layer_list::{Edit, LayerList},
    validate::{InvalidManifestError, check_layer},
};

impl TimelineManifest {
    /// All layers, in the order of the LSNs at which they end.
    pub fn layers(&self) -> &[LayerEntry] {
        &self.layers
    }

    /// Adds layers, which must be in the store already and have names never used before.
    ///
    /// # Errors
    /// If one has an impossible range or a name that is there already; then none is added.
    pub fn add_layers(&mut self, layers: Vec<LayerEntry>) -> Result<(), InvalidManifestError> {
        let mut names = HashSet::new();
        for layer in &layers {
            check_layer(layer)?;
            if !names.insert(layer.name.as_str()) {
                return Err(duplicate(layer));
            }
        }
        let there = |layer: &&LayerEntry| names.contains(layer.name.as_str());
        if let Some(layer) = self.layers.iter().find(there) {
            return Err(duplicate(layer));
        }
        self.edits.extend(layers.iter().cloned().map(Edit::Added));
        let all = Arc::make_mut(&mut self.layers);
        all.extend(layers);
        // Almost sorted already, which this sort makes use of.
        all.sort_by(|a, b| a.order().cmp(&b.order()));
        Ok(())
    }

    /// Removes layers by their names. Their files are for others to delete.
    ///
    /// # Errors
    /// If one is not there; then none is removed.
    pub fn remove_layers(&mut self, names: &[impl AsRef<str>]) -> Result<(), InvalidManifestError> {
        let gone: HashSet<&str> = names.iter().map(AsRef::as_ref).collect();
        let mut missing = gone.clone();
        for layer in self.layers.iter() {
            missing.remove(layer.name.as_str());
        }
        if let Some(name) = missing.into_iter().min() {
            return Err(unknown(name));
        }
        Arc::make_mut(&mut self.layers).retain(|layer| !gone.contains(layer.name.as_str()));
        // A layer that no list has yet goes without a trace.
        let mut listed = gone;
        self.edits.retain(|edit| match edit {
            Edit::Added(layer) => !listed.remove(layer.name.as_str()),
            Edit::Removed(_) => true,
        });
        let mut listed: Vec<_> = listed.into_iter().collect();
        listed.sort_unstable();
        let removed = listed
            .into_iter()
            .map(|name| Edit::Removed(name.to_owned()));
        self.edits.extend(removed);
        Ok(())
    }

    /// Makes the layers from these, the manifest's lists, and the edits.
    pub(crate) fn assemble(
        &mut self,
        lists: &[Arc<LayerList>],
    ) -> Result<(), InvalidManifestError> {
        for (list, reference) in lists.iter().zip(&self.lists) {
            if list.len() != reference.edits {
                return Err(InvalidManifestError::ListLength {
                    list: reference.name.clone(),
                    expected: reference.edits,
                    found: list.len(),
                });
            }
        }
        let LayerList { mut added, removed } =
            LayerList::merge(lists.iter().map(Arc::as_ref), &self.edits);
        if let Some(name) = removed.first() {
            return Err(unknown(name));
        }
        let mut names = HashSet::with_capacity(added.len());
        for layer in &added {
            check_layer(layer)?;
            if !names.insert(layer.name.as_str()) {
                return Err(duplicate(layer));
            }
        }
        added.sort_by(|a, b| a.order().cmp(&b.order()));
        self.layers = Arc::new(added);
        Ok(())
    }
}

fn duplicate(layer: &LayerEntry) -> InvalidManifestError {
    InvalidManifestError::Duplicate {
        layer: layer.name.clone(),
    }
}

fn unknown(name: &str) -> InvalidManifestError {
    InvalidManifestError::Unknown {
        layer: name.to_owned(),
    }
}
