//! What is particular to PostgreSQL 15: object ids and where columns stand.
//!
//! The columns are the first of their tables, of fixed width and never null, so each stands at the
//! same place after the tuple's header.

use palimpsest_types::Oid;

/// A catalog: what says where its columns stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Catalog {
    /// Its object id.
    pub(crate) oid: Oid,
    /// Its name, for messages.
    pub(crate) name: &'static str,
    /// Bytes of a row that are read; every row has them.
    pub(crate) row_len: usize,
}

/// `pg_tablespace.dat`: where databases are unless somebody says otherwise.
pub const DEFAULT_TABLESPACE: Oid = 1663;
/// `pg_tablespace.dat`: where shared relations are.
pub const GLOBAL_TABLESPACE: Oid = 1664;

/// Length of a name column (`NAMEDATALEN`), which is padded with zeros.
pub(crate) const NAME_LEN: usize = 64;
/// Every catalog here begins with its object id and then the name.
pub(crate) const OID: usize = 0;
/// See [`OID`].
pub(crate) const NAME: usize = 4;

/// `pg_database.h`.
pub(crate) const DATABASES: Catalog = Catalog {
    oid: 1262,
    name: "pg_database",
    row_len: 96,
};
/// `pg_database.h`: `dattablespace`.
pub(crate) const DATABASE_TABLESPACE: usize = 92;

/// `pg_tablespace.h`.
pub(crate) const TABLESPACES: Catalog = Catalog {
    oid: 1213,
    name: "pg_tablespace",
    row_len: 72,
};

/// `pg_authid.h`.
pub(crate) const ROLES: Catalog = Catalog {
    oid: 1260,
    name: "pg_authid",
    row_len: 75,
};
/// `pg_authid.h`: `rolsuper`.
pub(crate) const ROLE_IS_SUPERUSER: usize = 68;
/// `pg_authid.h`: `rolcanlogin`.
pub(crate) const ROLE_CAN_LOGIN: usize = 72;

/// `pg_namespace.h`.
pub(crate) const SCHEMAS: Catalog = Catalog {
    oid: 2615,
    name: "pg_namespace",
    row_len: 72,
};

/// `pg_class.h`.
pub(crate) const RELATIONS: Catalog = Catalog {
    oid: 1259,
    name: "pg_class",
    row_len: 116,
};
/// `pg_class.h`: `relnamespace`.
pub(crate) const RELATION_SCHEMA: usize = 68;
/// `pg_class.h`: `relfilenode`.
pub(crate) const RELATION_FILE: usize = 88;
/// `pg_class.h`: `reltablespace`.
pub(crate) const RELATION_TABLESPACE: usize = 92;
/// `pg_class.h`: `relisshared`.
pub(crate) const RELATION_IS_SHARED: usize = 113;
/// `pg_class.h`: `relkind`.
pub(crate) const RELATION_KIND: usize = 115;

/// `RELKIND_HAS_STORAGE` in `pg_class.h`: tables, indexes, sequences, TOAST tables and
/// materialized views.
pub(crate) const fn has_storage(kind: u8) -> bool {
    matches!(kind, b'r' | b'i' | b'S' | b't' | b'm')
}

/// What people call a relation of this kind.
pub(crate) const fn kind_name(kind: u8) -> &'static str {
    match kind {
        b'v' => "a view",
        b'c' => "a composite type",
        b'f' => "a foreign table",
        b'p' => "a partitioned table",
        b'I' => "a partitioned index",
        _ => "of an unknown kind",
    }
}
