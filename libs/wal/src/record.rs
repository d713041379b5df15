use bytes::Bytes;
use palimpsest_codec::{Cursor, TruncatedError};
use palimpsest_types::{BlockNumber, Fork, InvalidForkError, Lsn, Oid, PAGE_SIZE, RelTag};

use crate::image::{BlockImage, Compression};

/// One WAL record as it stands in the log, with the page headers cut out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    /// Where its first byte stands.
    pub start_lsn: Lsn,
    /// Where the next record may begin; becomes `pd_lsn` of the pages it changes.
    pub end_lsn: Lsn,
    /// Header and body. Of a logical message the header only, whose length is that of the whole:
    /// nothing is kept of it.
    pub bytes: Bytes,
}

/// The fixed part of a record (`XLogRecord`).
///
/// ```text
/// 0 total length u32 | 4 xid u32 | 8 previous record u64 | 16 info u8 | 17 rmid u8 | 20 crc u32
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Length of header and body.
    pub total_len: u32,
    /// Transaction that wrote it; 0 for none.
    pub xid: u32,
    /// Start of the record before.
    pub previous: Lsn,
    /// Flags; the high four bits belong to the resource manager.
    pub info: u8,
    /// Number of the resource manager.
    pub rmid: u8,
    /// CRC-32C of body and header.
    pub crc: u32,
}

/// A record taken apart into its block references and main data.
#[derive(Debug, Clone)]
pub struct DecodedRecord {
    /// Its header.
    pub header: RecordHeader,
    /// The pages it changes, in the order of their ids.
    pub blocks: Vec<BlockRef>,
    /// What the resource manager wrote beside the blocks.
    pub main_data: Bytes,
    /// Replication origin; 0 for none.
    pub origin: u16,
}

/// One page that a record changes.
#[derive(Debug, Clone)]
pub struct BlockRef {
    /// The number by which the resource manager knows it.
    pub id: u8,
    /// Relation fork of the page.
    pub rel: RelTag,
    /// The page.
    pub block: BlockNumber,
    /// Redo builds the page from nothing.
    pub will_init: bool,
    /// A full image of the page, if the record carries one.
    pub image: Option<BlockImage>,
    /// Length of the resource manager's data for this page.
    pub data_len: u16,
}

/// A record's inside can't be what PostgreSQL wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends too early.
    #[error("the record ends too early")]
    Truncated(#[from] TruncatedError),
    /// Block ids must rise.
    #[error("block id {found} after {previous}")]
    BlockOrder {
        /// The id.
        found: u8,
        /// The one before.
        previous: u8,
    },
    /// An id that means nothing.
    #[error("unknown block id {0}")]
    UnknownId(u8),
    /// A page that says "same relation as before" comes first.
    #[error("block {0} refers to a relation before it, and there is none")]
    NoPreviousRelation(u8),
    /// The fork number is unknown.
    #[error("block {id} names no fork")]
    Fork {
        /// Block id.
        id: u8,
        /// The number.
        #[source]
        source: InvalidForkError,
    },
    /// The image's lengths contradict each other or its flags.
    #[error("the image of block {0} has impossible lengths")]
    ImageShape(u8),
    /// Flags and lengths of block data contradict each other.
    #[error("block {0} has data without the flag, or the flag without data")]
    DataShape(u8),
    /// Bytes are left over, or lengths exceed the record.
    #[error("{0} bytes remain after the parts that the record lists")]
    Leftover(usize),
}

const MAX_BLOCK_ID: u8 = 32;
const ID_TOPLEVEL_XID: u8 = 252;
const ID_ORIGIN: u8 = 253;
const ID_DATA_LONG: u8 = 254;
const ID_DATA_SHORT: u8 = 255;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_REL: u8 = 0x80;

const IMAGE_HAS_HOLE: u8 = 0x01;
const IMAGE_APPLY: u8 = 0x02;
const IMAGE_PGLZ: u8 = 0x04;
const IMAGE_LZ4: u8 = 0x08;
const IMAGE_ZSTD: u8 = 0x10;

impl RawRecord {
    /// Takes the record apart, sharing its bytes.
    ///
    /// # Errors
    /// If its inside is not what PostgreSQL writes; a record that passed its CRC always is.
    pub fn decode(&self) -> Result<DecodedRecord, DecodeError> {
        Decoder {
            cursor: Cursor::new(self.bytes.clone()),
            blocks: Vec::new(),
            data_total: 0,
        }
        .decode()
    }

    /// Its header; `None` if it is shorter than one.
    pub fn header(&self) -> Option<RecordHeader> {
        RecordHeader::parse(&self.bytes)
    }
}

impl RecordHeader {
    /// Length in bytes.
    pub const LEN: usize = 24;
    /// Where the CRC stands; it covers the header only up to here.
    pub(crate) const CRC_OFFSET: usize = 20;

