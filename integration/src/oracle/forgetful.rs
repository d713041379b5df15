use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use bytes::Bytes;
use palimpsest_types::{BlockNumber, Lsn, RelTag};

use super::PageSource;

/// A source that leaves out the last change of pages, to show that the oracle notices.
///
/// A page without its last record is the page as it was just before: what the true source gives at
/// the LSN before `pd_lsn`. That works with any source, also over the wire.
#[derive(Debug)]
pub struct Forgetful<'a, S> {
    source: &'a S,
    /// Older changes are in the base; they can't be left out.
    oldest: Lsn,
    most: u64,
    forgotten: AtomicU64,
}

impl<'a, S> Forgetful<'a, S> {
    /// A source that forgets the last change of that many pages at most, if it ends after `oldest`.
    pub fn new(source: &'a S, oldest: Lsn, most: u64) -> Self {
        Self {
            source,
            oldest,
            most,
            forgotten: AtomicU64::new(0),
        }
    }

    /// Of how many pages it has left out a change.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }
}

impl<S: PageSource + Sync> Forgetful<'_, S> {
    /// The page before its last change, if there was one.
    async fn older(&self, rel: RelTag, block: BlockNumber, page: &Bytes) -> Option<Bytes> {
        let before = Lsn::new(page_lsn(page)?.get().checked_sub(1)?);
        if before < self.oldest || self.forgotten() >= self.most {
            return None;
        }
        let older = self.source.pages(rel, &[block], before).await.pop()?.ok()?;
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        Some(older)
    }
}

impl<S: PageSource + Sync> PageSource for Forgetful<'_, S> {
    async fn relations(&self, lsn: Lsn) -> Result<Vec<(RelTag, BlockNumber)>> {
        self.source.relations(lsn).await
    }

    async fn pages(&self, rel: RelTag, blocks: &[BlockNumber], lsn: Lsn) -> Vec<Result<Bytes>> {
        let mut pages = self.source.pages(rel, blocks, lsn).await;
        for (block, page) in blocks.iter().zip(&mut pages) {
            if let Ok(page) = page
                && let Some(older) = self.older(rel, *block, page).await
            {
                *page = older;
            }
        }
        pages
    }
}

/// `pd_lsn`: two halves of 32 bits, the high one first.
fn page_lsn(page: &[u8]) -> Option<Lsn> {
    let (high, rest) = page.split_first_chunk()?;
    let low = rest.first_chunk()?;
    let [high, low] = [high, low].map(|half| u64::from(u32::from_le_bytes(*half)));
    Some(Lsn::new(high << 32 | low))
}
