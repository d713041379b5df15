//! Whether a row version is seen (`HeapTupleSatisfiesMVCC`), by everything committed at one LSN.

use palimpsest_wal::{MultiXactId, TransactionEnd, Xid};

use crate::heap::TupleHeader;

/// A row version whose visibility can't be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Untold {
    /// Deleted or updated by one of several transactions, and which is not kept.
    MultiXact(MultiXactId),
    /// Moved by a PostgreSQL before 9.0.
    Moved,
    /// The status of this transaction is missing.
    NoStatus(Xid),
}

const XMAX_KEYSHR_LOCK: u16 = 0x0010;
const XMAX_EXCL_LOCK: u16 = 0x0040;
const XMAX_LOCK_ONLY: u16 = 0x0080;
const XMIN_COMMITTED: u16 = 0x0100;
const XMIN_INVALID: u16 = 0x0200;
const XMAX_COMMITTED: u16 = 0x0400;
const XMAX_INVALID: u16 = 0x0800;
const XMAX_IS_MULTI: u16 = 0x1000;
const MOVED: u16 = 0x4000 | 0x8000;

const XMIN_FROZEN: u16 = XMIN_COMMITTED | XMIN_INVALID;
const LOCK_MASK: u16 = XMAX_KEYSHR_LOCK | XMAX_EXCL_LOCK;

/// `BootstrapTransactionId` and `FrozenTransactionId` are older than everything; 0 is none.
const FIRST_NORMAL_XID: Xid = 3;

/// True if the row version is seen; `status` says how a transaction ended (outer `None`: unknown).
///
/// Hint bits are believed: PostgreSQL sets them after the end they tell of is in the log, and a page
/// read at an LSN has none that were set later.
pub(crate) fn is_visible(
    header: &TupleHeader,
    status: impl Fn(Xid) -> Option<Option<TransactionEnd>>,
) -> Result<bool, Untold> {
    let TupleHeader { xmin, infomask, .. } = *header;
    if infomask & MOVED != 0 {
        return Err(Untold::Moved);
    }
    let written = match infomask & XMIN_FROZEN {
        XMIN_FROZEN | XMIN_COMMITTED => true,
        XMIN_INVALID => false,
        _ => committed(xmin, &status)?,
    };
    Ok(written && !is_deleted(header, &status)?)
}

/// Transactions whose status [`is_visible`] may ask for.
pub(crate) fn undecided(header: &TupleHeader) -> impl Iterator<Item = Xid> {
    let TupleHeader {
        xmin,
        xmax,
        infomask,
    } = *header;
    let xmin = (infomask & XMIN_FROZEN == 0).then_some(xmin);
    let settled = XMAX_INVALID | XMAX_COMMITTED | XMAX_IS_MULTI | XMAX_LOCK_ONLY;
    let xmax = (infomask & settled == 0).then_some(xmax);
    let both = [xmin, xmax].into_iter().flatten();
    both.filter(|xid| *xid >= FIRST_NORMAL_XID)
}

/// The multixact of which [`is_visible`] must know the member that deleted the row.
pub(crate) fn deleting_multixact(header: &TupleHeader) -> Option<MultiXactId> {
    let TupleHeader { xmax, infomask, .. } = *header;
    let settled = XMAX_INVALID | XMAX_LOCK_ONLY;
    let decides = infomask & XMAX_IS_MULTI != 0 && infomask & settled == 0;
    decides.then_some(xmax)
}

/// The same row as if no multixact held it, but this member of it or none had deleted it.
pub(crate) fn deleted_by(header: TupleHeader, updater: Option<Xid>) -> TupleHeader {
    let without = header.infomask & !(XMAX_IS_MULTI | XMAX_COMMITTED | LOCK_MASK);
    TupleHeader {
        xmax: updater.unwrap_or_default(),
        infomask: match updater {
            Some(_) => without,
            None => without | XMAX_INVALID,
        },
        ..header
    }
}

fn is_deleted(
    header: &TupleHeader,
    status: impl Fn(Xid) -> Option<Option<TransactionEnd>>,
) -> Result<bool, Untold> {
    let TupleHeader { xmax, infomask, .. } = *header;
    let only_locked =
        infomask & XMAX_LOCK_ONLY != 0 || infomask & (XMAX_IS_MULTI | LOCK_MASK) == XMAX_EXCL_LOCK;
    if infomask & XMAX_INVALID != 0 || only_locked || xmax == 0 {
        return Ok(false);
    }
    if infomask & XMAX_IS_MULTI != 0 {
        return Err(Untold::MultiXact(xmax));
    }
    Ok(infomask & XMAX_COMMITTED != 0 || committed(xmax, status)?)
}

