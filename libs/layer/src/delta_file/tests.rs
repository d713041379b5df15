//! What all tests of delta layer files need: a writer into memory and a reader of it.

mod damage;
mod fixture;
mod hostile;
mod round_trip;
mod sample;
mod writing;

use bytes::Bytes;
use palimpsest_types::{Key, KeyRange, Lsn};
use palimpsest_wal::{RawRecord, Value};

use super::*;
use crate::OpenLayer;

/// A file in memory, read as from a store: footer, index, then ranges.
struct File {
    bytes: Bytes,
    index: DeltaLayerIndex,
}

fn written(layer: &OpenLayer) -> Bytes {
    let mut bytes = Vec::new();
    let summary = write_delta_layer(layer, &mut bytes).unwrap();
    assert_eq!(summary.size.get(), bytes.len() as u64);
    assert_eq!(summary.entries, layer.entries().count() as u64);
    bytes.into()
}

impl File {
    fn open(bytes: Bytes) -> Result<Self, DeltaLayerError> {
        check_header(&bytes)?;
        let tail = bytes.slice(bytes.len().saturating_sub(Footer::LEN)..);
        let footer = Footer::decode(&tail, bytes.len() as u64)?;
        let start = footer.index_offset as usize;
        let end = start + footer.index_len as usize;
        let index = DeltaLayerIndex::decode(&footer, &bytes.slice(start..end))?;
        Ok(Self { bytes, index })
    }

    fn stored(&self, no: BlockNo) -> Result<Bytes, DeltaLayerError> {
        let place = self.index.place(no)?;
        let start = place.offset as usize;
        Ok(self.bytes.slice(start..start + place.stored_len as usize))
    }

    fn entry_block(&self, no: BlockNo) -> Result<EntryBlock, DeltaLayerError> {
        EntryBlock::decode(&self.index, no, self.stored(no)?)
    }

    fn record(&self, at: RecordPlace) -> Result<RawRecord, DeltaLayerError> {
        RecordBlock::decode(&self.index, at.block, self.stored(at.block)?)?.record(at)
    }

    fn value(&self, stored: Stored) -> Result<Value, DeltaLayerError> {
        match stored {
            Stored::Value(value) => Ok(value),
            Stored::Shared { at, will_init } => {
                let record = self.record(at)?;
                Ok(Value::Record { will_init, record })
            }
        }
    }

    fn versions(&self, key: Key, up_to: Lsn) -> Result<Vec<(Lsn, Value)>, DeltaLayerError> {
        let mut found = Vec::new();
        for no in self.index.blocks_of(key, up_to) {
            for (lsn, stored) in self.entry_block(no)?.versions(key, up_to) {
                found.push((lsn, self.value(stored)?));
            }
        }
        Ok(found)
    }

    fn range(&self, keys: KeyRange) -> Result<Vec<(Key, Lsn, Value)>, DeltaLayerError> {
        let mut found = Vec::new();
        for no in self.index.blocks_in(keys.clone()) {
            for (key, lsn, stored) in self.entry_block(no)?.range(keys.clone()) {
                found.push((key, lsn, self.value(stored)?));
            }
        }
        Ok(found)
    }

    /// All entries but those of the largest key, which no half-open range includes.
    fn everything(&self) -> Result<Vec<(Key, Lsn, Value)>, DeltaLayerError> {
        self.range(sample::SMALLEST_KEY..sample::LARGEST_KEY)
    }
}
