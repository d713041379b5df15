//! From `database.schema.table` to the files of a relation, as of one LSN.
//!
//! [`resolve`] reads PostgreSQL's own catalogs: pages of `pg_database`, `pg_namespace` and
//! `pg_class` as they were at the LSN, relation maps for those that have no row saying where they
//! are, and `pg_xact` and `pg_multixact` to tell rows that are there from rows that are not. A row is seen if the
//! transaction that wrote it had committed at the LSN and none that deleted it had; no snapshot
//! beyond the LSN is needed, because whatever was under way then has no status yet.
//!
//! Where the pages come from is a [`CatalogSource`]. They are untrusted: any bytes give an answer
//! or an error, and nothing here panics on them. What is particular to a PostgreSQL major version is
//! in one module per version ([`v15`]).

mod error;
mod heap;
mod multixact;
mod name;
mod relation_map;
mod resolve;
mod rows;
mod source;
pub mod v15;
mod visibility;

pub use error::{Damage, ResolveError};
pub use name::{ParseRelationNameError, QualifiedName, RelationName};
pub use resolve::{resolve, resolve_database, superuser, tablespaces};
pub use source::CatalogSource;
