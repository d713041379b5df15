//! The index of an image layer, read in pieces of bounded size.
//!
//! The file has one checksum for the whole index. Whoever has read and checked the whole once keeps
//! [`IndexPieces`]: a checksum for each piece. From then on a piece can be let go of and read again,
//! and is believed as much as the whole was.

use std::ops::Range;

use bytes::Bytes;
use palimpsest_codec::crc32c;
use palimpsest_types::{ByteCount, Key};

use super::{
    ENTRY_LEN, Entry, Footer, ImageLayerError, ImageLayerIndex, ValueRef, check, decode_entries,
};

/// Where the pieces of an index stand, and what they must be. All are as long, but the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexPieces {
    footer: Footer,
    checksums: Box<[u32]>,
}

/// Entries of an index that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexPiece {
    /// The number of its first entry in the index.
    first: u32,
    entries: Box<[Entry]>,
}

/// Entries of a piece: one fits into two pages, and tells of two megabytes of pages.
const ENTRIES: u32 = 256;
const PIECE_LEN: u64 = ENTRIES as u64 * ENTRY_LEN;

impl IndexPieces {
    /// The whole index, and its pieces.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn decode(
        footer: &Footer,
        bytes: &Bytes,
    ) -> Result<(ImageLayerIndex, Self), ImageLayerError> {
        let index = ImageLayerIndex::decode(footer, bytes)?;
        let pieces = Self {
            footer: *footer,
            checksums: bytes.chunks(PIECE_LEN as usize).map(crc32c).collect(),
        };
        Ok((index, pieces))
    }

    /// The piece that has the entry of this number.
    pub const fn piece_of(entry: u32) -> u32 {
        entry / ENTRIES
    }

    /// Where a piece stands in the file; `None` if there is no such piece.
    pub fn place(&self, piece: u32) -> Option<Range<u64>> {
        self.checksums.get(piece as usize)?;
        let end = self.footer.index_offset + self.footer.index_len;
        let from = self.footer.index_offset + u64::from(piece) * PIECE_LEN;
        Some(from..end.min(from + PIECE_LEN))
    }

    /// Reads a piece.
    ///
    /// # Errors
    /// If these are not the bytes that stood there when the whole index was read.
    pub fn piece(&self, piece: u32, bytes: &Bytes) -> Result<IndexPiece, ImageLayerError> {
        let checksum = self.checksums.get(piece as usize);
        let checksum = checksum.ok_or(ImageLayerError::Malformed("piece of the index"))?;
        check("piece of the index", bytes, *checksum)?;
        Ok(IndexPiece {
            first: piece * ENTRIES,
            entries: decode_entries(&self.footer, bytes)?.into(),
        })
    }
}

impl IndexPiece {
    /// The entry of a number, if it is in this piece.
    pub fn entry(&self, number: u32) -> Option<(Key, ValueRef)> {
        let at = number.checked_sub(self.first)?;
        let entry = self.entries.get(at as usize)?;
        Some((entry.key, entry.value))
    }

    /// Memory it takes, about.
    pub fn size(&self) -> ByteCount {
        ByteCount::new(size_of_val::<[Entry]>(&self.entries) as u64)
    }
}
