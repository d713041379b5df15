//! From WAL bytes to changes in the tail: the part of ingest that needs the CPU.

use std::{sync::Arc, time::Instant};

use bytes::{Buf as _, Bytes};
use palimpsest_api::broker::LogicalSize;
use palimpsest_layer::LogRecord;
use palimpsest_types::{ByteCount, Lsn};
use palimpsest_wal::{Interpreter, LogIdentity, RecordReader, SegmentSize};

use super::{budget::NoRoom, error::IngestError, growth::Growth, logical_size::Adding};

/// Decodes one timeline's WAL in order.
#[derive(Debug)]
pub(super) struct Decoder {
    reader: RecordReader,
    interpreter: Interpreter,
    growth: Arc<Growth>,
    last_record: Lsn,
    records: u64,
    adding: Adding,
}

/// Records that are made readable together.
const BATCH: usize = 1000;

impl Decoder {
    /// A decoder of the WAL after `start`, up to which the interpreter knows everything.
    pub(super) fn new(
        start: Lsn,
        segment_size: SegmentSize,
        interpreter: Interpreter,
        growth: Arc<Growth>,
    ) -> Self {
        let reader = RecordReader::new(start, segment_size);
        Self {
            reader,
            interpreter,
            growth,
            last_record: start,
            records: 0,
            adding: Adding::default(),
        }
    }

    /// The same, which refuses WAL of another cluster, or of a PostgreSQL timeline that is not
    /// followed.
    pub(super) fn of(self, identity: LogIdentity) -> Self {
        let reader = self.reader.of(identity);
        Self { reader, ..self }
    }

    /// How many records it has decoded.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Whether the sizes of the databases are to be added up again.
    pub(super) fn is_size_due(&self) -> bool {
        self.adding.is_due(self.last_record, Instant::now())
    }

    /// The sizes of the databases after the newest record, if they are due. Blocking.
    pub(super) fn due_size(&mut self) -> Option<LogicalSize> {
        let now = Instant::now();
        let due = self.adding.is_due(self.last_record, now);
        due.then(|| {
            let sizes = self.interpreter.sizes();
            self.adding.add_up(self.last_record, now, sizes)
        })
    }

    /// End of the newest whole record.
    pub(super) fn last_record(&self) -> Lsn {
        self.last_record
    }

    /// Expects the bytes after the newest whole record next, whatever came after it before.
    pub(super) fn resync(&mut self) {
        self.reader.begin_again(self.last_record);
    }

    /// Whether there is room for more changes and the WAL they come from.
    pub(super) fn room(&self) -> Result<(), NoRoom> {
        self.growth.share().room()
    }

    /// Whether there is room for more changes, of WAL that is here already.
    pub(super) fn room_to_replay(&self) -> Result<(), NoRoom> {
        self.growth.share().room_to_replay()
    }

    /// The WAL files take so much of the local disk now.
    pub(super) fn note_wal(&self, size: ByteCount) {
        self.growth.share().set_wal(size);
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
        let decoded = self.decode_records(&mut records);
        // After an error, too: what `last_record` says is decoded must be in the tail.
        self.growth.extend(records, self.last_record)?;
        decoded
    }

    fn decode_records(&mut self, records: &mut Vec<LogRecord>) -> Result<(), IngestError> {
        while let Some(record) = self.reader.next_record()? {
            let changes = self.interpreter.interpret(&record)?;
            self.last_record = record.end_lsn;
            self.records += 1;
            if !changes.is_empty() {
                records.push(LogRecord {
                    lsn: record.end_lsn,
                    changes,
                });
            }
            if records.len() >= BATCH {
                let records = std::mem::take(records);
                self.growth.extend(records, self.last_record)?;
            }
        }
        Ok(())
    }

    /// Hands the changes in memory to the flush, to make room.
    pub(super) fn freeze(&self) {
        self.growth.freeze();
    }
}
