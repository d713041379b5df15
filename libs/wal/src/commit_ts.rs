//! Pages of `pg_commit_ts`, which say when transactions committed: ten bytes each (`commit_ts.c`).

use std::collections::BTreeMap;

use palimpsest_types::PAGE_SIZE;

use crate::{
    clog::Xid,
    patches::{PagePatches, PatchWriter},
};

/// When a transaction committed, and where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitTimestamp {
    /// Microseconds since the beginning of the year 2000.
    pub time: i64,
    /// Replication origin; 0 is this cluster itself.
    pub origin: u16,
}

/// Transactions whose commit times one page holds.
pub const XIDS_PER_COMMIT_TS_PAGE: u32 = (PAGE_SIZE / ENTRY_LEN) as u32;

/// A time and an origin, without the padding that C would put after them.
const ENTRY_LEN: usize = 8 + 2;

impl CommitTimestamp {
    fn to_bytes(self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        let (time, origin) = bytes.split_at_mut(8);
        time.copy_from_slice(&self.time.to_le_bytes());
        origin.copy_from_slice(&self.origin.to_le_bytes());
        bytes
    }
}

/// What each page gets when these transactions commit at the same time.
pub(crate) fn commit_ts_patches(
    xids: &[Xid],
    commit: CommitTimestamp,
) -> impl Iterator<Item = (u32, PagePatches)> + use<> {
    let mut pages = BTreeMap::<u32, PatchWriter>::new();
    for xid in xids {
        let page = pages.entry(xid / XIDS_PER_COMMIT_TS_PAGE).or_default();
        let entry = (xid % XIDS_PER_COMMIT_TS_PAGE) as usize;
        page.write(entry * ENTRY_LEN, &commit.to_bytes());
    }
    pages.into_iter().map(|(page, it)| (page, it.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_ten_bytes_and_819_fill_a_page() {
        assert_eq!(XIDS_PER_COMMIT_TS_PAGE, 819);
        let commit = CommitTimestamp {
            time: 0x0102_0304_0506_0708,
            origin: 0x0A0B,
        };
        let pages: Vec<_> = commit_ts_patches(&[819, 3, 818], commit).collect();
        let entry = [8, 7, 6, 5, 4, 3, 2, 1, 0x0B, 0x0A];
        let mut first = vec![0; PAGE_SIZE];
        first[30..40].copy_from_slice(&entry);
        first[8180..8190].copy_from_slice(&entry);
        let mut second = vec![0; PAGE_SIZE];
        second[..10].copy_from_slice(&entry);
        for ((page, patches), (expected_page, expected)) in
            pages.into_iter().zip([(0, first), (1, second)])
        {
            let mut found = vec![0; PAGE_SIZE];
            patches.apply(&mut found);
            assert_eq!((page, found), (expected_page, expected));
        }
    }
}
