//! Image layer files: one version of each of their keys, at one LSN.
//!
//! ```text
//! 0       magic "PALIMAGE", version u32, reserved u32                  16 bytes
//! 16      values, each as its index entry says                         …
//! index   entries of 34 bytes, sorted by key:
//!         key 18 bytes, offset u64, length u32, crc32c of the value u32
//! footer  LSN u64, index offset u64, entry count u32, index crc32c u32,
//!         reserved u32, crc32c of the 28 bytes before u32               32 bytes
//! ```
//!
//! All numbers are little-endian but the key, which is big-endian so that it sorts. The index is at
//! the end because the order in which a base backup sends pages is not the order of keys. A value
//! shorter than a page whose key is a page is lz4-compressed. How long a value may be depends on its
//! key (`image/lengths.rs`), and no two share bytes, so an index claims no more than the file has.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use palimpsest_codec::{Cursor, TruncatedError, crc32c};
use palimpsest_types::{BlockNumber, InvalidKeyError, Key, KeyRange, Lsn, PAGE_SIZE};
use palimpsest_wal::Value;

mod lengths;
mod pieces;

pub use lengths::MAX_RELATION_MAP;
use lengths::lengths;
pub use pieces::{IndexPiece, IndexPieces};

/// Makes the bytes of an image layer. Keys may come in any order, each once.
#[derive(Debug)]
pub struct ImageLayerWriter {
    lsn: Lsn,
    bytes: BytesMut,
    index: Vec<Entry>,
}

/// The index of an image layer: which keys it has, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayerIndex {
    lsn: Lsn,
    entries: Vec<Entry>,
}

/// Where a value stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueRef {
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
    crc: u32,
}

/// What the footer says: where to read the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    lsn: Lsn,
    /// First byte of the index in the file.
    pub index_offset: u64,
    /// Number of bytes of the index.
    pub index_len: u64,
    index_crc: u32,
}

