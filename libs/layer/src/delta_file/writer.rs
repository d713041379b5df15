//! Writing a delta layer: its versions in order, each with its record or a reference to it.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    io::{self, Write},
    ops::Range,
};

use palimpsest_types::{ByteCount, Key, Lsn, WriterEpoch};
use palimpsest_wal::{RawRecord, Value};

use super::{
    entry::{RecordPlace, ToStore, encode_record, record_len},
    file_writer::{FileWriter, OpenBlock},
    frame::MAX_RAW,
    index::{Span, Version, is_inside},
    shared::shared_records,
};
use crate::{DeltaLayer, OpenLayer, image::KeyRangeInclusive};

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaLayerSummary {
    /// Length of the file.
    pub size: ByteCount,
    /// The first and the last of its keys; `None` if it has no changes.
    pub keys: Option<KeyRangeInclusive>,
    /// How many versions it has.
    pub entries: u64,
}

/// A delta layer could not be written; what was written of it is no layer.
#[derive(Debug, thiserror::Error)]
pub enum WriteDeltaLayerError {
    /// Where it was to go took no more.
    #[error("the delta layer could not be written out")]
    Write(#[from] io::Error),
    /// Versions must come by key, then LSN, each once.
    #[error("the version of {key} at {lsn} came out of order, or twice")]
    Order {
        /// Its key.
        key: Key,
        /// Its LSN.
        lsn: Lsn,
    },
    /// Records must come in the order in which they start, each once.
    #[error("the record at {start} came out of order, or twice")]
    RecordOrder {
        /// Where it starts.
        start: Lsn,
    },
    /// The change does not belong into the layer.
    #[error("the version of {key} at {lsn} is outside of the layer, after {} up to {}", .lsns.start, .lsns.end)]
    Outside {
        /// Its key.
        key: Key,
        /// Its LSN.
        lsn: Lsn,
        /// Those of the layer; the start is exclusive, the end inclusive.
        lsns: Range<Lsn>,
    },
    /// No block is as large as the version or record.
    #[error("{0} bytes are too many for a block of a delta layer, which takes {MAX_RAW}")]
    TooLong(usize),
    /// Blocks are counted in 32 bits.
    #[error("a delta layer takes no more than 2^32 blocks; write smaller ones")]
    TooManyBlocks,
}

impl From<WriteDeltaLayerError> for io::Error {
    /// For callers that do other things to the file, too. What was wrong stays inside.
    fn from(error: WriteDeltaLayerError) -> Self {
        match error {
            WriteDeltaLayerError::Write(cause) => cause,
            other => Self::new(io::ErrorKind::InvalidInput, other),
        }
    }
}

/// Writes a frozen open layer.
///
/// Compresses and writes on the spot, so it belongs on a thread that may block. To make it durable
/// is the caller's.
///
/// # Errors
/// If `to` fails, or the layer has a key twice at one LSN.
pub fn write_delta_layer(
    layer: &OpenLayer,
    to: impl Write,
) -> Result<DeltaLayerSummary, WriteDeltaLayerError> {
    write_delta_entries(layer.epoch(), layer.lsns(), layer.entries(), to)
}

/// Writes a layer of these entries, which come by key, then LSN.
///
/// The entries are gone through twice, first to see which records are shared. Memory is a block, the
/// index, the shared records (handles, if the entries are in memory anyway) and 8 bytes of each
/// other record.
///
/// # Errors
/// If `to` fails, or the entries are not in order or not within `lsns`.
pub fn write_delta_entries<V: Borrow<Value>>(
    epoch: WriterEpoch,
    lsns: Range<Lsn>,
    entries: impl Iterator<Item = (Key, Lsn, V)> + Clone,
    to: impl Write,
) -> Result<DeltaLayerSummary, WriteDeltaLayerError> {
    let shared = shared_records(entries.clone().map(|(_, _, value)| value));
    let mut records = RecordSection::begin(epoch, lsns, to)?;
    let mut placed = Placed::new();
    for (start, record) in shared {
        let at = records.add(&record)?;
        placed.insert(start, (record, at));
    }
    let mut section = records.end()?;
    for (key, lsn, value) in entries {
        section.put((key, lsn), to_store(value.borrow(), &placed))?;
    }
    section.finish()
}

/// Shared records by where they start, with where they were written.
type Placed = BTreeMap<Lsn, (RawRecord, RecordPlace)>;

/// An entry refers to a record that has a place, if it is that one, and has any other itself.
fn to_store<'a>(value: &'a Value, shared: &Placed) -> ToStore<'a> {
    if let Value::Record { will_init, record } = value
        && let Some((written, at)) = shared.get(&record.start_lsn)
        && written == record
    {
        return ToStore::Shared {
            at: *at,
            will_init: *will_init,
        };
    }
    ToStore::Value(value)
}

/// The first part of a delta layer that is written bit by bit: records that several of its versions
/// refer to. Memory is a block and the index.
#[derive(Debug)]
pub struct RecordSection<W> {
    file: FileWriter<W>,
    epoch: WriterEpoch,
    lsns: Range<Lsn>,
    block: OpenBlock,
    /// Where the last one starts.
    last: Option<Lsn>,
}

