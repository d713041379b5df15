use std::collections::BTreeMap;

use palimpsest_types::Lsn;
use palimpsest_wal::{RawRecord, ResourceManager};
use rand::{
    Rng,
    seq::{IndexedRandom as _, IteratorRandom as _},
};

/// A moment at which something is half done, or has just been done to files as a whole. Among all
/// boundaries of records such are rare, and drawing at random would hardly meet them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Landmark {
    /// A transaction is prepared and has not ended.
    Prepared,
    /// A database exists, and its pages come one by one.
    DatabaseMade,
    /// A database's files are gone, its row too.
    DatabaseDropped,
    /// A tablespace exists, with nothing in it.
    TablespaceMade,
    /// A tablespace is gone.
    TablespaceDropped,
    /// A relation is shorter than it was.
    Truncated,
    /// A catalog has another file.
    RelationMapped,
    /// Several transactions hold a row.
    RowShared,
}

/// Where the landmarks of a log are.
#[derive(Debug, Clone, Default)]
pub struct Landmarks {
    found: BTreeMap<Landmark, Vec<Lsn>>,
}

impl Landmark {
    /// The landmark that a record's end is.
    pub fn of(record: &RawRecord) -> Option<Self> {
        /// The high bit of a transaction's record is a flag.
        const XACT_KIND: u8 = 0x70;
        let header = record.header()?;
        match (
            ResourceManager::from_number(header.rmid)?,
            header.rmgr_info(),
        ) {
            (ResourceManager::Transaction, info) if info & XACT_KIND == 0x10 => {
                Some(Self::Prepared)
            }
            (ResourceManager::Database, 0x10) => Some(Self::DatabaseMade),
            (ResourceManager::Database, 0x20) => Some(Self::DatabaseDropped),
            (ResourceManager::Tablespace, 0x00) => Some(Self::TablespaceMade),
            (ResourceManager::Tablespace, 0x10) => Some(Self::TablespaceDropped),
            (ResourceManager::Storage, 0x20) => Some(Self::Truncated),
            (ResourceManager::RelMap, 0x00) => Some(Self::RelationMapped),
            (ResourceManager::MultiXact, 0x20) => Some(Self::RowShared),
            _ => None,
        }
    }
}

impl Landmarks {
    /// Notes a record.
    pub fn note(&mut self, record: &RawRecord) {
        if let Some(landmark) = Landmark::of(record) {
            let found = self.found.entry(landmark).or_default();
            found.push(record.end_lsn);
        }
    }

    /// One of each of so many kinds.
    pub fn draw<R: Rng>(&self, kinds: usize, random: &mut R) -> Vec<(Landmark, Lsn)> {
        let kinds = self.found.iter().sample(random, kinds);
        let one = |(kind, lsns): (&Landmark, &Vec<Lsn>)| Some((*kind, *lsns.choose(random)?));
        kinds.into_iter().filter_map(one).collect()
    }
}