/// Bytes that are not the image layer they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageLayerError {
    /// Something is missing at the end.
    #[error(transparent)]
    Truncated(#[from] TruncatedError),
    /// A checksum does not match.
    #[error("the {what} fails its checksum: {found:08X} computed, {stored:08X} stored")]
    Checksum {
        /// Which part.
        what: &'static str,
        /// In the file.
        stored: u32,
        /// Over the bytes.
        found: u32,
    },
    /// An index entry's key is unknown to this version.
    #[error(transparent)]
    Key(#[from] InvalidKeyError),
    /// No value of such a key is as long or as short, so none is read.
    #[error("the index says that the value of {key} has {len} bytes, which none has")]
    Length {
        /// The key.
        key: Key,
        /// What the index says.
        len: u32,
    },
    /// Lengths or order contradict each other.
    #[error("the {0} is malformed")]
    Malformed(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    key: Key,
    value: ValueRef,
}

const MAGIC: &[u8; 8] = b"PALIMAGE";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 16;
const ENTRY_LEN: u64 = Key::LEN as u64 + 8 + 4 + 4;

impl ImageLayerWriter {
    /// A layer of versions at `lsn`.
    pub fn new(lsn: Lsn) -> Self {
        let mut bytes = BytesMut::new();
        bytes.put_slice(MAGIC);
        bytes.put_u32_le(VERSION);
        bytes.put_u32_le(0);
        debug_assert_eq!(bytes.len(), HEADER_LEN);
        Self {
            lsn,
            bytes,
            index: Vec::new(),
        }
    }

    /// Bytes so far, without the index.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Number of keys so far.
    pub fn entries(&self) -> u64 {
        self.index.len() as u64
    }

    /// True if it has no keys yet.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Adds a page.
    pub fn page(&mut self, key: Key, page: &[u8; PAGE_SIZE]) {
        let compressed = lz4_flex::block::compress(page);
        if compressed.len() < PAGE_SIZE {
            self.put(key, &compressed);
        } else {
            self.put(key, page);
        }
    }

    /// Adds the size of a relation fork or of a segment of an SLRU area.
    pub fn rel_size(&mut self, key: Key, blocks: BlockNumber) {
        self.put(key, &blocks.get().to_le_bytes());
    }

    /// Adds a file's content.
    pub fn file(&mut self, key: Key, content: &[u8]) {
        self.put(key, content);
    }

    fn put(&mut self, key: Key, stored: &[u8]) {
        let readable = lengths(key).is_some_and(|lengths| lengths.contains(&stored.len()));
        debug_assert!(readable, "{key} with {} bytes", stored.len());
        let offset = self.bytes.len() as u64;
        let value = ValueRef {
            offset,
            len: stored.len() as u32,
            crc: crc32c(stored),
        };
        self.bytes.put_slice(stored);
        self.index.push(Entry { key, value });
    }

    /// The whole file, and the range of its keys; `None` if it is empty.
    pub fn finish(mut self) -> Option<(Bytes, KeyRangeInclusive)> {
        self.index.sort_unstable_by_key(|entry| entry.key);
        let keys = KeyRangeInclusive {
            first: self.index.first()?.key,
            last: self.index.last()?.key,
        };
        let index_offset = self.bytes.len();
        for Entry { key, value } in &self.index {
            self.bytes.put_slice(&key.to_bytes());
            self.bytes.put_u64_le(value.offset);
            self.bytes.put_u32_le(value.len);
            self.bytes.put_u32_le(value.crc);
        }
        let index_crc = crc32c(&self.bytes[index_offset..]);
        let mut footer = BytesMut::with_capacity(Footer::LEN);
        footer.put_u64_le(self.lsn.get());
        footer.put_u64_le(index_offset as u64);
        footer.put_u32_le(self.index.len() as u32);
        footer.put_u32_le(index_crc);
        footer.put_u32_le(0);
        footer.put_u32_le(crc32c(&footer));
        self.bytes.put_slice(&footer);
        Some((self.bytes.freeze(), keys))
    }
}

/// The first and the last key of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRangeInclusive {
    /// The smallest key.
    pub first: Key,
    /// The largest key.
    pub last: Key,
}

impl Footer {
    /// Length in bytes; it is the end of the file.
    pub const LEN: usize = 32;

    /// Reads the footer of a file of `file_len` bytes.
    ///
    /// # Errors
    /// If it is damaged, or says what can't be.
    pub fn decode(bytes: &Bytes, file_len: u64) -> Result<Self, ImageLayerError> {
        let mut cursor = Cursor::new(bytes.clone());
        let lsn = Lsn::new(cursor.u64("footer")?);
        let index_offset = cursor.u64("footer")?;
        let count = cursor.u32("footer")?;
        let index_crc = cursor.u32("footer")?;
        let _reserved = cursor.u32("footer")?;
        let covered = cursor.position();
        check(
            "footer",
            bytes.get(..covered).unwrap_or_default(),
            cursor.u32("footer")?,
        )?;
        let index_len = u64::from(count) * ENTRY_LEN;
        let end = index_offset
            .checked_add(index_len)
            .and_then(|e| e.checked_add(Self::LEN as u64));
        if end != Some(file_len) || index_offset < HEADER_LEN as u64 {
            return Err(ImageLayerError::Malformed("footer"));
        }
        Ok(Self {
            lsn,
            index_offset,
            index_len,
            index_crc,
        })
    }
}

impl ImageLayerIndex {
    /// Reads the index that a footer tells of.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn decode(footer: &Footer, bytes: &Bytes) -> Result<Self, ImageLayerError> {
        check("index", bytes, footer.index_crc)?;
        if bytes.len() as u64 != footer.index_len {
            return Err(ImageLayerError::Malformed("index"));
        }
        Ok(Self {
            lsn: footer.lsn,
            entries: decode_entries(footer, bytes)?,
        })
    }

    /// The LSN of all its versions.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// All keys, in order, with where their versions stand.
    pub fn entries(&self) -> impl Iterator<Item = (Key, ValueRef)> + '_ {
        self.entries.iter().map(|entry| (entry.key, entry.value))
    }

    /// Where the version of a key stands.
    pub fn find(&self, key: Key) -> Option<ValueRef> {
        let at = self
            .entries
            .binary_search_by_key(&key, |entry| entry.key)
            .ok()?;
        self.entries.get(at).map(|entry| entry.value)
    }

    /// Keys of a range, in order, with where their versions stand.
    pub fn range(&self, keys: KeyRange) -> impl Iterator<Item = (Key, ValueRef)> + '_ {
        let from = self.entries.partition_point(|entry| entry.key < keys.start);
        let rest = self.entries.get(from..).unwrap_or_default();
        rest.iter()
            .take_while(move |entry| entry.key < keys.end)
            .map(|entry| (entry.key, entry.value))
    }
}

