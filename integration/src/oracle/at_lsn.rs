use std::collections::BTreeMap;

use anyhow::Result;
use bytes::Bytes;
use palimpsest_types::{BlockNumber, Fork, Lsn, PAGE_SIZE, RelTag};

use super::{
    Comparison, DataFiles, Oracle, PageSource, compare::visibility_differences, page_kind::PageKind,
};
use crate::{judge::Judge, offline::is_compared};

/// What comparisons with recovered instances came to.
#[derive(Debug, Clone, Default)]
pub struct RecoveredTally {
    /// Relation forks whose existence and length were compared.
    pub relations: u64,
    /// Pages compared, by kind.
    pub pages: BTreeMap<PageKind, u64>,
    /// Visibility map pages compared.
    pub visibility_map: u64,
}

/// The two pages that are compared.
struct Pair {
    rel: RelTag,
    block: BlockNumber,
    ours: Bytes,
    theirs: Bytes,
}

/// Pages asked for at once.
const PORTION: usize = 4096;
/// `pd_checksum`.
const CHECKSUM: std::ops::Range<usize> = 8..10;

/// Compares all that a source has at an LSN with the files of an instance recovered to it.
///
/// Unlike a primary's own files these hold only what redo wrote, so nothing is excused: pages must
/// be equal in every byte, but for the checksum, which PostgreSQL computes when it writes a page.
/// The oracle only says whether a difference matters to PostgreSQL.
pub async fn compare_at<S: PageSource>(
    source: &S,
    reference: &DataFiles,
    lsn: Lsn,
    oracle: &Oracle,
    judge: &mut Judge,
    tally: &mut RecoveredTally,
) -> Result<()> {
    let lengths = lengths(source, reference, lsn).await?;
    for (rel, [ours, theirs]) in lengths {
        tally.relations += 1;
        let finding = format!("{rel} at {lsn}: {ours:?} blocks, {theirs:?} in the reference");
        judge.check((ours != theirs).then_some(finding));
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            continue;
        };
        let heap_blocks = reference.blocks(rel.with_fork(Fork::Main))?;
        let their_pages = match reference.get(rel) {
            Some(file) => file.pages()?,
            None => Vec::new(),
        };
        let both: Vec<_> = (0..ours.min(theirs).get()).map(BlockNumber::new).collect();
        for (blocks, their_pages) in both.chunks(PORTION).zip(their_pages.chunks(PORTION)) {
            let our_pages = source.pages(rel, blocks, lsn).await;
            for ((block, ours), theirs) in blocks.iter().zip(our_pages).zip(their_pages) {
                let finding = match ours {
                    Err(error) => Some(format!("{error:#}")),
                    Ok(ours) => {
                        let pair = Pair {
                            rel,
                            block: *block,
                            ours,
                            theirs: theirs.clone(),
                        };
                        tally.compare(&pair, heap_blocks, oracle).await?
                    }
                };
                judge.check(finding.map(|finding| format!("at {lsn}: {finding}")));
            }
        }
    }
    Ok(())
}

/// The compared forks that exist on either side, with our length and the reference's.
async fn lengths<S: PageSource>(
    source: &S,
    reference: &DataFiles,
    lsn: Lsn,
) -> Result<BTreeMap<RelTag, [Option<BlockNumber>; 2]>> {
    let mut lengths: BTreeMap<RelTag, [Option<BlockNumber>; 2]> = BTreeMap::new();
    for (rel, blocks) in source.relations(lsn).await? {
        lengths.entry(rel).or_default()[0] = Some(blocks);
    }
    for (rel, file) in reference.iter() {
        lengths.entry(rel).or_default()[1] = Some(file.blocks()?);
    }
    lengths.retain(|rel, _| is_compared(reference, *rel));
    Ok(lengths)
}

impl RecoveredTally {
    /// Counts a pair; says what is wrong with ours, if anything.
    async fn compare(
        &mut self,
        pair: &Pair,
        heap_blocks: BlockNumber,
        oracle: &Oracle,
    ) -> Result<Option<String>> {
        let kind = PageKind::of(&pair.theirs);
        let is_map = pair.rel.fork == Fork::VisibilityMap;
        if is_map {
            self.visibility_map += 1;
        } else {
            *self.pages.entry(kind).or_default() += 1;
        }
        if pair.is_identical() {
            return Ok(None);
        }
        let Pair { rel, block, .. } = pair;
        let finding = if is_map {
            pair.describe_bits(heap_blocks)
        } else {
            pair.describe_masked(oracle).await?
        };
        Ok(Some(format!("{rel} block {block} ({kind:?}): {finding}")))
    }
}

impl Pair {
    fn describe_bits(&self, heap_blocks: BlockNumber) -> String {
        let differences = visibility_differences(heap_blocks, self.block, &self.ours, &self.theirs);
        match differences.first() {
            Some(first) => format!("bits of {} heap blocks, first {first:?}", differences.len()),
            None => "differs, though all bits are equal".to_owned(),
        }
    }

    async fn describe_masked(&self, oracle: &Oracle) -> Result<String> {
        let compared = oracle.compare(self.block, &self.ours, &self.theirs).await?;
        Ok(match compared {
            Comparison::Equal { same_lsn: true } => {
                "differs where PostgreSQL's masks hide it".to_owned()
            }
            Comparison::Equal { same_lsn: false } => {
                "pd_lsn differs, and nothing after masking".to_owned()
            }
            Comparison::Unlogged(_) => {
                "differs where a primary does not log what it does".to_owned()
            }
            Comparison::Different { first, count, .. } => {
                format!("{count} bytes differ after masking, the first at {first}")
            }
        })
    }

    fn is_identical(&self) -> bool {
        let Self { ours, theirs, .. } = self;
        ours.len() == PAGE_SIZE
            && theirs.len() == PAGE_SIZE
            && ours[..CHECKSUM.start] == theirs[..CHECKSUM.start]
            && ours[CHECKSUM.end..] == theirs[CHECKSUM.end..]
    }
}
