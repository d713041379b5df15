//! How large the databases of a timeline are, added up from time to time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use palimpsest_api::broker::LogicalSize;
use palimpsest_types::{ByteCount, Lsn, Oid, PAGE_SIZE};
use palimpsest_wal::RelationSizes;

/// When sizes were last added up, and where.
#[derive(Debug, Default)]
pub(super) struct Adding(Option<(Instant, Lsn)>);

/// Not more often: it takes a look at every relation.
const INTERVAL: Duration = Duration::from_secs(10);

impl Adding {
    /// Whether the sizes at `lsn` are to be added up: there is news, and it was not done lately.
    pub(super) fn is_due(&self, lsn: Lsn, now: Instant) -> bool {
        self.0
            .is_none_or(|(last, at)| at != lsn && now.duration_since(last) >= INTERVAL)
    }

    /// Adds up the sizes at `lsn`.
    pub(super) fn add_up(&mut self, lsn: Lsn, now: Instant, sizes: &RelationSizes) -> LogicalSize {
        self.0 = Some((now, lsn));
        LogicalSize::of(lsn, by_database(sizes))
    }
}

fn by_database(sizes: &RelationSizes) -> impl Iterator<Item = (Oid, ByteCount)> {
    let mut databases = BTreeMap::<Oid, u64>::new();
    for (rel, blocks) in sizes.iter() {
        let size = u64::from(blocks.get()) * PAGE_SIZE as u64;
        *databases.entry(rel.db).or_default() += size;
    }
    let sizes = databases.into_iter();
    sizes.map(|(db, size)| (db, ByteCount::new(size)))
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{BlockNumber, Fork, RelTag};

    use super::*;

    #[test]
    fn all_forks_of_a_database_count_in_all_tablespaces() {
        let mut sizes = RelationSizes::default();
        for (spc, db, fork, blocks) in [
            (1663, 1, Fork::Main, 2),
            (1663, 1, Fork::FreeSpaceMap, 3),
            (9999, 1, Fork::Main, 1),
            (1663, 5, Fork::Main, 4),
            (1664, 0, Fork::Main, 1),
        ] {
            let rel = 1000;
            let rel = RelTag { spc, db, rel, fork };
            sizes.set(rel, BlockNumber::new(blocks));
        }
        let added = Adding::default().add_up(Lsn::new(8), Instant::now(), &sizes);
        assert_eq!((added.at, added.total.get()), (Lsn::new(8), 11 * 8192));
        let listed = added.databases.iter();
        let listed: Vec<_> = listed
            .map(|listed| (listed.database, listed.size.get() / 8192))
            .collect();
        assert_eq!(listed, [(1, 6), (5, 4), (0, 1)]);
    }

    #[test]
    fn sizes_are_added_up_now_and_then_and_only_if_there_is_news() {
        let (begin, sizes) = (Instant::now(), RelationSizes::default());
        let (one, two) = (Lsn::new(8), Lsn::new(16));
        let mut adding = Adding::default();
        assert!(adding.is_due(one, begin));
        adding.add_up(one, begin, &sizes);
        assert!(!adding.is_due(two, begin + INTERVAL / 2));
        assert!(adding.is_due(two, begin + INTERVAL));
        assert!(!adding.is_due(one, begin + INTERVAL));
    }
}
