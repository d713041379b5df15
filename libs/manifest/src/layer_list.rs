use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::layer_entry::LayerEntry;

/// One change of the set of layers. Names are never reused, so the order of edits does not matter:
/// a layer is there if it was added and not removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Edit {
    /// There is one more layer.
    Added(LayerEntry),
    /// The layer of this name is gone.
    Removed(String),
}

/// The body of a list object: many edits, none of which cancels another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerList {
    pub(crate) added: Vec<LayerEntry>,
    /// Names whose layers were added by older lists.
    pub(crate) removed: Vec<String>,
}

/// How a manifest refers to a list object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListRef {
    /// Name below the timeline's `lists`; random, never reused.
    pub(crate) name: String,
    /// Edits in it.
    pub(crate) edits: usize,
}

/// A list that the manifest refers to no more, but older ones did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ObsoleteList {
    pub(crate) name: String,
    /// The first manifest without it. It may be deleted once all numbers below are.
    pub(crate) since: u64,
}

impl LayerList {
    pub(crate) fn len(&self) -> usize {
        self.added.len() + self.removed.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One list from several and from later edits. A removal cancels with its addition if both are
    /// among them.
    pub(crate) fn merge<'a>(
        lists: impl IntoIterator<Item = &'a Self> + Clone,
        edits: &'a [Edit],
    ) -> Self {
        let mut removed: HashSet<&str> = HashSet::new();
        for list in lists.clone() {
            removed.extend(list.removed.iter().map(String::as_str));
        }
        removed.extend(edits.iter().filter_map(Edit::removed));
        let added = lists
            .into_iter()
            .flat_map(|list| &list.added)
            .chain(edits.iter().filter_map(Edit::added))
            .filter(|layer| !removed.remove(layer.name.as_str()))
            .cloned()
            .collect();
        let mut removed: Vec<_> = removed.into_iter().map(str::to_owned).collect();
        removed.sort_unstable();
        Self { added, removed }
    }
}

impl Edit {
    fn added(&self) -> Option<&LayerEntry> {
        match self {
            Self::Added(layer) => Some(layer),
            Self::Removed(_) => None,
        }
    }

    fn removed(&self) -> Option<&str> {
        match self {
            Self::Added(_) => None,
            Self::Removed(name) => Some(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_layers::delta;

    #[test]
    fn a_removal_cancels_with_its_addition_and_stays_otherwise() {
        let old = LayerList {
            added: vec![delta("a", 0, 1), delta("b", 1, 2)],
            removed: vec!["older".into()],
        };
        let edits = [
            Edit::Added(delta("c", 2, 3)),
            Edit::Removed("a".into()),
            Edit::Removed("c".into()),
        ];
        let merged = LayerList::merge([&old], &edits);
        assert_eq!(merged.added, [delta("b", 1, 2)]);
        assert_eq!(merged.removed, ["older"]);
        assert_eq!(merged.len(), 2);
        let alone = LayerList::merge([], &edits);
        assert_eq!(alone.removed, ["a"]);
        let rest = [Edit::Removed("b".into()), Edit::Removed("older".into())];
        let base = LayerList {
            added: vec![delta("older", 0, 1)],
            removed: Vec::new(),
        };
        assert!(LayerList::merge([&base, &merged], &rest).is_empty());
    }
}
