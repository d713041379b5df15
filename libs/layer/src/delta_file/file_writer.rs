//! The file as it grows: blocks, behind them their index, and the footer.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::Range,
};

use bytes::BytesMut;
use palimpsest_codec::crc32c;
use palimpsest_types::{ByteCount, Lsn, WriterEpoch};
use palimpsest_wal::RawRecord;

use super::{
    entry::{RecordPlace, encode_record, record_len},
    footer::{Footer, encode_header},
    frame::{Frame, MAX_RAW, TARGET_RAW},
    index::{BlockNo, Span},
    writer::WriteDeltaLayerError,
};

/// The part of the file that is written, and its index.
pub(super) struct FileWriter<W> {
    to: W,
    offset: u64,
    index: BytesMut,
    record_blocks: u32,
    entry_blocks: u32,
}

/// A block that may still grow.
#[derive(Default)]
pub(super) struct OpenBlock {
    raw: Vec<u8>,
    items: u32,
}

/// Shared records by where they start, with where they were written.
pub(super) type Placed = BTreeMap<Lsn, (RawRecord, RecordPlace)>;

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

    /// Writes the section of shared records, in LSN order, which must be before any entries.
    pub(super) fn write_records(
        &mut self,
        records: BTreeMap<Lsn, RawRecord>,
    ) -> Result<Placed, WriteDeltaLayerError> {
        let mut block = OpenBlock::default();
        let mut placed = Placed::new();
        for (start, record) in records {
            let len = record_len(&record);
            if !block.has_room(len)? {
                self.write_record_block(&mut block)?;
            }
            let at = RecordPlace {
                block: BlockNo::new(self.record_blocks),
                offset: block.raw.len() as u32,
            };
            encode_record(&record, block.extend(len));
            placed.insert(start, (record, at));
        }
        if !block.raw.is_empty() {
            self.write_record_block(&mut block)?;
        }
        Ok(placed)
    }

    fn write_record_block(&mut self, block: &mut OpenBlock) -> Result<(), WriteDeltaLayerError> {
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
        Ok(self.raw.is_empty() || self.raw.len() + len <= TARGET_RAW)
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
        self.raw.shrink_to(TARGET_RAW);
        self.items = 0;
    }
}
