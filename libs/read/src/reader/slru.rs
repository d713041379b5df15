//! Pages outside relations: `pg_xact`, `pg_multixact`, `pg_commit_ts`.

use bytes::Bytes;
use futures::future::try_join_all;
use palimpsest_redo::{Engine, slru_page};
use palimpsest_types::{Key, KeyRange, Lsn, SlruKind};
use palimpsest_wal::{Value, segment_of};

use super::{TimelineReader, find::Found};
use crate::{error::ReadError, versions::Versions as _};

impl<E: Engine> TimelineReader<E> {
    /// A page of an SLRU area; `None` if it does not exist, as when it was truncated.
    ///
    /// # Errors
    /// If it can't be built.
    pub async fn slru_page(
        &self,
        kind: SlruKind,
        page: u32,
        lsn: Lsn,
    ) -> Result<Option<Bytes>, ReadError> {
        let pages = self.slru_segment_len(kind, segment_of(page), lsn).await?;
        match page % SlruKind::PAGES_PER_SEGMENT < pages {
            true => Ok(self.existing_slru_pages(kind, &[page], lsn).await?.pop()),
            false => Ok(None),
        }
    }

    /// The pages of a segment of an SLRU area, by their number in the area.
    ///
    /// # Errors
    /// If the segment does not exist at that LSN or a page can't be built.
    pub async fn slru_segment(
        &self,
        kind: SlruKind,
        segment: u32,
        lsn: Lsn,
    ) -> Result<Vec<(u32, Bytes)>, ReadError> {
        let missing = ReadError::NoSlruSegment { kind, segment, lsn };
        let Some(first) = segment.checked_mul(SlruKind::PAGES_PER_SEGMENT) else {
            return Err(missing);
        };
        let len = self.slru_segment_len(kind, segment, lsn).await?;
        if len == 0 {
            return Err(missing);
        }
        let numbers: Vec<_> = (first..first.saturating_add(len)).collect();
        let pages = self.existing_slru_pages(kind, &numbers, lsn).await?;
        Ok(numbers.into_iter().zip(pages).collect())
    }

    /// The segments of an SLRU area that exist, each with its number of pages, in order.
    ///
    /// # Errors
    /// If a layer can't be read.
    pub async fn slru_segments(
        &self,
        kind: SlruKind,
        lsn: Lsn,
    ) -> Result<Vec<(u32, u32)>, ReadError> {
        let listing = self.newest_in(segments_of(kind), lsn).await?;
        let existing = listing
            .versions
            .into_iter()
            .filter_map(|entry| match entry {
                (Key::SlruSegment(_, segment), (_, Value::RelSize(pages))) => {
                    Some((segment, pages.get()))
                }
                _ => None,
            });
        Ok(existing.collect())
    }

    /// Pages of a segment; 0 if it does not exist.
    async fn slru_segment_len(
        &self,
        kind: SlruKind,
        segment: u32,
        lsn: Lsn,
    ) -> Result<u32, ReadError> {
        let key = Key::SlruSegment(kind, segment);
        match self
            .newest(key, Lsn::ZERO..=lsn)
            .await?
            .map(|(_, value)| value)
        {
            None | Some(Value::Dropped) => Ok(0),
            Some(Value::RelSize(pages)) => Ok(pages.get().min(SlruKind::PAGES_PER_SEGMENT)),
            Some(_) => Err(ReadError::WrongValue(key)),
        }
    }

    /// Pages that exist.
    pub(super) async fn existing_slru_pages(
        &self,
        kind: SlruKind,
        pages: &[u32],
        lsn: Lsn,
    ) -> Result<Vec<Bytes>, ReadError> {
        let keys = pages.iter().map(|page| Key::SlruBlock(kind, *page));
        let keys: Vec<_> = keys.collect();
        let found = self.find(&keys, &(Lsn::ZERO..=lsn)).await?;
        let made = found.into_iter().map(|found| async move {
            let version = found.version;
            let make = || make_slru_page(found);
            self.cache.get_or_make(&version, make).await
        });
        try_join_all(made).await
    }
}

async fn make_slru_page(found: Found) -> Result<Bytes, ReadError> {
    let key = found.version.key;
    let base = found.base().await?;
    slru_page(base, &found.changes).map_err(|source| ReadError::Slru { key, source })
}

/// The size keys of all segments that an area can have: no page has a number beyond 32 bits.
fn segments_of(kind: SlruKind) -> KeyRange {
    Key::SlruSegment(kind, 0)..Key::SlruSegment(kind, u32::MAX)
}
