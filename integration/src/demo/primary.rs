//! Our pages against the files of the stopped PostgreSQL that they come from.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use bytes::Bytes;
use palimpsest_types::{BlockNumber, Fork, Lsn, Oid, PAGE_SIZE, RelTag};

use crate::{
    judge::Judge,
    offline::is_compared,
    oracle::{DataFiles, Oracle, PageSource, Tally, visibility_differences},
};

/// A stopped primary, and what was there when it was attached.
#[derive(Debug)]
pub struct Primary {
    /// Its relation files.
    pub files: DataFiles,
    /// Databases of the base backup. Later ones are copied, and copying loses visibility bits.
    pub attached_databases: BTreeSet<Oid>,
}

impl Primary {
    /// Compares every fork and every page; returns the number of pages.
    pub async fn compare<S: PageSource>(
        &self,
        source: &S,
        lsn: Lsn,
        oracle: &Oracle,
        judge: &mut Judge,
    ) -> Result<u64> {
        let ours: BTreeMap<_, _> = source.relations(lsn).await?.into_iter().collect();
        let compared = |rel: &RelTag| is_compared(&self.files, *rel);
        for rel in ours.keys().filter(|rel| compared(rel)) {
            let missing = self.files.get(*rel).is_none();
            judge.check(missing.then(|| format!("{rel} does not exist in PostgreSQL")));
        }
        let mut tally = Tally::default();
        let mut pages = 0;
        for (rel, file) in self.files.iter().filter(|(rel, _)| compared(rel)) {
            let theirs = file.pages()?;
            pages += theirs.len() as u64;
            let length = ours.get(&rel).copied();
            if rel.fork != Fork::VisibilityMap {
                let wrong = length.map(BlockNumber::get) != u32::try_from(theirs.len()).ok();
                let finding = || format!("{rel} has {} blocks, ours {length:?}", theirs.len());
                judge.check(wrong.then(finding));
            }
            let ours = pages_up_to(source, rel, length.unwrap_or_default(), theirs.len(), lsn);
            for (number, (ours, theirs)) in ours.await.into_iter().zip(&theirs).enumerate() {
                let block = BlockNumber::new(u32::try_from(number)?);
                let finding = match ours {
                    Err(error) => Some(format!("{error:#}")),
                    Ok(ours) if rel.fork == Fork::VisibilityMap => {
                        self.compare_visibility(rel, block, &ours, theirs)?
                    }
                    Ok(ours) => {
                        let comparison = oracle.compare(block, &ours, theirs).await?;
                        tally.count(rel, block, theirs, &comparison)
                    }
                };
                judge.check(finding);
            }
        }
        Ok(pages)
    }

    fn compare_visibility(
        &self,
        rel: RelTag,
        block: BlockNumber,
        ours: &Bytes,
        theirs: &Bytes,
    ) -> Result<Option<String>> {
        let heap_blocks = self.files.blocks(rel.with_fork(Fork::Main))?;
        let differences = visibility_differences(heap_blocks, block, ours, theirs);
        let copied = !self.attached_databases.contains(&rel.db);
        let lost = differences.iter().all(|found| found.lost_by_copy());
        let first = differences.first().filter(|_| !(copied && lost));
        Ok(first.map(|found| format!("{rel} block {block}: {found:?}")))
    }
}

/// The first `wanted` pages of a fork of which we have `length`.
///
/// PostgreSQL extends a visibility map without logging it; the pages there are empty.
async fn pages_up_to<S: PageSource>(
    source: &S,
    rel: RelTag,
    length: BlockNumber,
    wanted: usize,
    lsn: Lsn,
) -> Vec<Result<Bytes>> {
    let blocks: Vec<_> = (0..length.get())
        .take(wanted)
        .map(BlockNumber::new)
        .collect();
    let mut pages = source.pages(rel, &blocks, lsn).await;
    if rel.fork == Fork::VisibilityMap {
        pages.resize_with(wanted, || Ok(Bytes::from_static(&[0; PAGE_SIZE])));
    }
    pages
}
