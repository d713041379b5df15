//! Which blocks there are, where, and which versions each has.

use std::{fmt, ops::Range};

use bytes::{BufMut, Bytes, BytesMut};
use palimpsest_codec::Cursor;
use palimpsest_types::{ByteCount, Key, KeyRange, Lsn, WriterEpoch};

use super::{
    error::{DeltaLayerError, check, ensure},
    footer::{Footer, HEADER_LEN},
    frame::{FRAME_LEN, Frame},
};
use crate::image::KeyRangeInclusive;

/// Length of an index entry of a record block.
pub(super) const RECORD_BLOCK_LEN: u64 = FRAME_LEN;
/// Length of an index entry of an entry block.
pub(super) const ENTRY_BLOCK_LEN: u64 = 2 * (Key::LEN as u64 + 8) + FRAME_LEN;

/// What entries are sorted by.
pub(super) type Version = (Key, Lsn);

/// The number of a block in its file, from 0; record blocks come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockNo(u32);

/// Where a block stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockPlace {
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub stored_len: u32,
    /// Number of bytes unpacked.
    pub raw_len: u32,
}

/// The index of a delta layer: which keys and versions it has, and in which blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaLayerIndex {
    epoch: WriterEpoch,
    lsns: Range<Lsn>,
    entries: u64,
    /// All blocks, in the order of the file.
    blocks: Vec<Block>,
    /// Of the entry blocks, which are the last of `blocks`.
    spans: Vec<Span>,
    largest_record_block: u32,
}

/// What the index says of an entry block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryBlockSpan {
    /// Its number.
    pub no: BlockNo,
    /// Its first version.
    pub first: (Key, Lsn),
    /// Its last version.
    pub last: (Key, Lsn),
    /// Bytes that it takes in the file.
    pub stored_len: u32,
}

/// The first and the last version in an entry block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: Version,
    pub(super) last: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    offset: u64,
    frame: Frame,
}

impl BlockNo {
    pub(super) const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for BlockNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl DeltaLayerIndex {
    /// Reads the index that a footer tells of.
    ///
    /// # Errors
    /// If it is damaged, or its parts contradict each other or the footer.
    pub fn decode(footer: &Footer, bytes: &Bytes) -> Result<Self, DeltaLayerError> {
        let as_long = bytes.len() as u64 == footer.index_len;
        ensure(
            as_long,
            "index",
            "it has another length than the footer says",
        )?;
        check("index", bytes, footer.index_crc)?;
        // The counts are as good as the length, which the caller has already paid for.
        let (record_blocks, entry_blocks) = (footer.record_blocks, footer.entry_blocks);
        let count = record_blocks as usize + entry_blocks as usize;
        let mut index = Self {
            epoch: footer.epoch,
            lsns: footer.lsns.clone(),
            entries: footer.entries,
            blocks: Vec::with_capacity(count),
            spans: Vec::with_capacity(entry_blocks as usize),
            largest_record_block: 0,
        };
        let mut cursor = Cursor::new(bytes.clone());
        for _ in 0..record_blocks {
            let frame = Frame::decode(&mut cursor)?;
            index.largest_record_block = index.largest_record_block.max(frame.raw_len);
            index.push_block(frame);
        }
        let mut entries = 0;
        for _ in 0..entry_blocks {
            let span = Span::decode(&mut cursor)?;
            let frame = Frame::decode(&mut cursor)?;
            entries += u64::from(frame.items);
            index.push_span(span)?;
            index.push_block(frame);
        }
        let full = index.end() == footer.index_offset;
        ensure(full, "index", "the blocks do not end where it begins")?;
        ensure(
            entries == footer.entries,
            "index",
            "the number of entries is not the footer's",
        )?;
        Ok(index)
    }

    /// Generation of the writer that made the changes.
    pub fn epoch(&self) -> WriterEpoch {
        self.epoch
    }

    /// LSNs of its changes; the start is exclusive as changes end after it, the end inclusive.
    pub fn lsns(&self) -> Range<Lsn> {
        self.lsns.clone()
    }

    /// The first and the last of its keys; `None` if it has no changes.
    pub fn keys(&self) -> Option<KeyRangeInclusive> {
        Some(KeyRangeInclusive {
            first: self.spans.first()?.first.0,
            last: self.spans.last()?.last.0,
        })
    }

    /// How many versions it has.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Length, unpacked, of the largest block of records; 0 if there is none. Looking into an entry
    /// block may take one of these, too.
    pub fn largest_record_block(&self) -> u32 {
        self.largest_record_block
    }

    /// Memory it takes, about.
    pub fn size(&self) -> ByteCount {
        let blocks = self.blocks.capacity() * size_of::<Block>();
        let spans = self.spans.capacity() * size_of::<Span>();
        ByteCount::new((blocks + spans) as u64)
    }

    /// The entry blocks that may hold versions of `key` at or before `up_to`, newest first.
    pub fn blocks_of(&self, key: Key, up_to: Lsn) -> impl Iterator<Item = BlockNo> + '_ {
        let from = self.spans.partition_point(|span| span.last.0 < key);
        let to = self
            .spans
            .partition_point(|span| span.first <= (key, up_to));
        self.numbers(from..to).rev()
    }

