//! Records that change pages outside relations.

use std::ops::Range;

use palimpsest_types::{BlockNumber, Key, PAGE_SIZE, SlruKind};

use super::{Reason, changes::Changes};
use crate::{
    change::Value,
    clog::{TransactionEnd, Xid, by_clog_page},
    commit_ts::{CommitTimestamp, commit_ts_patches},
    multixact::{MEMBERS_PER_PAGE, MultiXactId, NewMultiXact, offset_place},
    slru::{change_slru_page, is_cut_off, segment_of},
    v15::SlruAction,
};

/// Pages outside relations that may begin with one record.
///
/// PostgreSQL begins them one by one, each by a record of its own, but for the first of `pg_commit_ts`
/// and, before the base is consistent, what a file lacked when it was read: a segment at most. A page
/// that begins with an entry is an image, and a record has room for the ids of a million pages.
const MAX_NEW_SLRU_PAGES: u32 = 2 * SlruKind::PAGES_PER_SEGMENT;

impl Changes<'_> {
    pub(super) fn slru(&mut self, action: SlruAction) -> Result<(), Reason> {
        match action {
            SlruAction::ZeroPage(kind, page) => self.zero_slru_page(kind, page)?,
            SlruAction::TruncateClog { cutoff, oldest, db } => {
                self.cluster.oldest_xid(oldest, db);
                self.truncate_slru(SlruKind::Clog, cutoff);
            }
            SlruAction::TruncateCommitTs { cutoff, oldest } => {
                self.cluster.oldest_commit_ts(oldest);
                self.truncate_slru(SlruKind::CommitTs, cutoff);
            }
            SlruAction::CreateMultiXact(multixact) => {
                self.cluster.multixact(&multixact);
                self.create_multixact(&multixact)?;
            }
            SlruAction::TruncateMultiXacts {
                oldest,
                db,
                members,
            } => {
                self.cluster.oldest_multi(oldest, db);
                self.truncate_multixacts(oldest, members);
            }
        }
        Ok(())
    }

    pub(super) fn transactions_ended(
        &mut self,
        end: TransactionEnd,
        xids: &[Xid],
    ) -> Result<(), Reason> {
        for (page, xids) in by_clog_page(xids) {
            let xids = xids.into();
            let value = Value::TransactionsEnded { end, xids };
            self.change_slru_page(SlruKind::Clog, page, value)?;
        }
        Ok(())
    }

    pub(super) fn committed_at(
        &mut self,
        xids: &[Xid],
        commit: CommitTimestamp,
    ) -> Result<(), Reason> {
        for (page, patches) in commit_ts_patches(xids, commit) {
            self.change_slru_page(SlruKind::CommitTs, page, Value::Patched(patches))?;
        }
        Ok(())
    }

    /// All of it goes when a server begins not to use it (`DeactivateCommitTs`).
    pub(super) fn drop_commit_timestamps(&mut self) {
        let all: Vec<_> = self.segments.of(SlruKind::CommitTs).collect();
        self.drop_slru_segments(SlruKind::CommitTs, all);
    }

    /// As `RecordNewMultiXact` does.
    fn create_multixact(&mut self, multixact: &NewMultiXact) -> Result<(), Reason> {
        for (page, patches) in multixact.offsets() {
            let value = Value::Patched(patches);
            self.change_slru_page(SlruKind::MultiXactOffsets, page, value)?;
        }
        for (page, patches) in multixact.members() {
            let value = Value::Patched(patches);
            self.change_slru_page(SlruKind::MultiXactMembers, page, value)?;
        }
        Ok(())
    }

    /// A page of offsets may have got its first entry before this record, in the log of minor
    /// versions that write the record with that entry's multixact: then it stays. It is there,
    /// too, when the base was taken after this record, and then has what follows.
    fn zero_slru_page(&mut self, kind: SlruKind, page: u32) -> Result<(), Reason> {
        let is_new = self.extend_slru_to(kind, page)?;
        if is_new || kind != SlruKind::MultiXactOffsets {
            self.push(Key::SlruBlock(kind, page), Value::ZeroPage);
        }
        Ok(())
    }

    /// Replay reads a page that is not there as zeros, and then writes it. Older versions of that
    /// page are of entries long gone.
    fn change_slru_page(&mut self, kind: SlruKind, page: u32, value: Value) -> Result<(), Reason> {
        let value = match self.extend_slru_to(kind, page)? {
            false => value,
            true => {
                let mut image = vec![0; PAGE_SIZE];
                change_slru_page(&mut image, &value)?;
                Value::Image(image.into())
            }
        };
        self.push(Key::SlruBlock(kind, page), value);
        Ok(())
    }

    /// Makes a page exist, and those before it in the segment, as in the segment's file; true if it
    /// did not. A record changes the pages of a segment in rising order.
    fn extend_slru_to(&mut self, kind: SlruKind, page: u32) -> Result<bool, Reason> {
        let segment = segment_of(page);
        let before = self.segments.get(kind, segment);
        let index = page % SlruKind::PAGES_PER_SEGMENT;
        if index < before {
            return Ok(false);
        }
        self.new_slru_pages += index - before + 1;
        if self.new_slru_pages > MAX_NEW_SLRU_PAGES {
            return Err(Reason::TooManySlruPages(MAX_NEW_SLRU_PAGES));
        }
        for number in (page - index + before)..page {
            self.push(Key::SlruBlock(kind, number), Value::ZeroPage);
        }
        self.resize_slru_segment(kind, segment, index + 1);
        Ok(true)
    }

    fn truncate_slru(&mut self, kind: SlruKind, cutoff: u32) {
        let all = self.segments.of(kind);
        let old = all.filter(|segment| is_cut_off(kind, *segment, cutoff));
        let old: Vec<_> = old.collect();
        self.drop_slru_segments(kind, old);
    }

    /// As `PerformMembersTruncation` and `PerformOffsetsTruncation`: the offset before the oldest
    /// one stays, and so does the segment of the first member that stays.
    fn truncate_multixacts(&mut self, oldest: MultiXactId, members: Range<u32>) {
        let segment = |offset| segment_of(offset / MEMBERS_PER_PAGE);
        let (start, end) = (segment(members.start), segment(members.end));
        let goes = |segment: &u32| match start <= end {
            true => (start..end).contains(segment),
            false => *segment >= start || *segment < end,
        };
        let all = self.segments.of(SlruKind::MultiXactMembers);
        let old: Vec<_> = all.filter(goes).collect();
        self.drop_slru_segments(SlruKind::MultiXactMembers, old);
        // Before multixact 1 comes the last one.
        let before = match oldest.wrapping_sub(1) {
            0 => u32::MAX,
            before => before,
        };
        let (cutoff, _) = offset_place(before);
        self.truncate_slru(SlruKind::MultiXactOffsets, cutoff);
    }

    fn drop_slru_segments(&mut self, kind: SlruKind, segments: Vec<u32>) {
        for segment in segments {
            self.resize_slru_segment(kind, segment, 0);
        }
    }

    fn resize_slru_segment(&mut self, kind: SlruKind, segment: u32, pages: u32) {
        self.segments.set(kind, segment, pages);
        self.resized_segments.insert((kind, segment));
    }

    /// Every segment whose length changed gets its final one of this record.
    pub(super) fn finish_slru_segments(&mut self) {
        for (kind, segment) in std::mem::take(&mut self.resized_segments) {
            let value = match self.segments.get(kind, segment) {
                0 => Value::Dropped,
                pages => Value::RelSize(BlockNumber::new(pages)),
            };
            self.push(Key::SlruSegment(kind, segment), value);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