fn committed(
    xid: Xid,
    status: impl Fn(Xid) -> Option<Option<TransactionEnd>>,
) -> Result<bool, Untold> {
    if xid < FIRST_NORMAL_XID {
        return Ok(xid != 0);
    }
    let end = status(xid).ok_or(Untold::NoStatus(xid))?;
    Ok(end == Some(TransactionEnd::Committed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMITTED: Xid = 10;
    const ABORTED: Xid = 11;
    const RUNNING: Xid = 12;
    const UNKNOWN: Xid = 13;

    fn seen(xmin: Xid, xmax: Xid, infomask: u16) -> Result<bool, Untold> {
        let header = TupleHeader {
            xmin,
            xmax,
            infomask,
        };
        let status = |xid| match xid {
            COMMITTED => Some(Some(TransactionEnd::Committed)),
            ABORTED => Some(Some(TransactionEnd::Aborted)),
            RUNNING => Some(None),
            _ => None,
        };
        is_visible(&header, status)
    }

    #[test]
    fn the_writer_must_have_committed() {
        for (xmin, infomask, expected) in [
            (COMMITTED, 0, true),
            (ABORTED, 0, false),
            (RUNNING, 0, false),
            (0, 0, false),
            (1, 0, true),
            (2, 0, true),
            (UNKNOWN, XMIN_COMMITTED, true),
            (UNKNOWN, XMIN_INVALID, false),
            (UNKNOWN, XMIN_FROZEN, true),
        ] {
            let seen = seen(xmin, 0, infomask);
            assert_eq!(seen, Ok(expected), "{xmin} {infomask:04X}");
        }
        assert_eq!(seen(UNKNOWN, 0, 0), Err(Untold::NoStatus(UNKNOWN)));
    }

    #[test]
    fn the_deleter_must_not_have_committed() {
        for (xmax, infomask, expected) in [
            (COMMITTED, 0, false),
            (ABORTED, 0, true),
            (RUNNING, 0, true),
            (UNKNOWN, XMAX_INVALID, true),
            (UNKNOWN, XMAX_COMMITTED, false),
            (COMMITTED, XMAX_LOCK_ONLY, true),
            (COMMITTED, XMAX_LOCK_ONLY | XMAX_KEYSHR_LOCK, true),
            (COMMITTED, XMAX_EXCL_LOCK, true),
            (COMMITTED, XMAX_EXCL_LOCK | XMAX_KEYSHR_LOCK, false),
            (7, XMAX_IS_MULTI | XMAX_LOCK_ONLY, true),
            (7, XMAX_IS_MULTI | XMAX_INVALID, true),
        ] {
            let seen = seen(COMMITTED, xmax, infomask);
            assert_eq!(seen, Ok(expected), "{xmax} {infomask:04X}");
        }
        assert_eq!(seen(COMMITTED, 7, XMAX_IS_MULTI), Err(Untold::MultiXact(7)));
        assert_eq!(seen(COMMITTED, UNKNOWN, 0), Err(Untold::NoStatus(UNKNOWN)));
        assert_eq!(seen(2, 0, 0x4000), Err(Untold::Moved));
        // What was never written is not seen, however it was deleted.
        assert_eq!(seen(ABORTED, 7, XMAX_IS_MULTI), Ok(false));
    }

    #[test]
    fn of_a_multixact_only_the_updater_counts() {
        let header = |infomask| TupleHeader {
            xmin: COMMITTED,
            xmax: 7,
            infomask,
        };
        assert_eq!(deleting_multixact(&header(0)), None);
        for settled in [XMAX_INVALID, XMAX_LOCK_ONLY] {
            assert_eq!(deleting_multixact(&header(XMAX_IS_MULTI | settled)), None);
        }
        for lock in [0, XMAX_EXCL_LOCK, XMAX_KEYSHR_LOCK, LOCK_MASK] {
            let header = header(XMAX_IS_MULTI | lock);
            assert_eq!(deleting_multixact(&header), Some(7));
            for (updater, expected) in [
                (None, true),
                (Some(COMMITTED), false),
                (Some(ABORTED), true),
                (Some(RUNNING), true),
            ] {
                let TupleHeader {
                    xmin,
                    xmax,
                    infomask,
                } = deleted_by(header, updater);
                assert_eq!(seen(xmin, xmax, infomask), Ok(expected), "{updater:?}");
            }
        }
    }

    #[test]
    fn all_that_is_asked_for_was_announced() {
        for bits in 0..=u16::MAX >> 3 {
            let header = TupleHeader {
                xmin: RUNNING,
                xmax: COMMITTED,
                infomask: bits << 3,
            };
            let announced: Vec<_> = undecided(&header).collect();
            let _ = is_visible(&header, |xid| {
                assert!(announced.contains(&xid), "{header:?} asks for {xid}");
                Some(Some(TransactionEnd::Committed))
            });
        }
    }
}
