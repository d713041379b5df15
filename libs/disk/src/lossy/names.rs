//! Which names there are, now and after a power cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// A file, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileId(pub(super) u64);

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Directory,
    File(FileId),
}

/// A change of names.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Put(PathBuf, Node),
    Move { from: PathBuf, to: PathBuf },
    Remove(PathBuf),
    RemoveAll(PathBuf),
}

type Tree = BTreeMap<PathBuf, Node>;

/// The names as programs see them, those that are durable, and the changes between the two.
#[derive(Debug, Default)]
pub(super) struct Names {
    live: Tree,
    durable: Tree,
    pending: Vec<Change>,
}

impl Names {
    /// A name that has always been there.
    pub(super) fn found(&mut self, path: PathBuf, node: Node) {
        self.live.insert(path.clone(), node);
        self.durable.insert(path, node);
    }

    pub(super) fn get(&self, path: &Path) -> Option<Node> {
        self.live.get(path).copied()
    }

    /// The files below a directory, by their present names.
    pub(super) fn files_below(&self, directory: &Path) -> Vec<(PathBuf, FileId)> {
        let below = self
            .live
            .iter()
            .filter(|(path, _)| path.starts_with(directory));
        below
            .filter_map(|(path, node)| match node {
                Node::File(id) => Some((path.clone(), *id)),
                Node::Directory => None,
            })
            .collect()
    }

    /// Changes the names; durable is that only after [`Names::sync`].
    pub(super) fn change(&mut self, change: Change) {
        apply(&mut self.live, &change);
        self.pending.push(change);
    }

    /// Makes what happened in a directory durable, in the order in which it happened.
    pub(super) fn sync(&mut self, directory: &Path) {
        let pending = std::mem::take(&mut self.pending);
        for change in pending {
            if touches(&change, directory) {
                apply(&mut self.durable, &change);
            } else {
                self.pending.push(change);
            }
        }
    }

    /// How many changes a power cut may undo.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The files that a power cut leaves when the first `kept` changes made it to the disk by
    /// themselves; as journals do, none without those before it.
    pub(super) fn after_power_cut(&self, root: &Path, kept: usize) -> Tree {
        let mut tree = self.durable.clone();
        for change in self.pending.iter().take(kept) {
            apply(&mut tree, change);
        }
        let reachable = |path: &Path| {
            let above = path.ancestors().skip(1);
            above
                .take_while(|above| *above != root)
                .all(|above| tree.get(above) == Some(&Node::Directory))
        };
        let there = tree.iter().filter(|(path, _)| reachable(path));
        there.map(|(path, node)| (path.clone(), *node)).collect()
    }

    /// Files that have a name now, or may have one again after a power cut.
    pub(super) fn in_use(&self) -> BTreeSet<FileId> {
        let pending = self.pending.iter().filter_map(|change| match change {
            Change::Put(_, node) => Some(node),
            _ => None,
        });
        let nodes = self
            .live
            .values()
            .chain(self.durable.values())
            .chain(pending);
        nodes
            .filter_map(|node| match node {
                Node::File(id) => Some(*id),
                Node::Directory => None,
            })
            .collect()
    }
}

fn apply(tree: &mut Tree, change: &Change) {
    match change {
        Change::Put(path, node) => {
            tree.insert(path.clone(), *node);
        }
        Change::Move { from, to } => {
            if let Some(node) = tree.remove(from) {
                tree.insert(to.clone(), node);
            }
        }
        Change::Remove(path) => {
            tree.remove(path);
        }
        Change::RemoveAll(path) => tree.retain(|other, _| !other.starts_with(path)),
    }
}

fn touches(change: &Change, directory: &Path) -> bool {
    let within = |path: &Path| path.parent() == Some(directory);
    match change {
        Change::Put(path, _) | Change::Remove(path) | Change::RemoveAll(path) => within(path),
        Change::Move { from, to } => within(from) || within(to),
    }
}
