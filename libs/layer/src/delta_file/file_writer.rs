//! The file as it grows: blocks, behind them their index, and the footer.

use std::{
    io::{self, Write},
    ops::Range,
};

use bytes::BytesMut;
use palimpsest_codec::crc32c;
use palimpsest_types::{ByteCount, Lsn, WriterEpoch};

use super::{
    entry::RecordPlace,
    footer::{Footer, encode_header},
    frame::{Frame, MAX_RAW, MAX_SHARED_RAW},
    index::{BlockNo, Span},
    writer::WriteDeltaLayerError,
};

/// The part of the file that is written, and its index.
#[derive(Debug)]
pub(super) struct FileWriter<W> {
    to: W,
    offset: u64,
    index: BytesMut,
    record_blocks: u32,
    entry_blocks: u32,
}

/// A block that may still grow.
#[derive(Debug, Default)]
pub(super) struct OpenBlock {
    raw: Vec<u8>,
    items: u32,
}

impl<W: Write> FileWriter<W> {
    pub(super) fn begin(to: W) -> io::Result<Self> {
        let mut file = Self {
            to,
            offset: 0,
            index: BytesMut::new(),
            record_blocks: 0,
            entry_blocks: 0,
        };
        file.put(&encode_header())?;
        Ok(file)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> ByteCount {
        ByteCount::new(self.offset)
    }

    /// Where the next record stands that is added to this block, which is not written yet.
    pub(super) fn next_record(&self, block: &OpenBlock) -> RecordPlace {
        RecordPlace {
            block: BlockNo::new(self.record_blocks),
            offset: block.raw.len() as u32,
        }
    }

    /// Writes a block of records, before any entries.
    pub(super) fn write_record_block(
        &mut self,
        block: &mut OpenBlock,
    ) -> Result<(), WriteDeltaLayerError> {
        let frame = self.write_block(block)?;
        frame.encode(&mut self.index);
        self.record_blocks += 1;
        Ok(())
    }

    /// Writes a block of entries, after all records.
    pub(super) fn write_entry_block(
        &mut self,
        block: &mut OpenBlock,
        span: Span,
    ) -> Result<(), WriteDeltaLayerError> {
        let frame = self.write_block(block)?;
        span.encode(&mut self.index);
        frame.encode(&mut self.index);
        self.entry_blocks += 1;
        Ok(())
    }

    fn write_block(&mut self, block: &mut OpenBlock) -> Result<Frame, WriteDeltaLayerError> {
        // The number of this block must have a successor.
        let count = self.record_blocks.checked_add(self.entry_blocks);
        if count.is_none_or(|count| count == u32::MAX) {
            return Err(WriteDeltaLayerError::TooManyBlocks);
        }
        let (frame, stored) = Frame::seal(&block.raw, block.items);
        self.put(&stored)?;
        block.clear();
        Ok(frame)
    }

    /// Writes what comes after the blocks; the length of the file.
    pub(super) fn finish(
        mut self,
        epoch: WriterEpoch,
        lsns: Range<Lsn>,
        entries: u64,
    ) -> io::Result<ByteCount> {
        let footer = Footer {
            epoch,
            lsns,
            entries,
            index_offset: self.offset,
            index_len: self.index.len() as u64,
            record_blocks: self.record_blocks,
            entry_blocks: self.entry_blocks,
            index_crc: crc32c(&self.index),
        };
        let index = self.index.split();
        self.put(&index)?;
        self.put(&footer.encode())?;
        self.to.flush()?;
        Ok(ByteCount::new(self.offset))
    }
}

impl OpenBlock {
    /// False if the block must be written before an item of `len` bytes is added. An item that is
    /// larger than blocks should be gets one of its own.
    pub(super) fn has_room(&self, len: usize) -> Result<bool, WriteDeltaLayerError> {
        if len > MAX_RAW as usize {
            return Err(WriteDeltaLayerError::TooLong(len));
        }
        Ok(self.raw.is_empty() || self.raw.len() + len <= MAX_SHARED_RAW as usize)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Where an item of `len` bytes is to be appended.
    pub(super) fn extend(&mut self, len: usize) -> &mut Vec<u8> {
        self.items += 1;
        self.raw.reserve(len);
        &mut self.raw
    }

    /// Empties it. What one huge item needed is not kept.
    fn clear(&mut self) {
        self.raw.clear();
        self.raw.shrink_to(MAX_SHARED_RAW as usize);
        self.items = 0;
    }
}