/// The second part: its versions, of which the last block is still open.
#[derive(Debug)]
pub struct EntrySection<W> {
    file: FileWriter<W>,
    epoch: WriterEpoch,
    lsns: Range<Lsn>,
    block: OpenBlock,
    /// Of the open block.
    span: Option<Span>,
    /// Of all.
    keys: Option<KeyRangeInclusive>,
    entries: u64,
}

impl<W: Write> RecordSection<W> {
    /// Begins a layer of changes at these LSNs, the start excluded and the end included.
    ///
    /// # Errors
    /// If `to` fails.
    pub fn begin(
        epoch: WriterEpoch,
        lsns: Range<Lsn>,
        to: W,
    ) -> Result<Self, WriteDeltaLayerError> {
        Ok(Self {
            file: FileWriter::begin(to)?,
            epoch,
            lsns,
            block: OpenBlock::default(),
            last: None,
        })
    }

    /// Adds a record, and tells where it is now. They come in the order in which they start.
    ///
    /// # Errors
    /// If the file can't be written, or the record is out of order.
    pub fn add(&mut self, record: &RawRecord) -> Result<RecordPlace, WriteDeltaLayerError> {
        let start = record.start_lsn;
        if self.last.is_some_and(|last| last >= start) {
            return Err(WriteDeltaLayerError::RecordOrder { start });
        }
        self.last = Some(start);
        let len = record_len(record);
        if !self.block.has_room(len)? {
            self.file.write_record_block(&mut self.block)?;
        }
        let at = self.file.next_record(&self.block);
        encode_record(record, self.block.extend(len));
        Ok(at)
    }

    /// Bytes of the file so far, without the block that is open.
    pub fn written(&self) -> ByteCount {
        self.file.len()
    }

    /// Goes on to the versions.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn end(mut self) -> Result<EntrySection<W>, WriteDeltaLayerError> {
        if !self.block.is_empty() {
            self.file.write_record_block(&mut self.block)?;
        }
        Ok(EntrySection {
            file: self.file,
            epoch: self.epoch,
            lsns: self.lsns,
            block: self.block,
            span: None,
            keys: None,
            entries: 0,
        })
    }
}

impl<W: Write> EntrySection<W> {
    /// Adds a version, which holds its record itself if it is one. They come by key, then LSN.
    ///
    /// # Errors
    /// If the file can't be written, or the version is out of order or outside of the layer.
    pub fn add(&mut self, key: Key, lsn: Lsn, value: &Value) -> Result<(), WriteDeltaLayerError> {
        self.put((key, lsn), ToStore::Value(value))
    }

    /// Adds a version that is a record which was added to this layer before.
    ///
    /// # Errors
    /// As [`EntrySection::add`].
    pub fn refer(
        &mut self,
        key: Key,
        lsn: Lsn,
        at: RecordPlace,
        will_init: bool,
    ) -> Result<(), WriteDeltaLayerError> {
        self.put((key, lsn), ToStore::Shared { at, will_init })
    }

    /// Ends the file. To make it durable is the caller's.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn finish(mut self) -> Result<DeltaLayerSummary, WriteDeltaLayerError> {
        self.close_block()?;
        let (keys, entries) = (self.keys, self.entries);
        let size = self.file.finish(self.epoch, self.lsns, entries)?;
        Ok(DeltaLayerSummary {
            size,
            keys,
            entries,
        })
    }

    /// Bytes of the file so far, without the block that is open.
    pub fn written(&self) -> ByteCount {
        self.file.len()
    }

    fn put(&mut self, version: Version, entry: ToStore<'_>) -> Result<(), WriteDeltaLayerError> {
        self.check(version)?;
        let len = entry.entry_len();
        if !self.block.has_room(len)? {
            self.close_block()?;
        }
        entry.encode(version, self.block.extend(len));
        let first = self.span.map_or(version, |span| span.first);
        self.span = Some(Span {
            first,
            last: version,
        });
        let first = self.keys.map_or(version.0, |keys| keys.first);
        let last = version.0;
        self.keys = Some(KeyRangeInclusive { first, last });
        self.entries += 1;
        Ok(())
    }

    fn check(&self, version: Version) -> Result<(), WriteDeltaLayerError> {
        let (key, lsn) = version;
        if !is_inside(&self.lsns, lsn) {
            let lsns = self.lsns.clone();
            return Err(WriteDeltaLayerError::Outside { key, lsn, lsns });
        }
        // A block is closed only to begin the next, so that the last version is always here.
        match self.span {
            Some(span) if span.last >= version => Err(WriteDeltaLayerError::Order { key, lsn }),
            _ => Ok(()),
        }
    }

    fn close_block(&mut self) -> Result<(), WriteDeltaLayerError> {
        match self.span.take() {
            Some(span) => self.file.write_entry_block(&mut self.block, span),
            None => Ok(()),
        }
    }
}