    /// Reads the header at the beginning of a record.
    pub fn parse(record: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = record.first_chunk()?;
        let [
            l0,
            l1,
            l2,
            l3,
            x0,
            x1,
            x2,
            x3,
            p0,
            p1,
            p2,
            p3,
            p4,
            p5,
            p6,
            p7,
            rest @ ..,
        ] = *bytes;
        let [info, rmid, _, _, c0, c1, c2, c3] = rest;
        Some(Self {
            total_len: u32::from_le_bytes([l0, l1, l2, l3]),
            xid: u32::from_le_bytes([x0, x1, x2, x3]),
            previous: Lsn::new(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            info,
            rmid,
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        })
    }

    /// The part of `info` that is the resource manager's.
    pub const fn rmgr_info(&self) -> u8 {
        self.info & 0xF0
    }
}

impl DecodedRecord {
    /// The block with this id.
    pub fn block(&self, id: u8) -> Option<&BlockRef> {
        self.blocks.iter().find(|block| block.id == id)
    }
}

struct Decoder {
    cursor: Cursor,
    blocks: Vec<BlockRef>,
    /// Bytes of images and data announced so far; they follow all the headers.
    data_total: usize,
}

impl Decoder {
    /// As `DecodeXLogRecord` does: headers until only announced data is left, then the data.
    fn decode(mut self) -> Result<DecodedRecord, DecodeError> {
        let start = self.cursor.bytes(RecordHeader::LEN, "record header")?;
        let header = RecordHeader::parse(&start).ok_or(DecodeError::Leftover(start.len()))?;
        let mut origin = 0;
        let mut main_len = 0;
        while self.cursor.remaining() > self.data_total {
            match self.cursor.u8("block id")? {
                ID_DATA_SHORT => {
                    main_len = usize::from(self.cursor.u8("main data length")?);
                    self.data_total += main_len;
                    break;
                }
                ID_DATA_LONG => {
                    main_len = self.cursor.u32("main data length")? as usize;
                    self.data_total += main_len;
                    break;
                }
                ID_ORIGIN => origin = self.cursor.u16("replication origin")?,
                ID_TOPLEVEL_XID => self.cursor.skip(4, "top-level xid")?,
                id if id <= MAX_BLOCK_ID => self.block_header(id)?,
                id => return Err(DecodeError::UnknownId(id)),
            }
        }
        if self.cursor.remaining() != self.data_total {
            return Err(DecodeError::Leftover(self.cursor.remaining()));
        }
        for block in &mut self.blocks {
            if let Some(image) = &mut block.image {
                image.bytes = self
                    .cursor
                    .bytes(usize::from(image.stored_len), "block image")?;
            }
            self.cursor
                .skip(usize::from(block.data_len), "block data")?;
        }
        let main_data = self.cursor.bytes(main_len, "main data")?;
        Ok(DecodedRecord {
            header,
            blocks: self.blocks,
            main_data,
            origin,
        })
    }

    fn block_header(&mut self, id: u8) -> Result<(), DecodeError> {
        if let Some(previous) = self.blocks.last().filter(|block| block.id >= id) {
            return Err(DecodeError::BlockOrder {
                found: id,
                previous: previous.id,
            });
        }
        let flags = self.cursor.u8("block flags")?;
        let fork = Fork::try_from(u32::from(flags & FORK_MASK))
            .map_err(|source| DecodeError::Fork { id, source })?;
        let data_len = self.cursor.u16("block data length")?;
        if (flags & HAS_DATA != 0) != (data_len > 0) {
            return Err(DecodeError::DataShape(id));
        }
        let image = match flags & HAS_IMAGE {
            0 => None,
            _ => Some(self.image_header(id)?),
        };
        self.data_total += usize::from(data_len);
        self.data_total += image
            .as_ref()
            .map_or(0, |image| usize::from(image.stored_len));
        let rel = match flags & SAME_REL {
            0 => RelTag {
                spc: self.oid()?,
                db: self.oid()?,
                rel: self.oid()?,
                fork,
            },
            _ => self
                .blocks
                .last()
                .ok_or(DecodeError::NoPreviousRelation(id))?
                .rel
                .with_fork(fork),
        };
        let block = BlockNumber::new(self.cursor.u32("block number")?);
        let will_init = flags & WILL_INIT != 0;
        self.blocks.push(BlockRef {
            id,
            rel,
            block,
            will_init,
            image,
            data_len,
        });
        Ok(())
    }

    fn oid(&mut self) -> Result<Oid, TruncatedError> {
        self.cursor.u32("relation")
    }

    /// `XLogRecordBlockImageHeader`, with the sanity checks of `DecodeXLogRecord`.
    fn image_header(&mut self, id: u8) -> Result<BlockImage, DecodeError> {
        let stored_len = self.cursor.u16("image length")?;
        let hole_offset = self.cursor.u16("hole offset")?;
        let info = self.cursor.u8("image flags")?;
        let has_hole = info & IMAGE_HAS_HOLE != 0;
        let compression = match info & (IMAGE_PGLZ | IMAGE_LZ4 | IMAGE_ZSTD) {
            0 => Compression::None,
            IMAGE_PGLZ => Compression::Pglz,
            IMAGE_LZ4 => Compression::Lz4,
            IMAGE_ZSTD => Compression::Zstd,
            _ => return Err(DecodeError::ImageShape(id)),
        };
        let page = PAGE_SIZE as u16;
        let hole_len = match (compression, has_hole) {
            (Compression::None, _) => page
                .checked_sub(stored_len)
                .ok_or(DecodeError::ImageShape(id))?,
            (_, true) => self.cursor.u16("hole length")?,
            (_, false) => 0,
        };
        let hole_fits = usize::from(hole_offset) + usize::from(hole_len) <= PAGE_SIZE;
        let consistent = match has_hole {
            true => hole_offset > 0 && hole_len > 0 && stored_len < page,
            false => hole_offset == 0 && hole_len == 0,
        };
        let compressed_is_smaller = compression == Compression::None || stored_len < page;
        if !(hole_fits && consistent && compressed_is_smaller) {
            return Err(DecodeError::ImageShape(id));
        }
        let apply = info & IMAGE_APPLY != 0;
        Ok(BlockImage {
            bytes: Bytes::new(),
            stored_len,
            hole_offset,
            hole_len,
            compression,
            apply,
        })
    }
}
