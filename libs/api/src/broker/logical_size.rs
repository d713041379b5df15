use palimpsest_types::{ByteCount, Lsn, Oid};

/// How large a timeline's databases are at one LSN: the bytes of all relation forks that exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalSize {
    /// Where it was added up.
    pub at: Lsn,
    /// All databases together, also those that are not listed.
    pub total: ByteCount,
    /// The largest first, at most [`LogicalSize::LISTED`] of them.
    pub databases: Vec<DatabaseSize>,
}

/// How large a database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseSize {
    /// Its OID; 0 stands for the relations that all databases share.
    pub database: Oid,
    /// Bytes of all its relation forks.
    pub size: ByteCount,
}

impl LogicalSize {
    /// Databases that are listed one by one: a status is told twice a second.
    pub const LISTED: usize = 100;

    /// Adds up what all databases have at `at`.
    pub fn of(at: Lsn, databases: impl IntoIterator<Item = (Oid, ByteCount)>) -> Self {
        let size = |(database, size)| DatabaseSize { database, size };
        let mut databases: Vec<_> = databases.into_iter().map(size).collect();
        let total = databases.iter().map(|database| database.size.get()).sum();
        databases.sort_unstable_by_key(|&DatabaseSize { database, size }| {
            (std::cmp::Reverse(size), database)
        });
        databases.truncate(Self::LISTED);
        Self {
            at,
            total: ByteCount::new(total),
            databases,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_listed_and_all_are_counted() {
        let sizes = (1..=150).map(|oid| (oid, ByteCount::new(u64::from(oid / 2))));
        let size = LogicalSize::of(Lsn::new(8), sizes);
        assert_eq!(size.total.get(), (1..=150).map(|oid| oid / 2).sum::<u64>());
        assert_eq!(size.databases.len(), LogicalSize::LISTED);
        let listed: Vec<_> = size
            .databases
            .iter()
            .map(|listed| listed.database)
            .collect();
        assert_eq!(&listed[..3], [150, 148, 149], "equal ones by their numbers");
        assert_eq!(listed.last(), Some(&50));
    }
}
