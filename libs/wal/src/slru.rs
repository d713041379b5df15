//! The areas that PostgreSQL keeps in numbered pages outside relations (`slru.c`): which pages there
//! are, and what changes do to one.

use std::{collections::BTreeMap, ops::Range};

use palimpsest_types::SlruKind;

use crate::{
    change::Value,
    clog::{FIRST_NORMAL_XID, XIDS_PER_CLOG_PAGE, set_transaction_end},
    commit_ts::XIDS_PER_COMMIT_TS_PAGE,
    multixact::OFFSETS_PER_PAGE,
};

/// The segments of all areas that exist, each with its number of pages.
///
/// As in PostgreSQL, pages begin to exist one by one and cease to by whole segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlruSegments {
    pages: BTreeMap<(SlruKind, u32), u32>,
}

/// A version that is none of a page of an SLRU area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a version of an SLRU page is of a wrong kind")]
pub struct NotAnSlruChangeError;

impl SlruSegments {
    /// Pages of a segment; 0 if it does not exist.
    pub fn get(&self, kind: SlruKind, segment: u32) -> u32 {
        let pages = self.pages.get(&(kind, segment));
        pages.copied().unwrap_or_default()
    }

    /// A segment has this many pages from now on; with none it ceases to exist.
    pub fn set(&mut self, kind: SlruKind, segment: u32, pages: u32) {
        match pages {
            0 => drop(self.pages.remove(&(kind, segment))),
            _ => drop(self.pages.insert((kind, segment), pages)),
        }
    }

    /// The segments of an area, in order.
    pub fn of(&self, kind: SlruKind) -> impl Iterator<Item = u32> + '_ {
        let range = self.pages.range((kind, 0)..=(kind, u32::MAX));
        range.map(|((_, segment), _)| *segment)
    }
}

/// Makes a change to a page of an SLRU area.
///
/// # Errors
/// If it is no change of such a page.
pub fn change_slru_page(page: &mut [u8], change: &Value) -> Result<(), NotAnSlruChangeError> {
    match change {
        Value::Image(image) if image.len() == page.len() => page.copy_from_slice(image),
        Value::ZeroPage => page.fill(0),
        Value::TransactionsEnded { end, xids } => set_transaction_end(page, xids, *end),
        Value::Patched(patches) => patches.apply(page),
        Value::Image(_)
        | Value::Record { .. }
        | Value::TruncateVisibilityMap { .. }
        | Value::RelSize(_)
        | Value::File(_)
        | Value::CopyOf { .. }
        | Value::Dropped => return Err(NotAnSlruChangeError),
    }
    Ok(())
}

/// The segment that a page belongs to.
pub const fn segment_of(page: u32) -> u32 {
    page / SlruKind::PAGES_PER_SEGMENT
}

/// Whether truncating an area to begin at page `cutoff` removes a segment
/// (`SlruMayDeleteSegment`): it does if all of the segment is older.
pub(crate) fn is_cut_off(kind: SlruKind, segment: u32, cutoff: u32) -> bool {
    let pages = pages_of(segment);
    let is_older = |page| precedes(kind, page, cutoff);
    is_older(pages.start) && is_older(pages.end.wrapping_sub(1))
}

/// Pages of a segment, existing or not.
fn pages_of(segment: u32) -> Range<u32> {
    let first = segment.wrapping_mul(SlruKind::PAGES_PER_SEGMENT);
    first..first.wrapping_add(SlruKind::PAGES_PER_SEGMENT)
}

/// Whether all entries of a page are older than all of another, as numbers that wrap around go
/// (`CLOGPagePrecedes` and its like). Members are removed by ranges and have no such order.
fn precedes(kind: SlruKind, page: u32, other: u32) -> bool {
    let (per_page, first_normal) = match kind {
        SlruKind::Clog => (XIDS_PER_CLOG_PAGE, FIRST_NORMAL_XID),
        SlruKind::CommitTs => (XIDS_PER_COMMIT_TS_PAGE, FIRST_NORMAL_XID),
        // Any number may be a multixact.
        SlruKind::MultiXactOffsets => (OFFSETS_PER_PAGE, 0),
        SlruKind::MultiXactMembers => return false,
    };
    // An entry that is no special one, of whichever page.
    let entry = |page: u32| {
        page.wrapping_mul(per_page)
            .wrapping_add(FIRST_NORMAL_XID + 1)
    };
    let (mine, theirs) = (entry(page), entry(other));
    let is_before = |a: u32, b: u32| match a < first_normal || b < first_normal {
        true => a < b,
        false => (a.wrapping_sub(b) as i32) < 0,
    };
    is_before(mine, theirs) && is_before(mine, theirs.wrapping_add(per_page - 1))
}

#[cfg(test)]
mod tests {
    use palimpsest_types::PAGE_SIZE;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_whole_segments_before_the_cutoff_go() {
        for kind in [
            SlruKind::Clog,
            SlruKind::CommitTs,
            SlruKind::MultiXactOffsets,
        ] {
            assert!(is_cut_off(kind, 0, 32), "{kind:?}");
            assert!(!is_cut_off(kind, 0, 31), "{kind:?}");
            assert!(!is_cut_off(kind, 1, 32), "{kind:?}");
            assert!(!is_cut_off(kind, 2, 32), "{kind:?}");
        }
    }

    #[test]
    fn what_is_before_wraps_around() {
        let last = u32::MAX / XIDS_PER_CLOG_PAGE / SlruKind::PAGES_PER_SEGMENT;
        assert!(is_cut_off(SlruKind::Clog, last, 5));
        assert!(!is_cut_off(SlruKind::Clog, 0, (last - 1) * 32));
    }

    proptest! {
        #[test]
        fn no_page_precedes_itself_and_no_two_each_other(kind in 0u32..4, a: u32, b: u32) {
            let kind = SlruKind::from_number(kind).unwrap();
            prop_assert!(!precedes(kind, a, a));
            prop_assert!(!(precedes(kind, a, b) && precedes(kind, b, a)));
        }
    }

    #[test]
    fn segments_come_and_go() {
        let mut segments = SlruSegments::default();
        segments.set(SlruKind::Clog, 3, 7);
        segments.set(SlruKind::CommitTs, 0, 1);
        segments.set(SlruKind::Clog, 1, 32);
        assert_eq!(segments.of(SlruKind::Clog).collect::<Vec<_>>(), [1, 3]);
        segments.set(SlruKind::Clog, 3, 0);
        assert_eq!(segments.get(SlruKind::Clog, 3), 0);
        assert_eq!(segments.of(SlruKind::Clog).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn an_image_of_another_size_is_no_page() {
        let mut page = vec![0; PAGE_SIZE];
        let short = Value::Image(vec![1; 5].into());
        assert!(change_slru_page(&mut page, &short).is_err());
        assert!(change_slru_page(&mut page, &Value::Dropped).is_err());
    }
}
