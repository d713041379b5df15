//! What a dropped or copied database means for reading: the one place that knows.
//!
//! A version of [`Key::Database`] says something of all that a database has in a tablespace, before
//! whatever else its record says. [`Value::Dropped`]: nothing older counts. [`Value::CopyOf`]:
//! instead of what is older, what the other database had just before counts. So the history of a
//! database is pieced together from stretches of histories, and a key of it is looked for in one
//! after the other, newest first:
//!
//! ```text
//!  database C, read at 90      ├─ C ──▶ 90        copied from B at 70
//!           B                  ├─ B ─┤ 69         copied from A at 40
//!           A      ── A ───────┤ 39               not copied: it goes back to the base
//!                             40    70
//! ```
//!
//! Each stretch ends before the one after it begins, so following them comes to an end.

use std::ops::RangeInclusive;

use palimpsest_types::{Key, Lsn, Oid, RelTag};
use palimpsest_wal::Value;

use crate::{error::ReadError, versions::Versions};

/// All that a database has in a tablespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Database {
    pub(crate) spc: Oid,
    pub(crate) db: Oid,
}

/// Versions that count: those of the keys of one database at these LSNs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) database: Database,
    pub(crate) lsns: RangeInclusive<Lsn>,
}

/// Where the versions of a database's keys at an LSN are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lineage {
    /// Newest first: each is of a copy of what the next one, or the root, ends with.
    copies: Vec<Stretch>,
    /// Nothing before it counts.
    root: Stretch,
}

/// Copies of copies that a read follows. Each costs it two look-ups.
pub(crate) const MAX_COPIES: usize = 1024;

impl Database {
    /// The database that has a relation.
    pub(crate) const fn of(rel: RelTag) -> Self {
        Self {
            spc: rel.spc,
            db: rel.db,
        }
    }

    /// The relation that has here the number and fork of another.
    pub(crate) const fn own(self, rel: RelTag) -> RelTag {
        RelTag {
            spc: self.spc,
            db: self.db,
            rel: rel.rel,
            fork: rel.fork,
        }
    }

    const fn key(self) -> Key {
        Key::Database {
            spc: self.spc,
            db: self.db,
        }
    }
}

impl Stretch {
    /// The newest version of a key in this stretch.
    async fn newest<V: Versions>(
        &self,
        versions: &V,
        key: Key,
    ) -> Result<Option<Value>, ReadError> {
        let newest = versions.newest(key, self.lsns.clone()).await?;
        Ok(newest.map(|(_, value)| value))
    }
}

impl Lineage {
    /// The lineage of a database at an LSN, for one read.
    ///
    /// # Errors
    /// If it can't be read, or there are too many copies.
    pub(crate) async fn of<V: Versions>(
        versions: &V,
        database: Database,
        lsn: Lsn,
    ) -> Result<Self, ReadError> {
        Self::within(versions, database, lsn, MAX_COPIES).await
    }

    /// The lineage of a database at an LSN, if it has no more copies than this.
    ///
    /// # Errors
    /// If it can't be read, or there are too many copies.
    pub(crate) async fn within<V: Versions>(
        versions: &V,
        database: Database,
        lsn: Lsn,
        limit: usize,
    ) -> Result<Self, ReadError> {
        let mut copies = Vec::new();
        let (mut of, mut up_to) = (database, lsn);
        loop {
            let newest = versions.newest(of.key(), Lsn::ZERO..=up_to).await?;
            let (stretch, before) = newest_stretch(of, up_to, newest)?;
            match before {
                None => {
                    let root = stretch;
                    return Ok(Self { copies, root });
                }
                Some(_) if copies.len() == limit => {
                    return Err(ReadError::CopiedTooOften {
                        spc: database.spc,
                        db: database.db,
                        limit,
                    });
                }
                Some(before) => (of, up_to) = before,
            }
            copies.push(stretch);
        }
    }

    /// Stretches of copies, newest first: what was copied is in the next one, or in the root.
    pub(crate) fn copies(&self) -> &[Stretch] {
        &self.copies
    }

    /// The oldest stretch: nothing before it counts.
    pub(crate) fn root(&self) -> &Stretch {
        &self.root
    }

    /// All stretches, newest first.
    pub(crate) fn stretches(&self) -> impl Iterator<Item = &Stretch> {
        self.copies.iter().chain(std::iter::once(&self.root))
    }

    /// The newest version of a key of the database, given what it is called in each stretch.
    ///
    /// # Errors
    /// If it can't be read.
    pub(crate) async fn newest<V: Versions>(
        &self,
        versions: &V,
        key_in: impl Fn(Database) -> Key + Send,
    ) -> Result<Option<Value>, ReadError> {
        for stretch in self.stretches() {
            let newest = stretch.newest(versions, key_in(stretch.database)).await?;
            if newest.is_some() {
                return Ok(newest);
            }
        }
        Ok(None)
    }
}

/// The newest stretch of a database's history up to an LSN, given the newest version of its own key;
/// and whose history goes on before it, up to where.
fn newest_stretch(
    database: Database,
    up_to: Lsn,
    newest: Option<(Lsn, Value)>,
) -> Result<(Stretch, Option<(Database, Lsn)>), ReadError> {
    let (from, before) = match newest {
        None => (Lsn::ZERO, None),
        Some((at, Value::Dropped)) => (at, None),
        Some((at, Value::CopyOf { spc, db })) => {
            let origin = Database { spc, db };
            // Nothing comes before the first LSN.
            let before = at.get().checked_sub(1).map(Lsn::new);
            (at, before.map(|up_to| (origin, up_to)))
        }
        Some(_) => return Err(ReadError::WrongValue(database.key())),
    };
    let lsns = from..=up_to;
    Ok((Stretch { database, lsns }, before))
}

#[cfg(test)]
mod tests;