    /// The entry blocks that may hold versions of keys of a range, in order.
    pub fn blocks_in(&self, keys: KeyRange) -> impl Iterator<Item = BlockNo> + '_ {
        let from = self.spans.partition_point(|span| span.last.0 < keys.start);
        let to = self.spans.partition_point(|span| span.first.0 < keys.end);
        self.numbers(from..to)
    }

    /// The first and the last version of an entry block; `None` if this is none.
    pub fn ends_of(&self, no: BlockNo) -> Option<[(Key, Lsn); 2]> {
        let at = (no.get() as usize).checked_sub(self.record_blocks())?;
        let span = self.spans.get(at)?;
        Some([span.first, span.last])
    }

    /// All entry blocks, in order.
    pub fn entry_blocks(&self) -> impl Iterator<Item = EntryBlockSpan> + '_ {
        let numbered = self.numbers(0..self.spans.len()).zip(&self.spans);
        let blocks = self.blocks.iter().skip(self.record_blocks());
        numbered
            .zip(blocks)
            .map(|((no, span), block)| EntryBlockSpan {
                no,
                first: span.first,
                last: span.last,
                stored_len: block.frame.stored_len,
            })
    }

    /// Where a block of this layer stands in its file.
    ///
    /// # Errors
    /// If the layer has no such block: the number is another layer's.
    pub fn place(&self, no: BlockNo) -> Result<BlockPlace, DeltaLayerError> {
        let block = self.block(no)?;
        Ok(BlockPlace {
            offset: block.offset,
            stored_len: block.frame.stored_len,
            raw_len: block.frame.raw_len,
        })
    }

    /// Lengths of a record block.
    pub(super) fn record_block(&self, no: BlockNo) -> Result<Frame, DeltaLayerError> {
        if self.entry_block_at(no).is_some() {
            return Err(DeltaLayerError::NoBlock(no));
        }
        self.block(no).map(|block| block.frame)
    }

    /// Lengths of an entry block, and which versions it has.
    pub(super) fn entry_block(&self, no: BlockNo) -> Result<(Frame, Span), DeltaLayerError> {
        let span = self.entry_block_at(no).and_then(|at| self.spans.get(at));
        let span = span.ok_or(DeltaLayerError::NoBlock(no))?;
        Ok((self.block(no)?.frame, *span))
    }

    fn block(&self, no: BlockNo) -> Result<&Block, DeltaLayerError> {
        let block = self.blocks.get(no.0 as usize);
        block.ok_or(DeltaLayerError::NoBlock(no))
    }

    fn record_blocks(&self) -> usize {
        self.blocks.len() - self.spans.len()
    }

    fn entry_block_at(&self, no: BlockNo) -> Option<usize> {
        (no.0 as usize).checked_sub(self.record_blocks())
    }

    fn numbers(&self, spans: Range<usize>) -> impl DoubleEndedIterator<Item = BlockNo> + '_ {
        let first = self.record_blocks();
        spans.map(move |at| BlockNo((first + at) as u32))
    }

    /// Where the next block begins.
    fn end(&self) -> u64 {
        let last = self.blocks.last();
        last.map_or(HEADER_LEN as u64, |block| {
            block.offset + u64::from(block.frame.stored_len)
        })
    }

    fn push_block(&mut self, frame: Frame) {
        let offset = self.end();
        self.blocks.push(Block { offset, frame });
    }

    fn push_span(&mut self, span: Span) -> Result<(), DeltaLayerError> {
        let after = self
            .spans
            .last()
            .is_none_or(|before| before.last < span.first);
        ensure(
            after && span.first <= span.last,
            "index",
            "its blocks are not in the order of keys and LSNs",
        )?;
        // Those between are checked when the block is read.
        let inside = [span.first, span.last]
            .iter()
            .all(|(_, lsn)| is_inside(&self.lsns, *lsn));
        ensure(inside, "index", "a version is outside of the layer's LSNs")?;
        self.spans.push(span);
        Ok(())
    }
}

impl Span {
    pub(super) fn encode(&self, to: &mut BytesMut) {
        for (key, lsn) in [self.first, self.last] {
            to.put_slice(&key.to_bytes());
            to.put_u64_le(lsn.get());
        }
    }

    fn decode(cursor: &mut Cursor) -> Result<Self, DeltaLayerError> {
        Ok(Self {
            first: decode_version(cursor)?,
            last: decode_version(cursor)?,
        })
    }
}

/// Reads what an entry is a version of.
pub(super) fn decode_version(cursor: &mut Cursor) -> Result<Version, DeltaLayerError> {
    let key = Key::from_bytes(&cursor.array("key")?)?;
    Ok((key, Lsn::new(cursor.u64("LSN")?)))
}

/// True if a change at `lsn` belongs to a layer of these LSNs.
pub(super) fn is_inside(lsns: &Range<Lsn>, lsn: Lsn) -> bool {
    lsns.start < lsn && lsn <= lsns.end
}
