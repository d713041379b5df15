//! From WAL bytes to changes in the tail: the part of ingest that needs the CPU.

use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use palimpsest_layer::LogRecord;
use palimpsest_read::{Tail, TailError};
use palimpsest_types::{ByteCount, Lsn};
use palimpsest_wal::{Interpreter, RecordReader, RelationSizes, SegmentSize};

use super::error::IngestError;

/// Decodes one timeline's WAL in order.
#[derive(Debug)]
pub(super) struct Decoder {
    segment_size: SegmentSize,
    reader: RecordReader,
    interpreter: Interpreter,
    tail: Arc<Tail>,
    limit: ByteCount,
    last_record: Lsn,
}

/// Records that are made readable together.
const BATCH: usize = 1000;

impl Decoder {
    /// A decoder of the WAL after `start`, at which the relations had these sizes.
    pub(super) fn new(
        start: Lsn,
        segment_size: SegmentSize,
        sizes: RelationSizes,
        tail: Arc<Tail>,
        limit: ByteCount,
    ) -> Self {
        let reader = RecordReader::new(start, segment_size);
        let interpreter = Interpreter::new(sizes);
        Self {
            segment_size,
            reader,
            interpreter,
            tail,
            limit,
            last_record: start,
        }
    }

    /// End of the newest whole record.
    pub(super) fn last_record(&self) -> Lsn {
        self.last_record
    }

    /// Expects the bytes after the newest whole record next, whatever came after it before.
    pub(super) fn resync(&mut self) {
        self.reader = RecordReader::new(self.last_record, self.segment_size);
    }

    /// False when the tail has no room for more changes.
    pub(super) fn has_room(&self) -> bool {
        self.tail.read().size() < self.limit
    }

    /// Decodes bytes that begin at `at` and makes their changes readable. Blocking.
    ///
    /// Bytes before the ones expected are passed over: the files begin with a whole segment, the
    /// timeline within it.
    pub(super) fn decode(&mut self, at: Lsn, mut bytes: Bytes) -> Result<(), IngestError> {
        let expected = self.reader.expects();
        let early = usize::try_from(expected.saturating_sub(at)).unwrap_or(usize::MAX);
        let early = early.min(bytes.len());
        if early > 0 {
            bytes.advance(early);
            if bytes.is_empty() {
                return Ok(());
            }
        }
        self.reader.push(Lsn::new(at.get() + early as u64), bytes)?;
        let mut records = Vec::new();
        while let Some(record) = self.reader.next_record()? {
            let changes = self.interpreter.interpret(&record)?;
            self.last_record = record.end_lsn;
            if !changes.is_empty() {
                records.push(LogRecord {
                    lsn: record.end_lsn,
                    changes,
                });
            }
            if records.len() >= BATCH {
                self.publish(std::mem::take(&mut records))?;
            }
        }
        self.publish(records)
    }

    /// The bound is checked between portions of WAL, not within: a portion that was decoded is
    /// never half taken.
    fn publish(&self, records: Vec<LogRecord>) -> Result<(), IngestError> {
        let unbounded = ByteCount::new(u64::MAX);
        Ok(self.tail.extend(records, self.last_record, unbounded)?)
    }

    /// The error that says there is no room.
    pub(super) fn full(&self) -> IngestError {
        TailError::Full {
            size: self.tail.read().size(),
            limit: self.limit,
        }
        .into()
    }
}
