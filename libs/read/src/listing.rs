//! What databases consist of.

use std::{borrow::Cow, collections::BTreeMap};

use palimpsest_types::{BlockNumber, Fork, Key, KeyRange, Lsn, Oid, RelTag};
use palimpsest_wal::Value;

use crate::{
    error::ReadError,
    lineage::{Database, Lineage, Stretch},
    versions::{Images, Listing, Versions},
};

/// Keys that databases have, all of one kind.
struct Kind {
    /// Those of all databases there can be.
    all: KeyRange,
    /// Those of one.
    of: fn(Database) -> KeyRange,
    /// Which database has a key.
    database: fn(Key) -> Option<Database>,
    /// What a key of another database is called here.
    own: fn(Database, Key) -> Key,
}

/// All relation forks that exist at an LSN, with their sizes.
///
/// # Errors
/// If a version can't be read.
pub async fn relations_at<V: Versions>(
    versions: &V,
    lsn: Lsn,
) -> Result<BTreeMap<RelTag, BlockNumber>, ReadError> {
    let newest = newest_of(versions, &Kind::sizes(), |_| true, lsn).await?;
    Ok(newest.into_iter().filter_map(existing).collect())
}

/// The relation maps of all databases at an LSN.
///
/// # Errors
/// If a version can't be read.
pub(crate) async fn maps_at<V: Versions>(
    versions: &V,
    lsn: Lsn,
) -> Result<BTreeMap<Key, Value>, ReadError> {
    let mut newest = newest_of(versions, &Kind::maps(), |_| true, lsn).await?;
    newest.retain(|_, value| *value != Value::Dropped);
    Ok(newest)
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
    let of = |database: Database| database.db == db;
    let newest = newest_of(versions, &Kind::sizes(), of, lsn).await?;
    let blocks = newest.into_iter().filter_map(existing);
    let blocks = blocks.map(|(_, blocks)| u64::from(blocks.get()));
    Ok(blocks.reduce(u64::saturating_add))
}

/// The newest versions of all keys of a kind that these databases have, as their histories have it. Keys
/// begin with the tablespace, so all are read; of others than these nothing is kept.
async fn newest_of<V: Versions>(
    versions: &V,
    kind: &Kind,
    of: impl Fn(Database) -> bool,
    lsn: Lsn,
) -> Result<BTreeMap<Key, Value>, ReadError> {
    let databases = versions.newest_in(all_databases(), lsn).await?;
    let databases: BTreeMap<_, _> = (databases.versions)
        .into_iter()
        .filter_map(event)
        .filter(|(database, _)| of(*database))
        .collect();
    let own = versions.newest_in(kind.all.clone(), lsn).await?;
    let mut newest = BTreeMap::new();
    for (key, (at, value)) in own.versions {
        let Some(database) = (kind.database)(key).filter(|database| of(*database)) else {
            continue;
        };
        let began = databases.get(&database);
        if began.is_none_or(|(began, _)| *began <= at) {
            newest.insert(key, value);
        }
    }
    for (database, (_, value)) in databases {
        if matches!(value, Value::CopyOf { .. }) {
            for (key, value) in copied(versions, kind, (database, &own.images), lsn).await? {
                newest.entry(key).or_insert(value);
            }
        }
    }
    Ok(newest)
}

/// What a copied database came with, but for what was gone when images of its own were made.
async fn copied<V: Versions>(
    versions: &V,
    kind: &Kind,
    (database, images): (Database, &Images),
    lsn: Lsn,
) -> Result<BTreeMap<Key, Value>, ReadError> {
    // All are asked for, so none may be left out because its database was copied often.
    let lineage = Lineage::within(versions, database, lsn, usize::MAX).await?;
    let mut newest = BTreeMap::new();
    let mut newer: Vec<(&Stretch, Cow<'_, Images>)> = Vec::new();
    let mut stretches = lineage.stretches();
    newer.extend(stretches.next().map(|own| (own, Cow::Borrowed(images))));
    for stretch in stretches {
        let keys = (kind.of)(stretch.database);
        let Listing {
            versions: found,
            images,
        } = versions.newest_in(keys, *stretch.lsns.end()).await?;
        let found = found.into_iter();
        for (key, (_, value)) in found.filter(|(_, (at, _))| stretch.lsns.contains(at)) {
            // What an image of a newer stretch has not was gone by then.
            let is_gone = newer.iter().any(|(of, images)| {
                let at = images.of((kind.own)(of.database, key));
                at.is_some_and(|at| of.lsns.contains(&at))
            });
            if !is_gone {
                newest.entry((kind.own)(database, key)).or_insert(value);
            }
        }
        if !images.is_empty() {
            newer.push((stretch, Cow::Owned(images)));
        }
    }
    Ok(newest)
}

impl Kind {
    fn sizes() -> Self {
        Self {
            all: first_size(0, 0)..after_sizes(),
            of: sizes_of,
            database: |key| match key {
                Key::RelSize(rel) => Some(Database::of(rel)),
                _ => None,
            },
            own: |database, key| match key {
                Key::RelSize(rel) => Key::RelSize(database.own(rel)),
                other => other,
            },
        }
    }

    fn maps() -> Self {
        let map_of = |Database { spc, db }| Key::RelMap { spc, db };
        Self {
            all: map_of(Database { spc: 0, db: 0 })..Key::TwoPhase(0),
            of: |Database { spc, db }| {
                let map = Key::RelMap { spc, db };
                map..map.next().unwrap_or(Key::TwoPhase(0))
            },
            database: |key| match key {
                Key::RelMap { spc, db } => Some(Database { spc, db }),
                _ => None,
            },
            own: |Database { spc, db }, _| Key::RelMap { spc, db },
        }
    }
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
