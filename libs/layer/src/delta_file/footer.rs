//! The two ends of the file: the header, and the footer from which reading begins.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use palimpsest_codec::{Cursor, crc32c};
use palimpsest_types::{Lsn, WriterEpoch};

use super::{
    error::{DeltaLayerError, check, ensure},
    index::{ENTRY_BLOCK_LEN, RECORD_BLOCK_LEN},
};

/// Length of the header in bytes; it is the beginning of the file.
pub const HEADER_LEN: usize = 16;

const MAGIC: &[u8; 8] = b"PALDELTA";
const VERSION: u32 = 1;

/// What the footer says: of what the layer is, and where to read the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    pub(super) epoch: WriterEpoch,
    pub(super) lsns: Range<Lsn>,
    pub(super) entries: u64,
    /// First byte of the index in the file.
    pub index_offset: u64,
    /// Number of bytes of the index, which ends where the footer begins.
    pub index_len: u64,
    pub(super) record_blocks: u32,
    pub(super) entry_blocks: u32,
    pub(super) index_crc: u32,
}

/// Checks the first [`HEADER_LEN`] bytes of a file.
///
/// Reading does not need them, as the footer has the version, too; whoever has the whole file, to
/// check or to copy it, should still look.
///
/// # Errors
/// If the file is no delta layer, or of a version that this program does not know.
pub fn check_header(bytes: &Bytes) -> Result<(), DeltaLayerError> {
    let mut cursor = Cursor::new(bytes.clone());
    if cursor.array::<8>("header")? != *MAGIC {
        return Err(DeltaLayerError::Magic);
    }
    check_version(cursor.u32("header")?)?;
    let reserved = cursor.u32("header")?;
    ensure(reserved == 0, "header", "reserved bytes are not zero")
}

pub(super) fn encode_header() -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_LEN);
    bytes.put_slice(MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_u32_le(0);
    bytes.freeze()
}

impl Footer {
    /// Length in bytes; it is the end of the file.
    pub const LEN: usize = 60;

    /// Reads the footer of a file of `file_len` bytes.
    ///
    /// # Errors
    /// If it is damaged, of an unknown version, or says what can't be.
    pub fn decode(bytes: &Bytes, file_len: u64) -> Result<Self, DeltaLayerError> {
        let mut cursor = Cursor::new(bytes.clone());
        let epoch = WriterEpoch::new(cursor.u64("footer")?);
        let start = Lsn::new(cursor.u64("footer")?);
        let end = Lsn::new(cursor.u64("footer")?);
        let entries = cursor.u64("footer")?;
        let index_offset = cursor.u64("footer")?;
        let record_blocks = cursor.u32("footer")?;
        let entry_blocks = cursor.u32("footer")?;
        let index_crc = cursor.u32("footer")?;
        let version = cursor.u32("footer")?;
        let covered = cursor.position();
        let crc = cursor.u32("footer")?;
        check("footer", bytes.get(..covered).unwrap_or_default(), crc)?;
        check_version(version)?;
        let footer = Self {
            epoch,
            lsns: start..end,
            entries,
            index_offset,
            index_len: index_len(record_blocks, entry_blocks),
            record_blocks,
            entry_blocks,
            index_crc,
        };
        ensure(cursor.remaining() == 0, "footer", "bytes follow it")?;
        ensure(start <= end, "footer", "the last LSN is before the first")?;
        let countable = record_blocks.checked_add(entry_blocks).is_some();
        ensure(
            countable,
            "footer",
            "there are more blocks than numbers for them",
        )?;
        ensure(
            footer.end() == Some(file_len) && index_offset >= HEADER_LEN as u64,
            "footer",
            "the index does not fit into the file",
        )?;
        Ok(footer)
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::LEN);
        bytes.put_u64_le(self.epoch.get());
        bytes.put_u64_le(self.lsns.start.get());
        bytes.put_u64_le(self.lsns.end.get());
        bytes.put_u64_le(self.entries);
        bytes.put_u64_le(self.index_offset);
        bytes.put_u32_le(self.record_blocks);
        bytes.put_u32_le(self.entry_blocks);
        bytes.put_u32_le(self.index_crc);
        bytes.put_u32_le(VERSION);
        bytes.put_u32_le(crc32c(&bytes));
        bytes.freeze()
    }

    /// Length of the file that this is the footer of.
    fn end(&self) -> Option<u64> {
        self.index_offset
            .checked_add(self.index_len)?
            .checked_add(Self::LEN as u64)
    }
}

fn index_len(record_blocks: u32, entry_blocks: u32) -> u64 {
    // No overflow: each product has fewer than 39 bits.
    u64::from(record_blocks) * RECORD_BLOCK_LEN + u64::from(entry_blocks) * ENTRY_BLOCK_LEN
}

fn check_version(found: u32) -> Result<(), DeltaLayerError> {
    if found == VERSION {
        Ok(())
    } else {
        Err(DeltaLayerError::Version {
            found,
            known: VERSION,
        })
    }
}
