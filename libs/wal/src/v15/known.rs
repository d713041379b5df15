//! Which records each resource manager has. One that it has not may change anything.

use crate::{record::RecordHeader, rmgr::ResourceManager};

/// The part of `info` that says which record it is, where the highest bit is a flag.
const LOW_MASK: u8 = 0x70;
const MASK: u8 = 0xF0;

/// A manager's record types: the mask that they are told by, and all of them, in order.
type Known = (u8, &'static [u8]);

/// The types that a manager has (`*_redo` of each).
const fn known(rmgr: ResourceManager) -> Known {
    match rmgr {
        ResourceManager::Xlog => (
            MASK,
            &[
                0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xA0, 0xB0, 0xD0,
            ],
        ),
        ResourceManager::Transaction => (LOW_MASK, &[0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60]),
        ResourceManager::Storage => (MASK, &[0x10, 0x20]),
        ResourceManager::Clog
        | ResourceManager::Tablespace
        | ResourceManager::CommitTs
        | ResourceManager::ReplicationOrigin => (MASK, &[0x00, 0x10]),
        ResourceManager::Database | ResourceManager::Standby => (MASK, &[0x00, 0x10, 0x20]),
        ResourceManager::MultiXact => (MASK, &[0x00, 0x10, 0x20, 0x30]),
        ResourceManager::Heap | ResourceManager::Heap2 => {
            (LOW_MASK, &[0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70])
        }
        ResourceManager::Btree => (
            MASK,
            &[
                0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0,
                0xE0,
            ],
        ),
        ResourceManager::Hash => (
            MASK,
            &[
                0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xA0, 0xB0, 0xC0,
            ],
        ),
        ResourceManager::Gin => (
            MASK,
            &[0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90],
        ),
        ResourceManager::Gist => (MASK, &[0x00, 0x10, 0x20, 0x30, 0x60, 0x70]),
        ResourceManager::SpGist => (MASK, &[0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80]),
        ResourceManager::Brin => (LOW_MASK, &[0x00, 0x10, 0x20, 0x30, 0x40, 0x50]),
        ResourceManager::RelMap
        | ResourceManager::Sequence
        | ResourceManager::Generic
        | ResourceManager::LogicalMessage => (MASK, &[0x00]),
    }
}

/// Whether the manager has this record.
pub(crate) fn is_known(rmgr: ResourceManager, header: &RecordHeader) -> bool {
    let (mask, types) = known(rmgr);
    types.contains(&(header.info & mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(info: u8) -> RecordHeader {
        RecordHeader {
            total_len: 0,
            xid: 0,
            previous: palimpsest_types::Lsn::ZERO,
            info,
            rmid: 0,
            crc: 0,
        }
    }

    fn types_of(rmgr: ResourceManager) -> usize {
        let all = (0..=u8::MAX).step_by(0x10);
        all.filter(|info| is_known(rmgr, &header(*info))).count()
    }

    #[test]
    fn every_manager_has_as_many_records_as_its_headers_define() {
        let counts = ResourceManager::ALL.map(types_of);
        // Twice as many where the highest bit is a flag.
        let flagged = |count: usize| 2 * count;
        let expected = [
            13,
            flagged(7),
            2,
            2,
            3,
            2,
            4,
            1,
            3,
            flagged(8),
            flagged(8),
            15,
            13,
            9,
            6,
            1,
            8,
            flagged(6),
            2,
            2,
            1,
            1,
        ];
        assert_eq!(counts, expected);
    }

    #[test]
    fn flags_of_all_records_do_not_matter_and_others_do() {
        // XLR_CHECK_CONSISTENCY and XLR_SPECIAL_REL_UPDATE.
        assert!(is_known(ResourceManager::Storage, &header(0x13)));
        // A transaction with details; a heap record on a new page.
        assert!(is_known(ResourceManager::Transaction, &header(0x80)));
        assert!(is_known(ResourceManager::Heap, &header(0xF0)));
        for (rmgr, info) in [
            (ResourceManager::Xlog, 0xE0),
            (ResourceManager::Xlog, 0xC0),
            (ResourceManager::Transaction, 0x70),
            (ResourceManager::RelMap, 0x10),
            (ResourceManager::Standby, 0x30),
            (ResourceManager::Gin, 0x00),
            (ResourceManager::Gist, 0x40),
            (ResourceManager::Btree, 0xF0),
            (ResourceManager::CommitTs, 0x20),
            (ResourceManager::LogicalMessage, 0x10),
        ] {
            assert!(!is_known(rmgr, &header(info)), "{rmgr} {info:02X}");
        }
    }
}
