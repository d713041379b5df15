//! Entry blocks: versions of neighbouring keys.

use bytes::Bytes;
use palimpsest_codec::Cursor;
use palimpsest_types::{ByteCount, Key, KeyRange, Lsn};
use palimpsest_wal::{Value, Xid};

use super::{
    entry::{HEAD_LEN, RecordPlace, Stored, decode_entry},
    error::{DeltaLayerError, ensure},
    index::{BlockNo, DeltaLayerIndex, Span, Version, is_inside},
};

/// An entry block, unpacked and checked: entries one after the other, rising by key, then LSN.
///
/// Everything is parsed when the block is read, so that searching it can't fail.
#[derive(Debug)]
pub struct EntryBlock {
    entries: Vec<Entry>,
    size: ByteCount,
}

#[derive(Debug)]
struct Entry {
    version: Version,
    stored: Stored,
}

const WHAT: &str = "entry block";

impl EntryBlock {
    /// Reads the block that `index` says is number `no`; `stored` are its bytes in the file. If the
    /// block is not compressed, it keeps their buffer, so that should not hold much else.
    ///
    /// # Errors
    /// If it is damaged, or is not the block that the index tells of.
    pub fn decode(
        index: &DeltaLayerIndex,
        no: BlockNo,
        stored: Bytes,
    ) -> Result<Self, DeltaLayerError> {
        let (frame, span) = index.entry_block(no)?;
        let raw = frame.open(WHAT, stored)?;
        let raw_len = raw.len();
        let entries = decode_entries(index, raw, frame.capacity(HEAD_LEN))?;
        ensure(
            entries.len() == frame.items as usize && is_span_of(span, &entries),
            WHAT,
            "its entries are not those that the index tells of",
        )?;
        let xids: usize = entries.iter().map(xids_size).sum();
        let size = raw_len + xids + entries.capacity() * size_of::<Entry>();
        Ok(Self {
            entries,
            size: ByteCount::new(size as u64),
        })
    }

    /// Versions of a key at or before `up_to`, newest first.
    pub fn versions(&self, key: Key, up_to: Lsn) -> impl Iterator<Item = (Lsn, Stored)> + '_ {
        let from = self.position(|(found, _)| found < key);
        let to = self.position(|version| version <= (key, up_to));
        let found = self.entries.get(from..to).unwrap_or_default();
        let newest_first = found.iter().rev();
        newest_first.map(|entry| (entry.version.1, entry.stored.clone()))
    }

    /// Versions of the keys of a range, rising by key, then LSN.
    pub fn range(&self, keys: KeyRange) -> impl Iterator<Item = (Key, Lsn, Stored)> + '_ {
        let from = self.position(|(found, _)| found < keys.start);
        let to = self.position(|(found, _)| found < keys.end);
        let found = self.entries.get(from..to).unwrap_or_default();
        found.iter().map(|entry| {
            let (key, lsn) = entry.version;
            (key, lsn, entry.stored.clone())
        })
    }

    /// All of it, rising by key, then LSN.
    pub fn into_entries(self) -> impl Iterator<Item = (Key, Lsn, Stored)> {
        let entries = self.entries.into_iter();
        entries.map(|entry| (entry.version.0, entry.version.1, entry.stored))
    }

    /// Memory it takes, about.
    pub fn size(&self) -> ByteCount {
        self.size
    }

    /// The first entry whose version is not before what is looked for.
    fn position(&self, is_before: impl Fn(Version) -> bool) -> usize {
        self.entries
            .partition_point(|entry| is_before(entry.version))
    }
}

fn decode_entries(
    index: &DeltaLayerIndex,
    raw: Bytes,
    capacity: usize,
) -> Result<Vec<Entry>, DeltaLayerError> {
    let mut entries: Vec<Entry> = Vec::with_capacity(capacity);
    let mut cursor = Cursor::new(raw);
    while cursor.remaining() > 0 {
        let (version, stored) = decode_entry(&mut cursor)?;
        let rises = entries.last().is_none_or(|last| last.version < version);
        ensure(
            rises,
            WHAT,
            "its entries are not in the order of keys and LSNs",
        )?;
        let inside = is_inside(&index.lsns(), version.1);
        ensure(inside, WHAT, "an entry is outside of the layer's LSNs")?;
        if let Stored::Shared { at, .. } = stored {
            check_place(index, at)?;
        }
        entries.push(Entry { version, stored });
    }
    Ok(entries)
}

/// Whether a record stands there is known only when that block is read; here, that it may.
fn check_place(index: &DeltaLayerIndex, at: RecordPlace) -> Result<(), DeltaLayerError> {
    let frame = index.record_block(at.block)?;
    ensure(
        at.offset < frame.raw_len,
        WHAT,
        "an entry refers to a record behind the end of its block",
    )
}

fn is_span_of(span: Span, entries: &[Entry]) -> bool {
    let version = |entry: &Entry| entry.version;
    entries.first().map(version) == Some(span.first)
        && entries.last().map(version) == Some(span.last)
}

/// Transactions are not slices of the block but memory of their own.
fn xids_size(entry: &Entry) -> usize {
    match &entry.stored {
        Stored::Value(Value::TransactionsEnded { xids, .. }) => size_of_val::<[Xid]>(xids),
        Stored::Value(_) | Stored::Shared { .. } => 0,
    }
}
