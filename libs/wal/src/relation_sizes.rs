use std::{collections::BTreeMap, ops::RangeInclusive};

use palimpsest_types::{BlockNumber, ByteCount, Fork, Oid, RelTag};

/// Sizes of all relation forks of a timeline at its newest LSN: what ingest must know to see that
/// a record extends a relation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelationSizes {
    sizes: BTreeMap<RelTag, BlockNumber>,
}

/// A fork and its size, in a node of the tree that is two thirds full.
const FORK_SIZE: u64 = (size_of::<RelTag>() + size_of::<BlockNumber>()) as u64 * 3 / 2;

impl RelationSizes {
    /// The size of a fork; `None` if it does not exist.
    pub fn get(&self, rel: RelTag) -> Option<BlockNumber> {
        self.sizes.get(&rel).copied()
    }

    /// Sets the size of a fork, which exists from now on.
    pub fn set(&mut self, rel: RelTag, blocks: BlockNumber) {
        self.sizes.insert(rel, blocks);
    }

    /// Forgets a fork; false if it did not exist.
    pub fn remove(&mut self, rel: RelTag) -> bool {
        self.sizes.remove(&rel).is_some()
    }

    /// Forgets all forks that a database has in a tablespace.
    pub fn remove_database(&mut self, spc: Oid, db: Oid) {
        for (rel, _) in self.of_database((spc, db)) {
            self.sizes.remove(&rel);
        }
    }

    /// A database has in a tablespace, both given as that and this, what another has, and nothing
    /// else.
    pub fn copy_database(&mut self, from: (Oid, Oid), to: (Oid, Oid)) {
        let forks = self.of_database(from);
        let (spc, db) = to;
        self.remove_database(spc, db);
        for (rel, blocks) in forks {
            self.set(RelTag { spc, db, ..rel }, blocks);
        }
    }

    /// Number of forks that exist.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Whether no fork exists.
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// Memory that they take, about.
    pub fn size(&self) -> ByteCount {
        ByteCount::new(self.sizes.len() as u64 * FORK_SIZE)
    }

    fn of_database(&self, database: (Oid, Oid)) -> Vec<(RelTag, BlockNumber)> {
        let forks = self.sizes.range(forks_of(database));
        forks.map(|(rel, blocks)| (*rel, *blocks)).collect()
    }

    /// All forks with their sizes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (RelTag, BlockNumber)> + '_ {
        self.sizes.iter().map(|(rel, blocks)| (*rel, *blocks))
    }
}

/// All forks there can be of a database in a tablespace.
fn forks_of((spc, db): (Oid, Oid)) -> RangeInclusive<RelTag> {
    let fork = |rel, fork| RelTag { spc, db, rel, fork };
    fork(0, Fork::Main)..=fork(Oid::MAX, Fork::Init)
}
