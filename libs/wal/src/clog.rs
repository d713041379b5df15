//! Pages of `pg_xact`, which say how transactions ended: two bits each (`clog.c`).

use std::collections::BTreeMap;

use palimpsest_types::PAGE_SIZE;

/// A transaction id. It wraps around; a page of `pg_xact` begins anew when its ids come again.
pub type Xid = u32;

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionEnd {
    /// What it wrote is there.
    Committed,
    /// It is as if it had never been.
    Aborted,
}

/// Ids below stand for no transaction that could end.
pub(crate) const FIRST_NORMAL_XID: Xid = 3;

/// Whether a transaction is older than another, as ids that wrap around go
/// (`TransactionIdPrecedes`). The few special ones are older than all others.
pub(crate) const fn precedes(a: Xid, b: Xid) -> bool {
    match a < FIRST_NORMAL_XID || b < FIRST_NORMAL_XID {
        true => a < b,
        false => (a.wrapping_sub(b) as i32) < 0,
    }
}

/// The newest of some transactions, if there is one.
pub(crate) fn newest(xids: &[Xid]) -> Option<Xid> {
    let later = |a, b| if precedes(a, b) { b } else { a };
    xids.iter().copied().reduce(later)
}

/// Transactions whose status one page holds.
pub const XIDS_PER_CLOG_PAGE: u32 = PAGE_SIZE as u32 * XIDS_PER_BYTE;

const XIDS_PER_BYTE: u32 = 4;
const BITS: u32 = 2;
const MASK: u8 = 0b11;

impl TransactionEnd {
    const fn bits(self) -> u8 {
        match self {
            Self::Committed => 1,
            Self::Aborted => 2,
        }
    }
}

/// The page of `pg_xact` that holds the status of a transaction.
pub const fn clog_page_of(xid: Xid) -> u32 {
    xid / XIDS_PER_CLOG_PAGE
}

/// How a transaction ended, as its page says; `None` while it has not, or if the page is too short.
///
/// The fourth status, a subtransaction whose parent is about to commit, never comes from the log:
/// the record of the parent's commit sets both.
pub fn transaction_end(page: &[u8], xid: Xid) -> Option<TransactionEnd> {
    let (byte, shift) = place(xid);
    match (page.get(byte)? >> shift) & MASK {
        1 => Some(TransactionEnd::Committed),
        2 => Some(TransactionEnd::Aborted),
        _ => None,
    }
}

/// Writes into a page of `pg_xact` how transactions on it ended.
pub fn set_transaction_end(page: &mut [u8], xids: &[Xid], end: TransactionEnd) {
    for xid in xids {
        let (byte, shift) = place(*xid);
        if let Some(byte) = page.get_mut(byte) {
            *byte = *byte & !(MASK << shift) | end.bits() << shift;
        }
    }
}

/// Which byte of its page holds the status of a transaction, and how far it must be shifted.
const fn place(xid: Xid) -> (usize, u32) {
    let on_page = xid % XIDS_PER_CLOG_PAGE;
    let byte = on_page / XIDS_PER_BYTE;
    (byte as usize, on_page % XIDS_PER_BYTE * BITS)
}

/// Transactions by the page that holds their status.
pub(crate) fn by_clog_page(xids: &[Xid]) -> BTreeMap<u32, Vec<Xid>> {
    let mut pages = BTreeMap::<_, Vec<_>>::new();
    for xid in xids {
        pages.entry(clog_page_of(*xid)).or_default().push(*xid);
    }
    pages
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bits_are_where_postgres_has_them() {
        let mut page = vec![0; PAGE_SIZE];
        set_transaction_end(&mut page, &[0, 3], TransactionEnd::Committed);
        set_transaction_end(&mut page, &[1, 32767], TransactionEnd::Aborted);
        assert_eq!(page[0], 0b01_00_10_01);
        assert_eq!(page[8191], 0b10_00_00_00);
        assert_eq!(transaction_end(&page, 2), None);
        assert_eq!(clog_page_of(32768), 1);
        assert_eq!(
            transaction_end(&page, 32768 + 3),
            Some(TransactionEnd::Committed),
            "the page is the caller's to choose"
        );
    }

    #[test]
    fn pages_get_each_their_own() {
        let pages = by_clog_page(&[32768, 5, 32767, 40000]);
        assert_eq!(
            pages,
            BTreeMap::from([(0, vec![5, 32767]), (1, vec![32768, 40000])])
        );
    }

    proptest! {
        #[test]
        fn one_transaction_changes_no_other(xid: u32, other: u32, fill: u8, commits: bool) {
            let end = if commits { TransactionEnd::Committed } else { TransactionEnd::Aborted };
            let before = vec![fill; PAGE_SIZE];
            let mut page = before.clone();
            set_transaction_end(&mut page, &[xid], end);
            prop_assert_eq!(transaction_end(&page, xid), Some(end));
            if other % XIDS_PER_CLOG_PAGE != xid % XIDS_PER_CLOG_PAGE {
                prop_assert_eq!(transaction_end(&page, other), transaction_end(&before, other));
            }
        }

        #[test]
        fn a_short_page_is_no_danger(len in 0..PAGE_SIZE, xid: u32) {
            let mut page = vec![0; len];
            set_transaction_end(&mut page, &[xid], TransactionEnd::Committed);
            let _ = transaction_end(&page, xid);
        }
    }
}
