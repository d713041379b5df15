//! What one record changes: pages, and the sizes of the forks that they make longer.

use std::collections::{BTreeMap, BTreeSet};

use palimpsest_types::{BlockNumber, Fork, Key, RelTag, SlruKind};

use super::{
    Reason,
    cluster::{ClusterState, Numbers},
    gaps::{GapAllowance, MAX_GAP_BLOCKS},
    maps::HEAP_BLOCKS_PER_VM_PAGE,
    torn::TornForks,
};
use crate::{
    change::{Change, Value},
    image::restore_image,
    record::{BlockRef, DecodedRecord, RawRecord},
    relation_sizes::RelationSizes,
    rmgr::ResourceManager,
    slru::SlruSegments,
    v15,
};

/// What one record changes, while it is being found out.
pub(super) struct Changes<'a> {
    pub(super) sizes: &'a mut RelationSizes,
    pub(super) segments: &'a mut SlruSegments,
    pub(super) torn: &'a mut TornForks,
    gaps: &'a mut GapAllowance,
    pub(super) cluster: &'a mut ClusterState,
    /// The cluster before this record.
    before: Numbers,
    /// The base's pages are consistent with each other from before this record on.
    consistent: bool,
    /// Blocks that the record's forks have grown over, together.
    grown: u32,
    /// Forks whose size the record changes, with the size before it.
    resized: BTreeMap<RelTag, Option<BlockNumber>>,
    /// Pages outside relations that begin with the record.
    pub(super) new_slru_pages: u32,
    /// Segments of SLRU areas whose length the record changes.
    pub(super) resized_segments: BTreeSet<(SlruKind, u32)>,
    list: Vec<Change>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(
        (sizes, segments): (&'a mut RelationSizes, &'a mut SlruSegments),
        (torn, gaps): (&'a mut TornForks, &'a mut GapAllowance),
        cluster: &'a mut ClusterState,
        consistent: bool,
    ) -> Self {
        let before = cluster.numbers();
        Self {
            sizes,
            segments,
            torn,
            gaps,
            cluster,
            before,
            consistent,
            grown: 0,
            resized: BTreeMap::new(),
            new_slru_pages: 0,
            resized_segments: BTreeSet::new(),
            list: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, key: Key, value: Value) {
        self.list.push(Change { key, value });
    }

    /// Every fork and segment whose size changed gets its final size of this record, and a fork zeros where it grew
    /// over blocks that the record does not name.
    pub(super) fn finish(mut self) -> Vec<Change> {
        for (rel, before) in std::mem::take(&mut self.resized) {
            let size = self.sizes.get(rel);
            if !self.torn.has(rel) {
                self.zero_between(rel, before.unwrap_or_default(), size.unwrap_or_default());
            }
            self.push(
                Key::RelSize(rel),
                size.map_or(Value::Dropped, Value::RelSize),
            );
        }
        self.finish_slru_segments();
        self.list.extend(self.cluster.changes_since(self.before));
        debug_assert!(
            self.keys().collect::<BTreeSet<_>>().len() == self.list.len(),
            "a record makes one version of a key at most: {:?}",
            self.keys().collect::<Vec<_>>()
        );
        self.list
    }

    fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.list.iter().map(|change| change.key)
    }

    /// Only now, because a record may name the blocks of a longer fork in any order: one that is
    /// zeroed on the way to a later block may be named after it.
    fn zero_between(&mut self, rel: RelTag, from: BlockNumber, end: BlockNumber) {
        let new = from.get()..end.get();
        let named: BTreeSet<u32> = self
            .keys()
            .filter_map(|key| match key {
                Key::RelBlock(of, block) if of == rel => Some(block.get()),
                _ => None,
            })
            .filter(|block| new.contains(block))
            .collect();
        if named.len() == new.len() {
            return;
        }
        for block in new.filter(|block| !named.contains(block)) {
            self.push(Key::RelBlock(rel, BlockNumber::new(block)), Value::ZeroPage);
        }
    }

    pub(super) fn resize(&mut self, rel: RelTag, blocks: BlockNumber) {
        self.resized.entry(rel).or_insert(self.sizes.get(rel));
        self.sizes.set(rel, blocks);
        self.torn.cut(rel, blocks);
    }

    pub(super) fn drop_fork(&mut self, rel: RelTag) {
        self.torn.cut(rel, BlockNumber::ZERO);
        let before = self.sizes.get(rel);
        if self.sizes.remove(rel) {
            self.resized.entry(rel).or_insert(before);
        }
    }

    /// The size of a fork as this record found it.
    fn size_before(&self, rel: RelTag) -> BlockNumber {
        let before = self.resized.get(&rel).copied();
        before.unwrap_or(self.sizes.get(rel)).unwrap_or_default()
    }

    /// Makes `block` exist; true if it did not, so that no older version of it may be seen.
    pub(super) fn extend_to(&mut self, rel: RelTag, block: BlockNumber) -> Result<bool, Reason> {
        let before = self.size_before(rel);
        if block < before {
            return Ok(false);
        }
        let gap = Reason::Gap {
            rel,
            from: before,
            to: block,
        };
        let Some(end) = block.next() else {
            return Err(gap);
        };
        // Blocks of one fork may be named in any order; what it has grown over already counts once.
        let reached = self.sizes.get(rel).unwrap_or_default().max(before);
        let more = block.get().saturating_sub(reached.get());
        let grown = self.grown.saturating_add(more);
        let is_large = grown > MAX_GAP_BLOCKS || !self.gaps.has(more);
        if is_large && self.consistent {
            return Err(gap);
        }
        if !is_large {
            self.grown = grown;
            self.gaps.take(more);
        }
        if self.sizes.get(rel).is_none_or(|size| size < end) {
            self.resize(rel, end);
        }
        if is_large {
            self.torn.note(rel, before, block);
        }
        Ok(true)
    }

    /// A page that the record refers to. An image in it is the page; otherwise redo makes it.
    pub(super) fn block(
        &mut self,
        block: &BlockRef,
        record: &DecodedRecord,
        raw: &RawRecord,
    ) -> Result<(), Reason> {
        if !self.is_there_or_made(block)? {
            return Ok(());
        }
        let is_new = self.extend_to(block.rel, block.block)?;
        let value = match block.image.as_ref().filter(|image| image.apply) {
            Some(image) => {
                let page = restore_image(image, raw.end_lsn)?;
                Value::Image(v15::redone_on_image(record, block.id, page, raw.end_lsn))
            }
            None => Value::Record {
                will_init: block.will_init || is_new,
                record: raw.clone(),
            },
        };
        self.push(Key::RelBlock(block.rel, block.block), value);
        Ok(())
    }

    /// False for a page that redo would look for in vain, and then pass over.
    ///
    /// A base backup may have read a file after it became shorter or was dropped, which comes later
    /// in the log: until the backup's end such references are PostgreSQL's invalid pages
    /// (`log_invalid_page`). After it they can't be, and recovery panics.
    fn is_there_or_made(&self, block: &BlockRef) -> Result<bool, Reason> {
        let has_image = block.image.as_ref().is_some_and(|image| image.apply);
        // Redo extends a visibility map for whatever bit it looks for (`RBM_ZERO_ON_ERROR`).
        let is_made = has_image || block.will_init || block.rel.fork == Fork::VisibilityMap;
        if is_made || block.block < self.size_before(block.rel) {
            return Ok(true);
        }
        if self.consistent {
            return Err(Reason::MissingPage {
                rel: block.rel,
                block: block.block,
            });
        }
        Ok(false)
    }

    /// Visibility map pages that redo changes without the record naming them.
    pub(super) fn visibility_cleared(
        &mut self,
        record: &DecodedRecord,
        rmgr: ResourceManager,
        raw: &RawRecord,
    ) -> Result<(), Reason> {
        let map_page = |block: &BlockRef| {
            let page = BlockNumber::new(block.block.get() / HEAP_BLOCKS_PER_VM_PAGE);
            (block.rel.with_fork(Fork::VisibilityMap), page)
        };
        let cleared = v15::visibility_cleared(record, rmgr)?;
        let pages: BTreeSet<_> = cleared.into_iter().map(map_page).collect();
        for (rel, page) in pages {
            let will_init = self.extend_to(rel, page)?;
            let value = Value::Record {
                will_init,
                record: raw.clone(),
            };
            self.push(Key::RelBlock(rel, page), value);
        }
        Ok(())
    }
}
