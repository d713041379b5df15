//! Reading delta layers from one end to the other, as who makes other layers of them does.
//!
//! Past the block cache: what a compaction has read nobody asks for again.

use std::{collections::BTreeSet, ops::Range};

use bytes::Bytes;
use palimpsest_layer::delta_file::{
    BlockNo, DeltaLayerIndex, EntryBlock, EntryBlockSpan, RecordBlock, RecordPlace, Stored,
};
use palimpsest_manifest::{LayerEntry, LsnSpan};
use palimpsest_types::{Key, Lsn};
use palimpsest_wal::RawRecord;

use crate::{delta::DeltaFile, error::ReadError, layers::LayerFiles};

/// A delta layer that is read in the order of its file.
#[derive(Debug)]
pub struct LayerScan {
    files: LayerFiles,
    file: DeltaFile,
    index: DeltaLayerIndex,
}

/// Versions of a layer, one after the other.
#[derive(Debug)]
pub struct EntryScan<'a> {
    blocks: BlockScan<'a>,
    keys: KeyBounds,
    lsns: LsnSpan,
    /// Those of the block that was read last.
    ready: std::vec::IntoIter<(Key, Lsn, Stored)>,
}

/// Shared records of a layer, in the order in which they start.
#[derive(Debug)]
pub struct RecordScan<'a> {
    blocks: BlockScan<'a>,
    places: std::iter::Peekable<std::collections::btree_set::IntoIter<RecordPlace>>,
    block: Option<(BlockNo, RecordBlock)>,
}

/// Keys after one and up to another; `None` is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyBounds {
    /// Exclusive.
    pub after: Option<Key>,
    /// Inclusive.
    pub up_to: Option<Key>,
}

/// Blocks of a layer in order, read as many at once as lie together.
#[derive(Debug)]
struct BlockScan<'a> {
    scan: &'a LayerScan,
    numbers: std::vec::IntoIter<BlockNo>,
    /// What was read last, and where it begins in the file.
    read: (u64, Bytes),
}

/// So much is read at once, unless one block is longer.
const READ_AT_ONCE: u64 = 1 << 20;

impl KeyBounds {
    /// Whether a key is within.
    pub fn contains(&self, key: Key) -> bool {
        self.after.is_none_or(|after| after < key) && self.up_to.is_none_or(|up_to| key <= up_to)
    }

    /// Whether a block may have keys within.
    fn overlaps(&self, block: &EntryBlockSpan) -> bool {
        let ends_behind = self.after.is_none_or(|after| after < block.last.0);
        ends_behind && self.up_to.is_none_or(|up_to| block.first.0 <= up_to)
    }
}

/// Whether a block may have versions at these LSNs. Of one with several keys that is not known.
fn may_be_of(lsns: LsnSpan, block: &EntryBlockSpan) -> bool {
    let ((first, oldest), (last, newest)) = (block.first, block.last);
    first != last || (lsns.after < newest && oldest <= lsns.up_to)
}

impl LayerScan {
    /// Opens a delta layer of these LSNs.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub async fn open(
        files: &LayerFiles,
        entry: &LayerEntry,
        lsns: LsnSpan,
    ) -> Result<Self, ReadError> {
        let file = DeltaFile::listed(files, entry, lsns);
        let index = file.read_index(files).await?;
        Ok(Self {
            files: files.clone(),
            file,
            index,
        })
    }

    /// What it has, and where.
    pub fn index(&self) -> &DeltaLayerIndex {
        &self.index
    }

    /// Its versions of some keys at some LSNs, rising by key, then LSN.
    pub fn entries(&self, keys: KeyBounds, lsns: LsnSpan) -> EntryScan<'_> {
        let blocks = self.index.entry_blocks();
        let wanted = blocks.filter(|block| keys.overlaps(block) && may_be_of(lsns, block));
        EntryScan {
            blocks: BlockScan::new(self, wanted.map(|block| block.no).collect()),
            keys,
            lsns,
            ready: Vec::new().into_iter(),
        }
    }

    /// Its records at these places.
    pub fn records(&self, places: BTreeSet<RecordPlace>) -> RecordScan<'_> {
        let mut numbers: Vec<_> = places.iter().map(|place| place.block).collect();
        numbers.dedup();
        RecordScan {
            blocks: BlockScan::new(self, numbers),
            places: places.into_iter().peekable(),
            block: None,
        }
    }
}

