use std::collections::BTreeSet;

use palimpsest_codec::TruncatedError;
use palimpsest_types::{BlockNumber, Fork, InvalidForkError, Key, Lsn, RelTag, SlruKind};

use crate::{
    change::{Change, Value},
    clog::by_clog_page,
    image::{ImageError, restore_image},
    record::{BlockRef, DecodeError, DecodedRecord, RawRecord},
    relation_sizes::RelationSizes,
    rmgr::ResourceManager,
    v15,
};

/// Says what each record of a timeline changes.
///
/// Records come in log order, each once. The only state is the size of every relation fork, from
/// which it knows that a record extends one: pages between the old end and the new page come into
/// being as zeros, as redo makes them (`XLogReadBufferExtended`).
#[derive(Debug)]
pub struct Interpreter {
    sizes: RelationSizes,
}

/// A record can't be turned into changes. The timeline must stop here: what follows would be wrong.
#[derive(Debug, thiserror::Error)]
#[error("the WAL record at {at} ({rmgr}) can't be applied")]
pub struct InterpretError {
    /// Start of the record.
    pub at: Lsn,
    /// Its resource manager, by name or number.
    pub rmgr: String,
    /// Why.
    #[source]
    pub reason: Reason,
}

/// Why a record can't be turned into changes.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Its frame is damaged.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its main data is damaged.
    #[error(transparent)]
    Truncated(#[from] TruncatedError),
    /// It names a fork that does not exist.
    #[error(transparent)]
    Fork(#[from] InvalidForkError),
    /// An image in it is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An extension wrote it, and may change anything.
    #[error(
        "no built-in resource manager has number {0}; extensions that log their own are not supported"
    )]
    UnknownResourceManager(u8),
    /// The resource manager has no such record.
    #[error("unknown record type {0:02X}")]
    UnknownRecord(u8),
    /// Files are copied without their pages being logged.
    #[error(
        "CREATE DATABASE with STRATEGY file_copy (or ALTER DATABASE SET TABLESPACE) copies files outside the WAL; use STRATEGY wal_log"
    )]
    DatabaseFileCopy,
    /// The source stopped writing what redo needs.
    #[error("wal_level fell below replica; set it to replica or logical and attach again")]
    WalLevel,
    /// A relation grows by more than a record can make it.
    #[error("{rel} would grow from {from} blocks to block {to} at once")]
    Gap {
        /// The relation fork.
        rel: RelTag,
        /// Its size before.
        from: BlockNumber,
        /// The block that the record names.
        to: BlockNumber,
    },
}

/// What one record changes, while it is being found out.
struct Changes<'a> {
    sizes: &'a mut RelationSizes,
    resized: BTreeSet<RelTag>,
    list: Vec<Change>,
}

/// Heap blocks whose bits one visibility map page holds (`visibilitymap.c`): two bits each.
const HEAP_BLOCKS_PER_VM_PAGE: u32 = (8192 - 24) * 4;
/// Heap blocks in one byte of the map.
const HEAP_BLOCKS_PER_VM_BYTE: u32 = 4;
/// Slots in a leaf page of the free space map (`fsm_internals.h`).
const SLOTS_PER_FSM_PAGE: u32 = 4069;
/// A record that makes a relation grow by more (1 GiB) is refused rather than believed.
const MAX_GAP_BLOCKS: u32 = 1 << 17;

const STORAGE_CREATE: u8 = 0x10;
const STORAGE_TRUNCATE: u8 = 0x20;
const DATABASE_CREATE_FILE_COPY: u8 = 0x00;
const DATABASE_CREATE_WAL_LOG: u8 = 0x10;
const DATABASE_DROP: u8 = 0x20;
const WAL_LEVEL_REPLICA: u32 = 1;

impl Interpreter {
    /// An interpreter for the records after the point at which the relations had these sizes.
    pub fn new(sizes: RelationSizes) -> Self {
        Self { sizes }
    }

    /// Sizes of all relation forks after the last record.
    pub fn sizes(&self) -> &RelationSizes {
        &self.sizes
    }

    /// The changes that `record` makes, each key at most once.
    ///
    /// # Errors
    /// If the record is damaged or changes what can't be represented.
    pub fn interpret(&mut self, record: &RawRecord) -> Result<Vec<Change>, InterpretError> {
        self.changes(record).map_err(|reason| {
            let number = record.header().map(|header| header.rmid);
            let rmgr = match number.and_then(ResourceManager::from_number) {
                Some(rmgr) => rmgr.name().to_owned(),
                None => format!("resource manager {}", number.unwrap_or_default()),
            };
            InterpretError {
                at: record.start_lsn,
                rmgr,
                reason,
            }
        })
    }

