//! Which relations exist.

use std::collections::BTreeMap;

use palimpsest_types::{BlockNumber, Fork, Key, KeyRange, Lsn, Oid, RelTag};
use palimpsest_wal::Value;

use crate::{
    error::ReadError,
    lineage::{Database, Lineage},
    versions::Versions,
};

/// All relation forks that exist at an LSN, with their sizes.
///
/// # Errors
/// If a version can't be read.
pub async fn relations_at<V: Versions>(
    versions: &V,
    lsn: Lsn,
) -> Result<BTreeMap<RelTag, BlockNumber>, ReadError> {
    let newest = sizes_at(versions, |_| true, lsn).await?;
    Ok(newest.into_iter().filter_map(existing).collect())
}

/// Blocks of all forks of a database at an LSN, in all its tablespaces; `None` if it has no fork.
///
/// # Errors
/// If a version can't be read.
pub(crate) async fn blocks_at<V: Versions>(
    versions: &V,
    db: Oid,
    lsn: Lsn,
) -> Result<Option<u64>, ReadError> {
    let newest = sizes_at(versions, |database| database.db == db, lsn).await?;
    let blocks = newest.into_iter().filter_map(existing);
    let blocks = blocks.map(|(_, blocks)| u64::from(blocks.get()));
    Ok(blocks.reduce(u64::saturating_add))
}

/// The newest sizes of all forks of these databases, as their databases' histories have it. Keys begin
/// with the tablespace, so all are read; of others than these nothing is kept.
async fn sizes_at<V: Versions>(
    versions: &V,
    of: impl Fn(Database) -> bool,
    lsn: Lsn,
) -> Result<BTreeMap<Key, Value>, ReadError> {
    let databases = versions.newest_in(all_databases(), lsn).await?;
    let databases: BTreeMap<_, _> = databases
        .into_iter()
        .filter_map(event)
        .filter(|(database, _)| of(*database))
        .collect();
    let sizes = versions.newest_in(all_sizes(), lsn).await?;
    let mut newest = BTreeMap::new();
    for (key, (at, value)) in sizes {
        let Some(database) = database_of(key).filter(|database| of(*database)) else {
            continue;
        };
        let began = databases.get(&database);
        if began.is_none_or(|(began, _)| *began <= at) {
            newest.insert(key, value);
        }
    }
    for (database, (_, value)) in databases {
        if matches!(value, Value::CopyOf { .. }) {
            for (key, size) in sizes_before(versions, database, lsn).await? {
                newest.entry(key).or_insert(size);
            }
        }
    }
    Ok(newest)
}

/// The sizes that a copied database came with.
async fn sizes_before<V: Versions>(
    versions: &V,
    database: Database,
    lsn: Lsn,
) -> Result<BTreeMap<Key, Value>, ReadError> {
    // All relations are asked for, so none may be left out because its database was copied often.
    let lineage = Lineage::within(versions, database, lsn, usize::MAX).await?;
    let mut newest = BTreeMap::new();
    for stretch in lineage.stretches().skip(1) {
        let sizes = sizes_of(stretch.database);
        for (key, (at, value)) in versions.newest_in(sizes, *stretch.lsns.end()).await? {
            if let Key::RelSize(rel) = key
                && stretch.lsns.contains(&at)
            {
                let key = Key::RelSize(database.own(rel));
                newest.entry(key).or_insert(value);
            }
        }
    }
    Ok(newest)
}

/// A fork, if this version of its size says that it exists.
fn existing(size: (Key, Value)) -> Option<(RelTag, BlockNumber)> {
    match size {
        (Key::RelSize(rel), Value::RelSize(blocks)) => Some((rel, blocks)),
        _ => None,
    }
}

/// What last happened to a database as a whole, and when.
fn event((key, version): (Key, (Lsn, Value))) -> Option<(Database, (Lsn, Value))> {
    match key {
        Key::Database { spc, db } => Some((Database { spc, db }, version)),
        _ => None,
    }
}

/// Whose size it is.
fn database_of(key: Key) -> Option<Database> {
    match key {
        Key::RelSize(rel) => Some(Database::of(rel)),
        _ => None,
    }
}

/// Sizes of all relation forks there can be.
fn all_sizes() -> KeyRange {
    first_size(0, 0)..after_sizes()
}

/// Sizes of all relation forks that a database can have.
fn sizes_of(Database { spc, db }: Database) -> KeyRange {
    let end = match (spc.checked_add(1), db.checked_add(1)) {
        (_, Some(next)) => first_size(spc, next),
        (Some(next), None) => first_size(next, 0),
        (None, None) => after_sizes(),
    };
    first_size(spc, db)..end
}

const fn first_size(spc: Oid, db: Oid) -> Key {
    Key::RelSize(first_fork(spc, db))
}

const fn after_sizes() -> Key {
    Key::RelBlock(first_fork(0, 0), BlockNumber::ZERO)
}

const fn first_fork(spc: Oid, db: Oid) -> RelTag {
    RelTag {
        spc,
        db,
        rel: 0,
        fork: Fork::Main,
    }
}

/// Every database but the last there could be, whose number PostgreSQL gives to nothing.
pub(crate) const fn all_databases() -> KeyRange {
    const fn database(oid: Oid) -> Key {
        Key::Database { spc: oid, db: oid }
    }
    database(0)..database(Oid::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_of_a_database_are_all_of_its_and_no_others() {
        let oids = [0, 1, 5, Oid::MAX - 1, Oid::MAX];
        let pairs = || oids.into_iter().flat_map(|spc| oids.map(|db| (spc, db)));
        for (spc, db) in pairs() {
            let range = sizes_of(Database { spc, db });
            for (other_spc, other_db) in pairs() {
                for (rel, fork) in [(0, Fork::Main), (Oid::MAX, Fork::Init)] {
                    let other = RelTag {
                        spc: other_spc,
                        db: other_db,
                        rel,
                        fork,
                    };
                    let inside = range.contains(&Key::RelSize(other));
                    assert_eq!(inside, (spc, db) == (other_spc, other_db), "{other}");
                    assert!(!range.contains(&Key::RelBlock(other, BlockNumber::ZERO)));
                }
            }
        }
    }
}
