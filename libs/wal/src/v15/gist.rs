//! GiST records (`gistxlog.h`, `gist.h`).

use palimpsest_types::{Lsn, PAGE_SIZE};

use crate::{image::lsn_on_page, record::RecordHeader, rmgr::ResourceManager};

const PAGE_UPDATE: u8 = 0x00;
const PAGE_SPLIT: u8 = 0x30;

/// Where `GISTPageOpaqueData` stands: it is the end of every page.
const OPAQUE: usize = PAGE_SIZE - 16;
/// In it: `nsn`, written as page LSNs are.
const NSN: usize = OPAQUE;
/// In it: `flags`, after `nsn` and `rightlink`.
const FLAGS: usize = OPAQUE + 12;
const F_FOLLOW_RIGHT: u8 = 1 << 3;

/// Whether the page is the left half of a split that this record completes: it has the downlink of
/// the right half.
pub(super) fn completes_split(header: &RecordHeader, block_id: u8) -> bool {
    let is_gist = header.rmid == ResourceManager::Gist.number();
    is_gist
        && matches!(
            (header.rmgr_info(), block_id),
            (PAGE_UPDATE, 1) | (PAGE_SPLIT, 0)
        )
}

/// As `gistRedoClearFollowRight`.
pub(super) fn clear_follow_right(page: &mut [u8], end_lsn: Lsn) {
    if let Some(nsn) = page.get_mut(NSN..NSN + size_of::<Lsn>()) {
        nsn.copy_from_slice(&lsn_on_page(end_lsn));
    }
    if let Some(flags) = page.get_mut(FLAGS) {
        *flags &= !F_FOLLOW_RIGHT;
    }
}
