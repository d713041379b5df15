//! What blocks of both kinds have in common: lengths, a checksum, and perhaps compression.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use palimpsest_codec::{Cursor, crc32c};
use palimpsest_wal::RecordReader;

use super::{
    entry::{HEAD_LEN, RECORD_HEAD_LEN},
    error::{DeltaLayerError, check, ensure},
};

/// No block of several items unpacks to more: it is closed before it grows past this. Larger blocks
/// make a read fetch and unpack more than it wants; smaller ones compress worse and make the index
/// longer.
pub(super) const MAX_SHARED_RAW: u32 = 32 << 10;

/// No block unpacks to more: the longest entry is that of the longest record that is read.
pub(super) const MAX_RAW: u32 = RecordReader::MAX_RECORD_LEN + (HEAD_LEN + RECORD_HEAD_LEN) as u32;

/// Length of an encoded frame.
pub(super) const FRAME_LEN: u64 = 16;

/// No byte of an lz4 block says more than "255 bytes more".
const LZ4_MAX_RATIO: u64 = 255;

/// Lengths and checksum of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Bytes in the file.
    pub(super) stored_len: u32,
    /// Bytes unpacked; the same if the block is not compressed.
    pub(super) raw_len: u32,
    /// Over the bytes in the file, so that nothing unchecked is unpacked.
    crc: u32,
    /// Entries or records in it.
    pub(super) items: u32,
}

impl Frame {
    /// The stored form of a block of `items`, at least one, and at most as many bytes as
    /// [`max_raw`] says.
    pub(super) fn seal(raw: &[u8], items: u32) -> (Self, Cow<'_, [u8]>) {
        let compressed = lz4_flex::block::compress(raw);
        let stored = if compressed.len() < raw.len() {
            Cow::Owned(compressed)
        } else {
            Cow::Borrowed(raw)
        };
        let frame = Self {
            stored_len: stored.len() as u32,
            raw_len: raw.len() as u32,
            crc: crc32c(&stored),
            items,
        };
        (frame, stored)
    }

    /// The raw bytes of the block that is stored like this.
    ///
    /// The lengths were checked by [`Frame::decode`] against each other, and here against what came,
    /// so an allocation is at most 255 times what was fetched, and more than [`MAX_SHARED_RAW`] only
    /// for an item that is as long.
    pub(super) fn open(&self, what: &'static str, stored: Bytes) -> Result<Bytes, DeltaLayerError> {
        let as_long = stored.len() as u64 == u64::from(self.stored_len);
        ensure(as_long, what, "it has another length than the index says")?;
        check(what, &stored, self.crc)?;
        if self.stored_len == self.raw_len {
            return Ok(stored);
        }
        let mut raw = vec![0; self.raw_len as usize];
        let unpacked = lz4_flex::block::decompress_into(&stored, &mut raw);
        let whole = unpacked.is_ok_and(|len| len == raw.len());
        ensure(whole, what, "it does not unpack to the length of the index")?;
        Ok(raw.into())
    }

    /// Items to make room for, of which each takes `min_len` bytes at least: what the index claims,
    /// unless the block can't have as many.
    pub(super) fn capacity(&self, min_len: usize) -> usize {
        (self.items as usize).min(self.raw_len as usize / min_len)
    }

    pub(super) fn encode(&self, to: &mut BytesMut) {
        to.put_u32_le(self.stored_len);
        to.put_u32_le(self.raw_len);
        to.put_u32_le(self.crc);
        to.put_u32_le(self.items);
    }

    /// Reads a frame, and refuses lengths that no block has.
    pub(super) fn decode(cursor: &mut Cursor) -> Result<Self, DeltaLayerError> {
        let frame = Self {
            stored_len: cursor.u32("index")?,
            raw_len: cursor.u32("index")?,
            crc: cursor.u32("index")?,
            items: cursor.u32("index")?,
        };
        let (stored, raw, items) = (frame.stored_len, frame.raw_len, frame.items);
        let unpackable = u64::from(raw) <= u64::from(stored) * LZ4_MAX_RATIO;
        if raw == 0 || raw > max_raw(items) || stored > raw || !unpackable {
            return Err(DeltaLayerError::BlockLength { stored, raw, items });
        }
        let counted = (1..=raw).contains(&items);
        ensure(counted, "index", "a block can't hold as many items")?;
        Ok(frame)
    }
}

/// So many bytes at most are a block of so many items.
const fn max_raw(items: u32) -> u32 {
    match items {
        0 | 1 => MAX_RAW,
        _ => MAX_SHARED_RAW,
    }
}