    fn changes(&mut self, raw: &RawRecord) -> Result<Vec<Change>, Reason> {
        let record = raw.decode()?;
        let rmid = record.header.rmid;
        let rmgr =
            ResourceManager::from_number(rmid).ok_or(Reason::UnknownResourceManager(rmid))?;
        let mut changes = Changes {
            sizes: &mut self.sizes,
            resized: BTreeSet::new(),
            list: Vec::new(),
        };
        match rmgr {
            ResourceManager::Xlog => {
                if v15::wal_level_after(&record)?.is_some_and(|level| level < WAL_LEVEL_REPLICA) {
                    return Err(Reason::WalLevel);
                }
            }
            ResourceManager::Transaction => changes.transaction_end(&record)?,
            ResourceManager::Storage => changes.storage(&record)?,
            ResourceManager::Database => changes.database(&record)?,
            ResourceManager::RelMap => changes.relation_map(&record)?,
            ResourceManager::Heap | ResourceManager::Heap2 => {
                changes.visibility_cleared(&record, rmgr, raw)?;
            }
            ResourceManager::Clog => {
                if let Some(page) = v15::zeroed_clog_page(&record)? {
                    changes.push(Key::SlruBlock(SlruKind::Clog, page), Value::ZeroPage);
                }
            }
            // Nothing beyond the pages they refer to. What other SLRUs, tablespaces and origins hold
            // is not kept yet; nothing reads it.
            ResourceManager::Tablespace
            | ResourceManager::MultiXact
            | ResourceManager::Standby
            | ResourceManager::Btree
            | ResourceManager::Hash
            | ResourceManager::Gin
            | ResourceManager::Gist
            | ResourceManager::Sequence
            | ResourceManager::SpGist
            | ResourceManager::Brin
            | ResourceManager::CommitTs
            | ResourceManager::ReplicationOrigin
            | ResourceManager::Generic
            | ResourceManager::LogicalMessage => {}
        }
        // Redo skips what such a record names without an image: it does not even extend the fork.
        let needs_image = v15::is_for_hint(&record.header);
        let skipped = |block: &&BlockRef| needs_image && block.image.is_none();
        for block in record.blocks.iter().filter(|block| !skipped(block)) {
            changes.block(block, raw)?;
        }
        Ok(changes.finish())
    }
}

