use std::collections::BTreeMap;

use palimpsest_types::{BlockNumber, Oid, RelTag};

/// Sizes of all relation forks of a timeline at its newest LSN: what ingest must know to see that
/// a record extends a relation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelationSizes {
    sizes: BTreeMap<RelTag, BlockNumber>,
}

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

    /// All forks of one database in one tablespace.
    pub fn of_database(&self, spc: Oid, db: Oid) -> Vec<RelTag> {
        let in_database = |rel: &&RelTag| rel.spc == spc && rel.db == db;
        self.sizes.keys().filter(in_database).copied().collect()
    }

    /// All forks with their sizes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (RelTag, BlockNumber)> + '_ {
        self.sizes.iter().map(|(rel, blocks)| (*rel, *blocks))
    }
}
