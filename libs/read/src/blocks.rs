use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use palimpsest_layer::{
    delta_file::{DeltaLayerIndex, EntryBlock, RecordBlock},
    image::IndexPiece,
};
use palimpsest_types::ByteCount;
use quick_cache::{Weighter, sync::Cache};

use crate::{
    cache::CacheUse,
    error::ReadError,
    loads::{Loaded, get_or_load},
};

/// Blocks of layers and their indexes, checked and unpacked, of all timelines, within a bound of
/// bytes.
#[derive(Debug)]
pub struct BlockCache {
    blocks: Cache<BlockId, Loaded<Block>, ByBytes>,
    files: AtomicU64,
}

/// A block of a file. Files have numbers of their own here, because names are long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockId {
    pub(crate) file: u64,
    pub(crate) part: FilePart,
}

/// What of a file a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FilePart {
    /// The index of a delta layer.
    Index,
    /// A piece of the index of an image layer.
    IndexPiece(u32),
    /// A block of a delta layer.
    Block(u32),
}

/// A block that was read.
#[derive(Debug, Clone)]
pub(crate) enum Block {
    Entries(Arc<EntryBlock>),
    Records(Arc<RecordBlock>),
    Index(Arc<DeltaLayerIndex>),
    IndexPiece(Arc<IndexPiece>),
}

#[derive(Debug, Clone)]
struct ByBytes;

/// What a block takes beside its bytes, about.
const OVERHEAD: u64 = 128;
/// Blocks are about so large; the cache sizes its tables by it.
const USUAL: usize = 32 << 10;

impl Weighter<BlockId, Loaded<Block>> for ByBytes {
    fn weight(&self, _: &BlockId, block: &Loaded<Block>) -> u64 {
        let size = match block {
            Loaded::Here(Block::Entries(block)) => block.size(),
            Loaded::Here(Block::Records(block)) => block.size(),
            Loaded::Here(Block::Index(index)) => index.size(),
            Loaded::Here(Block::IndexPiece(piece)) => piece.size(),
            Loaded::Failed(_) => ByteCount::ZERO,
        };
        size.get() + OVERHEAD
    }
}

impl BlockCache {
    /// A cache of about `size`.
    pub fn new(size: ByteCount) -> Self {
        let items = size.as_len() / USUAL + 1;
        Self {
            blocks: Cache::with_weighter(items, size.get(), ByBytes),
            files: AtomicU64::new(0),
        }
    }

    /// How it is used.
    pub fn in_use(&self) -> CacheUse {
        CacheUse {
            hits: self.blocks.hits(),
            misses: self.blocks.misses(),
            used: ByteCount::new(self.blocks.weight()),
            budget: ByteCount::new(self.blocks.capacity()),
        }
    }

    /// A number that no other file has had here.
    pub(crate) fn number_file(&self) -> u64 {
        self.files.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether the block is there now. Nothing is counted by it.
    pub(crate) fn has(&self, id: BlockId) -> bool {
        self.blocks.peek(&id).and_then(Loaded::value).is_some()
    }

    /// The block, read by `read` unless it is there or being read. An error is that of all who wait
    /// for it.
    pub(crate) async fn get_or_read<R: Future<Output = Result<Block, ReadError>>>(
        &self,
        id: BlockId,
        read: impl FnOnce() -> R,
    ) -> Result<Block, ReadError> {
        get_or_load(&self.blocks, &id, read).await
    }
}