impl ValueRef {
    /// Where it stands in the file.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.len)
    }

    /// The value in `stored`, the bytes that this refers to.
    ///
    /// # Errors
    /// If they are damaged or no value of such a key.
    pub fn decode(&self, key: Key, stored: Bytes) -> Result<Value, ImageLayerError> {
        check("value", &stored, self.crc)?;
        match key {
            Key::RelBlock(..) | Key::SlruBlock(..) if stored.len() == PAGE_SIZE => {
                Ok(Value::Image(stored))
            }
            Key::RelBlock(..) | Key::SlruBlock(..) => {
                let mut page = vec![0; PAGE_SIZE];
                match lz4_flex::block::decompress_into(&stored, &mut page) {
                    Ok(PAGE_SIZE) => Ok(Value::Image(page.into())),
                    _ => Err(ImageLayerError::Malformed("compressed page")),
                }
            }
            Key::RelSize(_) | Key::SlruSegment(..) => {
                let blocks = Cursor::new(stored).u32("relation size")?;
                Ok(Value::RelSize(BlockNumber::new(blocks)))
            }
            Key::RelMap { .. }
            | Key::TwoPhase(_)
            | Key::Parameters
            | Key::ControlFile
            | Key::ControlData
            | Key::NextMultiXact
            | Key::CommitTime
            | Key::Origin(_) => Ok(Value::File(stored)),
            // An image has what a database holds, not where that came from.
            Key::Database { .. } => Err(ImageLayerError::Malformed("key of a database")),
        }
    }
}

/// Index entries that follow each other.
fn decode_entries(footer: &Footer, bytes: &Bytes) -> Result<Vec<Entry>, ImageLayerError> {
    let mut cursor = Cursor::new(bytes.clone());
    let mut entries: Vec<Entry> = Vec::with_capacity(bytes.len() / ENTRY_LEN as usize);
    let mut claimed = 0;
    while cursor.remaining() > 0 {
        let key = Key::from_bytes(&cursor.array("key")?)?;
        let offset = cursor.u64("offset")?;
        let len = cursor.u32("length")?;
        let crc = cursor.u32("checksum")?;
        let in_order = entries.last().is_none_or(|before| before.key < key);
        let inside = offset >= HEADER_LEN as u64
            && offset
                .checked_add(u64::from(len))
                .is_some_and(|e| e <= footer.index_offset);
        if !in_order || !inside {
            return Err(ImageLayerError::Malformed("index"));
        }
        if !lengths(key).is_some_and(|lengths| lengths.contains(&(len as usize))) {
            return Err(ImageLayerError::Length { key, len });
        }
        // No overflow: fewer than 2^32 values of fewer than 2^32 bytes.
        claimed += u64::from(len);
        entries.push(Entry {
            key,
            value: ValueRef { offset, len, crc },
        });
    }
    if claimed > footer.index_offset - HEADER_LEN as u64 {
        return Err(ImageLayerError::Malformed("index"));
    }
    Ok(entries)
}

fn check(what: &'static str, bytes: &[u8], stored: u32) -> Result<(), ImageLayerError> {
    let found = crc32c(bytes);
    if found == stored {
        Ok(())
    } else {
        Err(ImageLayerError::Checksum {
            what,
            stored,
            found,
        })
    }
}

#[cfg(test)]
mod tests;