impl Changes<'_> {
    fn push(&mut self, key: Key, value: Value) {
        self.list.push(Change { key, value });
    }

    /// Every fork whose size changed gets its final size of this record.
    fn finish(mut self) -> Vec<Change> {
        for rel in std::mem::take(&mut self.resized) {
            let value = self.sizes.get(rel).map_or(Value::Dropped, Value::RelSize);
            self.push(Key::RelSize(rel), value);
        }
        self.list
    }

    fn resize(&mut self, rel: RelTag, blocks: BlockNumber) {
        self.sizes.set(rel, blocks);
        self.resized.insert(rel);
    }

    fn drop_fork(&mut self, rel: RelTag) {
        if self.sizes.remove(rel) {
            self.resized.insert(rel);
        }
    }

    /// Makes `block` exist; true if it did not, so that no older version of it may be seen.
    fn extend_to(&mut self, rel: RelTag, block: BlockNumber) -> Result<bool, Reason> {
        let size = self.sizes.get(rel).unwrap_or_default();
        if block < size {
            return Ok(false);
        }
        let gap = Reason::Gap {
            rel,
            from: size,
            to: block,
        };
        let Some(end) = block
            .next()
            .filter(|_| block.get() - size.get() <= MAX_GAP_BLOCKS)
        else {
            return Err(gap);
        };
        for between in size.get()..block.get() {
            self.push(
                Key::RelBlock(rel, BlockNumber::new(between)),
                Value::ZeroPage,
            );
        }
        self.resize(rel, end);
        Ok(true)
    }

    /// A page that the record refers to. An image in it is the page; otherwise redo makes it.
    fn block(&mut self, block: &BlockRef, raw: &RawRecord) -> Result<(), Reason> {
        let is_new = self.extend_to(block.rel, block.block)?;
        let value = match block.image.as_ref().filter(|image| image.apply) {
            Some(image) => Value::Image(restore_image(image, raw.end_lsn)?),
            None => Value::Record {
                will_init: block.will_init || is_new,
                record: raw.clone(),
            },
        };
        self.push(Key::RelBlock(block.rel, block.block), value);
        Ok(())
    }

    /// Visibility map pages that redo changes without the record naming them.
    fn visibility_cleared(
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

    fn transaction_end(&mut self, record: &DecodedRecord) -> Result<(), Reason> {
        let Some(ended) = v15::ended_transaction(record)? else {
            return Ok(());
        };
        for (page, xids) in by_clog_page(&ended.xids) {
            let value = Value::TransactionsEnded {
                end: ended.end,
                xids: xids.into(),
            };
            self.push(Key::SlruBlock(SlruKind::Clog, page), value);
        }
        for rel in ended.dropped {
            for fork in Fork::ALL {
                self.drop_fork(rel.with_fork(fork));
            }
        }
        Ok(())
    }

    fn storage(&mut self, record: &DecodedRecord) -> Result<(), Reason> {
        match record.header.rmgr_info() {
            STORAGE_CREATE => {
                let rel = v15::created_fork(&record.main_data)?;
                // Replay may create a fork that the base already has: that changes nothing.
                if self.sizes.get(rel).is_none() {
                    self.resize(rel, BlockNumber::ZERO);
                }
                Ok(())
            }
            STORAGE_TRUNCATE => {
                self.truncate(v15::truncation(&record.main_data)?);
                Ok(())
            }
            unknown => Err(Reason::UnknownRecord(unknown)),
        }
    }

    /// As `smgr_redo` does, with `visibilitymap_prepare_truncate` and its like for the maps.
    fn truncate(&mut self, truncation: v15::Truncation) {
        let heap_blocks = truncation.blocks;
        if truncation.heap {
            self.shrink(truncation.rel, heap_blocks);
        }
        if truncation.visibility_map {
            let rel = truncation.rel.with_fork(Fork::VisibilityMap);
            let page = BlockNumber::new(heap_blocks.get() / HEAP_BLOCKS_PER_VM_PAGE);
            let inside = heap_blocks.get() % HEAP_BLOCKS_PER_VM_PAGE;
            let keeps_part = inside > 0;
            if keeps_part && self.sizes.get(rel).is_some_and(|size| page < size) {
                let value = Value::TruncateVisibilityMap { heap_blocks };
                self.push(Key::RelBlock(rel, page), value);
            }
            self.shrink(rel, BlockNumber::new(page.get() + u32::from(keeps_part)));
        }
        if truncation.free_space_map {
            let rel = truncation.rel.with_fork(Fork::FreeSpaceMap);
            self.shrink(rel, free_space_map_len(heap_blocks));
        }
    }

    /// Truncation never makes a fork longer, nor brings one into being.
    fn shrink(&mut self, rel: RelTag, blocks: BlockNumber) {
        if self.sizes.get(rel).is_some_and(|size| size > blocks) {
            self.resize(rel, blocks);
        }
    }

    fn database(&mut self, record: &DecodedRecord) -> Result<(), Reason> {
        match record.header.rmgr_info() {
            DATABASE_CREATE_FILE_COPY => Err(Reason::DatabaseFileCopy),
            // Its relation map and pages follow as records of their own.
            DATABASE_CREATE_WAL_LOG => Ok(()),
            DATABASE_DROP => {
                let (db, tablespaces) = v15::database_dropped(&record.main_data)?;
                for spc in tablespaces {
                    for rel in self.sizes.of_database(spc, db) {
                        self.drop_fork(rel);
                    }
                    self.push(Key::RelMap { spc, db }, Value::Dropped);
                }
                Ok(())
            }
            unknown => Err(Reason::UnknownRecord(unknown)),
        }
    }

    fn relation_map(&mut self, record: &DecodedRecord) -> Result<(), Reason> {
        let (spc, db, content) = v15::relation_map(&record.main_data)?;
        self.push(Key::RelMap { spc, db }, Value::File(content));
        Ok(())
    }
}

/// Clears the bits of heap blocks from `heap_blocks` on in the map page that holds its bit.
///
/// As `visibilitymap_prepare_truncate`: the page's LSN stays, and a page never initialised has no
/// bits to clear.
pub fn truncate_visibility_map_page(page: &mut [u8], heap_blocks: BlockNumber) {
    const CONTENTS: usize = 24;
    let inside = heap_blocks.get() % HEAP_BLOCKS_PER_VM_PAGE;
    let byte = CONTENTS + (inside / HEAP_BLOCKS_PER_VM_BYTE) as usize;
    let kept_bits = (inside % HEAP_BLOCKS_PER_VM_BYTE) * 2;
    if let Some((first, rest)) = page.get_mut(byte..).and_then(<[u8]>::split_first_mut) {
        *first &= (1u8 << kept_bits) - 1;
        rest.fill(0);
    }
}

/// Pages that the free space map keeps for a heap of `heap_blocks` (`FreeSpaceMapPrepareTruncateRel`
/// with `fsm_logical_to_physical`): its leaves, and the upper pages between them.
fn free_space_map_len(heap_blocks: BlockNumber) -> BlockNumber {
    let leaf = heap_blocks.get() / SLOTS_PER_FSM_PAGE;
    let upper = leaf / SLOTS_PER_FSM_PAGE + 1;
    let root = upper.saturating_sub(1) / SLOTS_PER_FSM_PAGE + 1;
    let physical = leaf + upper + root;
    let keeps_part = !heap_blocks.get().is_multiple_of(SLOTS_PER_FSM_PAGE);
    BlockNumber::new(physical + u32::from(keeps_part))
}

#[cfg(test)]
mod tests;
