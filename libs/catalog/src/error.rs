use std::error::Error;

use palimpsest_types::{BlockNumber, ErrorKind, RelTag};
use palimpsest_wal::Xid;

/// A name could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError<E: Error + 'static> {
    /// There is no such database.
    #[error("there is no database {0:?} at that LSN")]
    NoDatabase(String),
    /// The database has no such schema.
    #[error("database {database:?} has no schema {schema:?} at that LSN")]
    NoSchema {
        /// The database.
        database: String,
        /// The schema.
        schema: String,
    },
    /// The schema has no such relation.
    #[error("schema {schema:?} of database {database:?} has no relation {table:?} at that LSN")]
    NoRelation {
        /// The database.
        database: String,
        /// The schema.
        schema: String,
        /// The relation.
        table: String,
    },
    /// The relation has no pages of its own.
    #[error("{table:?} is {kind}, which has no pages")]
    NoStorage {
        /// The relation.
        table: String,
        /// What it is.
        kind: &'static str,
    },
    /// What is stored contradicts itself.
    #[error("the catalogs can't be read")]
    Damaged(#[from] Damage),
    /// Something could not be read.
    #[error("the catalogs can't be read")]
    Source(#[source] E),
}

/// What is wrong with catalogs, or not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A page is not a heap page.
    #[error("{catalog} ({rel}) block {block} is malformed: {what}")]
    Page {
        /// Which catalog.
        catalog: &'static str,
        /// Its fork.
        rel: RelTag,
        /// The page.
        block: BlockNumber,
        /// What is wrong.
        what: &'static str,
    },
    /// A relation map is not one.
    #[error("the relation map of {spc}/{db} is malformed: {what}")]
    RelationMap {
        /// The tablespace.
        spc: u32,
        /// The database.
        db: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// A catalog's pages are not where they should be.
    #[error("{catalog} should be {rel}, which does not exist")]
    NoCatalog {
        /// Which catalog.
        catalog: &'static str,
        /// Where it should be.
        rel: RelTag,
    },
    /// Nothing says where a relation's pages are.
    #[error("nothing says where {0} is stored")]
    Unmapped(String),
    /// A transaction's status was not kept.
    #[error("the status of transaction {0} is not kept; attach the cluster again")]
    NoStatus(Xid),
    /// A row is locked and changed by several transactions at once, and nothing says which changed it.
    #[error(
        "a row of {catalog} was changed while others had locked it, and the members of multixact {multixact} are not kept; read at an earlier or later LSN, or name the relation by its numbers"
    )]
    MultiXact {
        /// Which catalog.
        catalog: &'static str,
        /// The id in place of a transaction's.
        multixact: u32,
    },
    /// A row has been in the cluster since before PostgreSQL 9.0.
    #[error("a row of {catalog} was moved by a VACUUM FULL of before PostgreSQL 9.0")]
    Moved {
        /// Which catalog.
        catalog: &'static str,
    },
}

impl<E: Error + 'static> ResolveError<E> {
    /// What the caller may do; `None` if the source knows.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::NoDatabase(_) | Self::NoSchema { .. } | Self::NoRelation { .. } => {
                Some(ErrorKind::NotFound)
            }
            Self::NoStorage { .. } => Some(ErrorKind::Invalid),
            Self::Damaged(Damage::MultiXact { .. } | Damage::Moved { .. }) => {
                Some(ErrorKind::Conflict)
            }
            Self::Damaged(_) => Some(ErrorKind::Corrupt),
            Self::Source(_) => None,
        }
    }
}
