use std::collections::BTreeMap;

use anyhow::Result;
use bytes::Bytes;
use palimpsest_redo_postgres::Engine;
use palimpsest_types::{BlockNumber, Fork, PAGE_SIZE, RelTag};

use super::page_kind::{PageKind, is_spgist_meta};

/// Compares pages after hiding what PostgreSQL does not log, by PostgreSQL's own masks.
#[derive(Debug)]
pub struct Oracle {
    engine: Engine,
}

/// How one page of ours compares with PostgreSQL's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// Equal; with a page LSN of its own or the same one.
    Equal {
        /// Whether `pd_lsn` is equal too.
        same_lsn: bool,
    },
    /// Differs only where PostgreSQL is known to write without logging it.
    Unlogged(PageKind),
    /// Differs.
    Different {
        /// What kind of page PostgreSQL has.
        kind: PageKind,
        /// First byte that differs after masking.
        first: usize,
        /// How many differ.
        count: usize,
    },
}

/// What a comparison of many pages came to.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Pages compared, by kind.
    pub pages: BTreeMap<PageKind, u64>,
    /// Visibility map pages compared.
    pub visibility_map: u64,
    /// Pages that differ where PostgreSQL does not log, by kind.
    pub unlogged: BTreeMap<PageKind, u64>,
    /// Pages that the primary wrote to their file before it gave them their LSN.
    pub written_before_lsn: u64,
    /// Visibility map pages whose bits the log lost, see [`VisibilityDifference::lost_by_copy`].
    pub lost_by_copy: u64,
}

const HEADER: usize = 24;
const LSN: std::ops::Range<usize> = 0..8;
const BITS_PER_HEAP_BLOCK: usize = 2;
const HEAP_BLOCKS_PER_VM_PAGE: u64 = (PAGE_SIZE as u64 - 24) * 4;

impl Oracle {
    /// An oracle that masks with this engine.
    pub fn new(engine: Engine) -> Self {
        Self { engine }
    }

    /// Compares one page that is not of a visibility map.
    pub async fn compare(
        &self,
        block: BlockNumber,
        ours: &Bytes,
        theirs: &Bytes,
    ) -> Result<Comparison> {
        let same_lsn = ours[LSN] == theirs[LSN];
        let kind = PageKind::of(theirs);
        let ours = self.masked(block, ours).await?;
        let theirs = self.masked(block, theirs).await?;
        let different: Vec<_> = (0..PAGE_SIZE)
            .filter(|at| ours[*at] != theirs[*at])
            .collect();
        Ok(match different.first() {
            None => Comparison::Equal { same_lsn },
            Some(_) if kind == PageKind::Sequence || is_spgist_meta(&theirs) => {
                Comparison::Unlogged(kind)
            }
            Some(first) => Comparison::Different {
                kind,
                first: *first,
                count: different.len(),
            },
        })
    }

    async fn masked(&self, block: BlockNumber, page: &Bytes) -> Result<Bytes> {
        match PageKind::of(page).masking_rmgr() {
            Some(rmgr) => Ok(self.engine.mask(rmgr, block, page.clone()).await?),
            None => Ok(page.clone()),
        }
    }
}

impl Tally {
    /// Counts a comparison; says what is wrong, if anything.
    pub fn count(
        &mut self,
        rel: RelTag,
        block: BlockNumber,
        page: &Bytes,
        comparison: &Comparison,
    ) -> Option<String> {
        *self.pages.entry(PageKind::of(page)).or_default() += 1;
        match comparison {
            Comparison::Equal { same_lsn: true } => None,
            Comparison::Equal { same_lsn: false } if is_written_before_lsn(rel, page) => {
                self.written_before_lsn += 1;
                None
            }
            Comparison::Equal { same_lsn: false } => {
                Some(format!("{rel} block {block}: only pd_lsn differs"))
            }
            Comparison::Unlogged(kind) => {
                *self.unlogged.entry(*kind).or_default() += 1;
                None
            }
            Comparison::Different { kind, first, count } => Some(format!(
                "{rel} block {block} ({kind:?}): {count} bytes differ, the first at {first}"
            )),
        }
    }
}

/// Init forks, and pages of a sorted GiST build: the primary logs them as images after it has
/// written the file, so its file has a zero LSN or the build's stand-in. Redo sets the real one.
pub(super) fn is_written_before_lsn(rel: RelTag, theirs: &Bytes) -> bool {
    /// `GistBuildLSN`, high half first.
    const GIST_BUILD_LSN: [u8; 8] = [0, 0, 0, 0, 1, 0, 0, 0];
    let sorted_gist = PageKind::of(theirs) == PageKind::Gist && theirs[LSN] == GIST_BUILD_LSN;
    rel.fork == Fork::Init || sorted_gist
}

/// A heap block whose visibility bits differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisibilityDifference {
    /// The heap block.
    pub heap_block: u64,
    /// Our bits.
    pub ours: u8,
    /// PostgreSQL's bits.
    pub theirs: u8,
}

impl VisibilityDifference {
    /// `CREATE DATABASE … STRATEGY wal_log` logs copied map pages as if their content were an unused
    /// hole (`RelationCopyStorageUsingBuffer` logs a standard page), so every replay of that log has
    /// no bits where the primary has some. That is harmless, and what recovery gives too.
    pub fn lost_by_copy(&self) -> bool {
        self.ours == 0
    }

    /// The same, where theirs is what replay gives, and ours is the primary's.
    pub fn lost_by_replay(&self) -> bool {
        self.theirs == 0
    }
}

/// Compares a visibility map page: the bits of heap blocks below the heap's length. Its header
/// doesn't matter, and a page never initialised has no bits set.
pub fn visibility_differences(
    heap_blocks: BlockNumber,
    map_page: BlockNumber,
    ours: &Bytes,
    theirs: &Bytes,
) -> Vec<VisibilityDifference> {
    let first = u64::from(map_page.get()) * HEAP_BLOCKS_PER_VM_PAGE;
    let count = u64::from(heap_blocks.get())
        .saturating_sub(first)
        .min(HEAP_BLOCKS_PER_VM_PAGE);
    let bits = |page: &Bytes, index: u64| {
        let bit = usize::try_from(index).unwrap_or_default() * BITS_PER_HEAP_BLOCK;
        page[HEADER + bit / 8] >> (bit % 8) & 3
    };
    let compare = |index| VisibilityDifference {
        heap_block: first + index,
        ours: bits(ours, index),
        theirs: bits(theirs, index),
    };
    (0..count)
        .map(compare)
        .filter(|found| found.ours != found.theirs)
        .collect()
}
