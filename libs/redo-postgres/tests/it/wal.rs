//! A small reader of WAL files that are known to be sound, independent of production code.

use std::path::PathBuf;

use bytes::Bytes;
use palimpsest_redo_postgres::RedoRecord;
use palimpsest_types::{BlockNumber, Fork, Lsn, RelTag};

const PAGE: u64 = 8192;
const SEGMENT: u64 = 16 << 20;

/// A record and what it says about pages.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) redo: RedoRecord,
    pub(crate) blocks: Vec<BlockRef>,
}

#[derive(Clone, Copy)]
pub(crate) struct BlockRef {
    pub(crate) rel: RelTag,
    pub(crate) block: BlockNumber,
    /// Redo needs no older version of the page.
    pub(crate) starts_chain: bool,
}

impl Record {
    pub(crate) fn rmid(&self) -> u8 {
        self.redo.bytes[17]
    }
}

/// Records that begin in `start..end`; `start` is where one may begin.
pub(crate) fn read(pg_wal: PathBuf, start: Lsn, end: Lsn) -> Vec<Record> {
    let mut reader = Reader {
        pg_wal,
        segment: None,
        position: start.get(),
    };
    let mut records: Vec<Record> = Vec::new();
    while reader.position < end.get() {
        reader.skip_page_header();
        let start = reader.position;
        let len = u32::from_le_bytes(reader.take(4).try_into().unwrap());
        reader.position = start;
        let bytes = Bytes::from(reader.take(len as usize));
        reader.position = reader.position.next_multiple_of(8);

        let previous = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        if let Some(last) = records.last() {
            assert_eq!(previous, last.redo.start_lsn.get(), "a record was missed");
        }
        let redo = RedoRecord {
            start_lsn: Lsn::new(start),
            end_lsn: Lsn::new(reader.position),
            bytes,
        };
        records.push(Record {
            blocks: block_refs(&redo.bytes),
            redo,
        });
    }
    records
}

struct Reader {
    pg_wal: PathBuf,
    segment: Option<(u64, Vec<u8>)>,
    position: u64,
}

impl Reader {
    fn skip_page_header(&mut self) {
        if self.position.is_multiple_of(SEGMENT) {
            self.position += 40;
        } else if self.position.is_multiple_of(PAGE) {
            self.position += 24;
        }
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            self.skip_page_header();
            let in_page = (PAGE - self.position % PAGE) as usize;
            let count = in_page.min(len - bytes.len());
            let offset = (self.position % SEGMENT) as usize;
            let segment = self.segment(self.position / SEGMENT);
            bytes.extend_from_slice(&segment[offset..offset + count]);
            self.position += count as u64;
        }
        bytes
    }

    fn segment(&mut self, number: u64) -> &[u8] {
        if self
            .segment
            .as_ref()
            .is_none_or(|(loaded, _)| *loaded != number)
        {
            let name = format!("00000001{:08X}{:08X}", number / 256, number % 256);
            self.segment = Some((number, std::fs::read(self.pg_wal.join(name)).unwrap()));
        }
        &self.segment.as_ref().unwrap().1
    }
}

/// The block references in the headers that follow the 24 fixed bytes of a record.
fn block_refs(record: &[u8]) -> Vec<BlockRef> {
    let u16_at =
        |at: usize| usize::from(u16::from_le_bytes(record[at..at + 2].try_into().unwrap()));
    let u32_at = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap());
    let mut blocks: Vec<BlockRef> = Vec::new();
    let mut at = 24;
    let mut data = 0;
    while at + data < record.len() {
        let id = record[at];
        match id {
            0..=32 => {
                let fork_flags = record[at + 1];
                data += u16_at(at + 2);
                at += 4;
                let mut applied_image = false;
                if fork_flags & 0x10 != 0 {
                    let info = record[at + 4];
                    data += u16_at(at);
                    applied_image = info & 0x02 != 0;
                    let compressed_with_hole = info & 0x01 != 0 && info & 0x1C != 0;
                    at += if compressed_with_hole { 7 } else { 5 };
                }
                let fork = Fork::try_from(u32::from(fork_flags & 0x0F)).unwrap();
                let rel = if fork_flags & 0x80 != 0 {
                    blocks.last().unwrap().rel.with_fork(fork)
                } else {
                    at += 12;
                    RelTag {
                        spc: u32_at(at - 12),
                        db: u32_at(at - 8),
                        rel: u32_at(at - 4),
                        fork,
                    }
                };
                let block = BlockNumber::new(u32_at(at));
                at += 4;
                let starts_chain = applied_image || fork_flags & 0x40 != 0;
                blocks.push(BlockRef {
                    rel,
                    block,
                    starts_chain,
                });
            }
            255 => return blocks,
            254 => return blocks,
            253 => at += 3,
            252 => at += 5,
            _ => panic!("block reference {id}"),
        }
    }
    blocks
}
