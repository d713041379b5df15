use std::collections::BTreeMap;

use anyhow::Result;
use bytes::Bytes;
use palimpsest_types::{BlockNumber, Fork, Lsn, PAGE_SIZE, RelTag};

use super::{
    Comparison, DataFiles, Oracle, PageSource, RelationFile,
    compare::{VisibilityDifference, is_written_before_lsn, visibility_differences},
    page_kind::PageKind,
};
use crate::judge::Judge;

/// What comparisons with recovered instances came to.
#[derive(Debug, Clone, Default)]
pub struct RecoveredTally {
    /// Relation forks whose existence and length were compared.
    pub relations: u64,
    /// Pages compared, by kind.
    pub pages: BTreeMap<PageKind, u64>,
    /// Visibility map pages compared.
    pub visibility_map: u64,
    /// Pages that differ where PostgreSQL does not log what it writes, if that is excused.
    pub unlogged: u64,
    /// What a primary does not log is excused.
    is_of_primary: bool,
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
/// Unlike a primary's own files these hold only what redo wrote, so nothing is excused (but see
/// [`RecoveredTally::of_primary`]): pages must be equal in every byte, but for the checksum, which PostgreSQL computes when
/// it writes a page. The oracle only says whether a difference matters to PostgreSQL.
pub async fn compare_at<S: PageSource>(
    source: &S,
    reference: &DataFiles,
    lsn: Lsn,
    oracle: &Oracle,
    judge: &mut Judge,
    tally: &mut RecoveredTally,
) -> Result<()> {
    let lengths = lengths(source, reference, lsn).await?;
    for (rel, (our_rel, [ours, theirs])) in lengths {
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
            let our_pages = source.pages(our_rel, blocks, lsn).await;
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

/// A fork of ours, and its length on our side and in the reference.
type Compared = (RelTag, [Option<BlockNumber>; 2]);

/// The compared forks that exist on either side, by their name in the reference.
async fn lengths<S: PageSource>(
    source: &S,
    reference: &DataFiles,
    lsn: Lsn,
) -> Result<BTreeMap<RelTag, Compared>> {
    let ours: BTreeMap<_, _> = source.relations(lsn).await?.into_iter().collect();
    let mut lengths = BTreeMap::new();
    for rel in ours.keys().copied().chain(reference.iter().map(|it| it.0)) {
        if let Some(our_rel) = counterpart(reference, rel) {
            let theirs = reference.get(rel).map(RelationFile::blocks).transpose()?;
            let ours = ours.get(&our_rel).copied();
            lengths.insert(rel, (our_rel, [ours, theirs]));
        }
    }
    Ok(lengths)
}

/// The fork of ours that must equal a fork of the reference; none if it is not compared.
///
/// What an unlogged relation holds is nowhere in the log. Recovery ends by making its main fork anew,
/// a copy of its init fork, and removing the others. So has everybody to do who starts from our
/// pages, and the equal of the main fork is our init fork.
fn counterpart(reference: &DataFiles, rel: RelTag) -> Option<RelTag> {
    match rel.fork {
        // Not logged; PostgreSQL mends it as it goes.
        Fork::FreeSpaceMap => None,
        Fork::Init => Some(rel),
        Fork::Main if reference.is_unlogged(rel) => Some(rel.with_fork(Fork::Init)),
        Fork::VisibilityMap if reference.is_unlogged(rel) => None,
        Fork::Main | Fork::VisibilityMap => Some(rel),
    }
}

impl RecoveredTally {
    /// A tally of pages that come from another base backup than the instance was recovered from, so that they have what
    /// the primary has written without logging it since, such as hint bits.
    pub fn of_primary() -> Self {
        Self {
            is_of_primary: true,
            ..Self::default()
        }
    }

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
        if self.is_of_primary && pair.is_unlogged(heap_blocks, oracle).await? {
            self.unlogged += 1;
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

    /// Whether ours differs only as a primary's page may.
    async fn is_unlogged(&self, heap_blocks: BlockNumber, oracle: &Oracle) -> Result<bool> {
        let Self {
            rel,
            block,
            ours,
            theirs,
        } = self;
        if rel.fork == Fork::VisibilityMap {
            let differences = visibility_differences(heap_blocks, *block, ours, theirs);
            return Ok(differences.iter().all(VisibilityDifference::lost_by_replay));
        }
        Ok(match oracle.compare(*block, ours, theirs).await? {
            Comparison::Equal { same_lsn: true } | Comparison::Unlogged(_) => true,
            Comparison::Equal { same_lsn: false } => is_written_before_lsn(*rel, ours),
            Comparison::Different { .. } => false,
        })
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