impl EntryScan<'_> {
    /// The next version.
    ///
    /// # Errors
    /// If the file can't be read or is damaged.
    pub async fn next(&mut self) -> Result<Option<(Key, Lsn, Stored)>, ReadError> {
        loop {
            let (keys, lsns) = (self.keys, self.lsns);
            let wanted = |(key, lsn, _): &(Key, Lsn, Stored)| {
                keys.contains(*key) && lsns.after < *lsn && *lsn <= lsns.up_to
            };
            if let Some(entry) = self.ready.find(wanted) {
                return Ok(Some(entry));
            }
            let Some((no, stored)) = self.blocks.next().await? else {
                return Ok(None);
            };
            let LayerScan { file, index, .. } = self.blocks.scan;
            let block = EntryBlock::decode(index, no, stored);
            let block = block.map_err(|source| file.damaged(source))?;
            self.ready = block.into_entries().collect::<Vec<_>>().into_iter();
        }
    }
}

impl RecordScan<'_> {
    /// The next record, and where it stands.
    ///
    /// # Errors
    /// If the file can't be read or is damaged.
    pub async fn next(&mut self) -> Result<Option<(RecordPlace, RawRecord)>, ReadError> {
        let Some(place) = self.places.next() else {
            return Ok(None);
        };
        let LayerScan { file, index, .. } = self.blocks.scan;
        if self.block.as_ref().is_none_or(|(no, _)| *no != place.block)
            && let Some((no, stored)) = self.blocks.next().await?
        {
            let block = RecordBlock::decode(index, no, stored);
            self.block = Some((no, block.map_err(|source| file.damaged(source))?));
        }
        match &self.block {
            Some((_, block)) => {
                let record = block.record(place);
                Ok(Some((
                    place,
                    record.map_err(|source| file.damaged(source))?,
                )))
            }
            None => Ok(None),
        }
    }
}

impl<'a> BlockScan<'a> {
    fn new(scan: &'a LayerScan, numbers: Vec<BlockNo>) -> Self {
        Self {
            scan,
            numbers: numbers.into_iter(),
            read: (0, Bytes::new()),
        }
    }

    /// The next block, as it is stored.
    async fn next(&mut self) -> Result<Option<(BlockNo, Bytes)>, ReadError> {
        let Some(no) = self.numbers.next() else {
            return Ok(None);
        };
        let LayerScan { files, file, index } = self.scan;
        let place = file.place_of(index, no)?;
        if slice(&self.read, &place).is_none() {
            let run = place.start..self.end_of_run(&place)?;
            self.read = (place.start, files.read(file.path(), run).await?);
        }
        let bytes = slice(&self.read, &place);
        let bytes = bytes.ok_or_else(|| file.not_as_listed("it is shorter than it should be"))?;
        Ok(Some((no, bytes)))
    }

    /// Up to where it is worth reading at once: as long as what follows is wanted, too.
    fn end_of_run(&self, first: &Range<u64>) -> Result<u64, ReadError> {
        let LayerScan { file, index, .. } = self.scan;
        let mut end = first.end;
        for no in self.numbers.as_slice() {
            let place = file.place_of(index, *no)?;
            if place.start != end || place.end - first.start > READ_AT_ONCE {
                break;
            }
            end = place.end;
        }
        Ok(end)
    }
}

/// A part of what was read, if that has it wholly.
fn slice((from, bytes): &(u64, Bytes), place: &Range<u64>) -> Option<Bytes> {
    let start = place.start.checked_sub(*from)? as usize;
    let end = place.end.checked_sub(*from)? as usize;
    (end <= bytes.len()).then(|| bytes.slice(start..end))
}
