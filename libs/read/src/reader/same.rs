//! Whether a page that somebody else has is ours, without making ours.

use bytes::Bytes;
use palimpsest_redo::Engine;
use palimpsest_types::{BlockNumber, Key, Lsn, RelTag};
use palimpsest_wal::Value;

use super::{TimelineReader, find::Found};
use crate::{
    error::ReadError,
    lineage::{Database, Lineage},
};

/// Of `PageHeaderData` (`bufpage.h`).
const LSN: usize = 0;
const FLAGS: usize = 10;
const PD_ALL_VISIBLE: u16 = 0x0004;

impl<E: Engine> TimelineReader<E> {
    /// Which of these pages of a fork are the same at an LSN here, as far as can be said without replaying anything: the
    /// base's, byte for byte, or, if `trusts_lsns`, one whose LSN is that of the last change here. That is so where both
    /// have the same history.
    ///
    /// A cluster that does not log hint bits marks a heap page as all visible without giving it another LSN
    /// (`log_heap_visible`), so of a page with that mark the LSN says too little.
    ///
    /// # Errors
    /// If a layer can't be read.
    pub async fn same_pages(
        &self,
        rel: RelTag,
        pages: &[(BlockNumber, Bytes)],
        lsn: Lsn,
        trusts_lsns: bool,
    ) -> Result<Vec<bool>, ReadError> {
        let lineage = Lineage::of(self, Database::of(rel), lsn).await?;
        if !lineage.copies().is_empty() {
            // Pages that are a copy's may be another's under another name.
            return Ok(vec![false; pages.len()]);
        }
        let keys: Vec<_> = pages
            .iter()
            .map(|(block, _)| Key::RelBlock(rel, *block))
            .collect();
        let found = match self.find(&keys, &lineage.root().lsns).await {
            // They are not worth it.
            Err(ReadError::TooManyChanges { .. }) => return Ok(vec![false; pages.len()]),
            found => found?,
        };
        let mut same = Vec::with_capacity(pages.len());
        for (found, (_, page)) in found.iter().zip(pages) {
            same.push(match found.changes.last() {
                Some(last) => trusts_lsns && is_left_by(last, found, page),
                None => found.base().await?.is_some_and(|base| base == *page),
            });
        }
        Ok(same)
    }
}

/// Whether the last change has left a page as it is.
fn is_left_by(last: &Value, found: &Found, page: &Bytes) -> bool {
    let sets_lsn = matches!(last, Value::Record { .. } | Value::Image(_));
    sets_lsn && page_lsn(page) == Some(found.version.lsn) && !is_all_visible(page)
}

/// `pd_lsn`: the high half, then the low one.
fn page_lsn(page: &Bytes) -> Option<Lsn> {
    let half = |at: usize| -> Option<u64> {
        let bytes = page.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes).into())
    };
    Some(Lsn::new(half(LSN)? << 32 | half(LSN + 4)?))
}

fn is_all_visible(page: &Bytes) -> bool {
    let flags = page.get(FLAGS..FLAGS + 2);
    let flags = flags.and_then(|flags| flags.try_into().ok());
    flags.is_some_and(|flags| u16::from_le_bytes(flags) & PD_ALL_VISIBLE != 0)
}
