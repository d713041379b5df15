//! WAL from its pages to what its records change.

use bytes::{Buf as _, Bytes};
use palimpsest_redo::slru_page;
use palimpsest_types::{Key, Lsn, PAGE_SIZE};
use palimpsest_wal::{
    BaseFacts, ControlData, DecodedRecord, Interpreter, NextMultiXact, PagePatches, RawRecord,
    RecordReader, RelationSizes, SegmentSize, TransactionEnd, Value, WAL_PAGE_SIZE, restore_image,
    transaction_end,
};

/// Length of a record's header.
const HEADER: usize = 24;
/// Bytes given to the reader at once, so that its input comes in several pieces.
const PIECE: usize = 1000;

/// A stream of WAL pages, of a cluster with small segments. It begins where its first page says.
pub fn wal_pages(data: &[u8]) {
    let segment_size = SegmentSize::new(1 << 20).expect("a megabyte is a segment size");
    let address = data.get(8..16).and_then(|bytes| bytes.first_chunk());
    let start = Lsn::new(address.map_or(0, |bytes| u64::from_le_bytes(*bytes)));
    let start = start.floor_to(WAL_PAGE_SIZE);
    let mut reader = RecordReader::new(start, segment_size);
    let mut interpreter = interpreter();
    let mut pushed = 0;
    let mut end = start;
    for piece in data.chunks(PIECE) {
        // At the very end of the number space nothing can follow.
        if start.checked_add((pushed + piece.len()) as u64).is_none() {
            return;
        }
        let at = reader.expects();
        let taken = reader.push(at, Bytes::copy_from_slice(piece));
        taken.expect("it goes on where the reader wants it");
        pushed += piece.len();
        while let Ok(Some(record)) = reader.next_record() {
            assert!(record.start_lsn >= end && record.end_lsn > record.start_lsn);
            end = record.end_lsn;
            record_changes(&mut interpreter, &record);
        }
    }
}

/// Records one after the other, each as long as its first four bytes say. No checksums.
pub fn wal_records(data: &[u8]) {
    let mut rest = Bytes::copy_from_slice(data);
    let mut interpreter = interpreter();
    let mut at = Lsn::new(1 << 24);
    while let Some(length) = rest.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)) {
        let length = (length as usize).clamp(HEADER.min(rest.len()), rest.len());
        let bytes = rest.split_to(length);
        let end = Lsn::new(at.get() + length as u64).align_up();
        let record = RawRecord {
            start_lsn: at,
            end_lsn: end,
            bytes,
        };
        record_changes(&mut interpreter, &record);
        at = end;
    }
}

/// A page image in a record: flags u8, offset and length of its hole u16, and its bytes.
pub fn page_images(data: &[u8]) {
    /// Block 0 with an image, no data.
    const BLOCK: [u8; 4] = [0, 0x10, 0, 0];
    const HAS_HOLE: u8 = 1;
    const COMPRESSED: u8 = 0x1C;
    let Some((head, stored)) = data.split_first_chunk::<5>() else {
        return;
    };
    let [flags, offset_low, offset_high, hole @ ..] = *head;
    let stored = stored.get(..usize::from(u16::MAX)).unwrap_or(stored);
    let mut record = vec![0; HEADER];
    record.extend(BLOCK);
    record.extend((stored.len() as u16).to_le_bytes());
    record.extend([offset_low, offset_high, flags]);
    if flags & HAS_HOLE != 0 && flags & COMPRESSED != 0 {
        record.extend(hole);
    }
    // Tablespace, database, relation, block.
    record.extend([0; 16]);
    record.extend(stored);
    let raw = RawRecord {
        start_lsn: Lsn::ZERO,
        end_lsn: Lsn::new(8),
        bytes: record.into(),
    };
    if let Ok(record) = raw.decode() {
        restore_images(&raw, &record);
    }
}

/// Changes of a page outside relations, each a kind u8, a length u8 and so many bytes.
pub fn slru_pages(data: &[u8]) {
    let mut rest = Bytes::copy_from_slice(data);
    let mut changes = vec![Value::ZeroPage];
    while rest.len() > 1 {
        let (kind, length) = (rest.get_u8(), usize::from(rest.get_u8()));
        let bytes = rest.split_to(length.min(rest.len()));
        let xids = bytes.chunks_exact(4);
        let xids = xids.map(|xid| u32::from_le_bytes([xid[0], xid[1], xid[2], xid[3]]));
        let ended = |end| Value::TransactionsEnded {
            end,
            xids: xids.collect(),
        };
        changes.push(match kind % 6 {
            0 => ended(TransactionEnd::Committed),
            1 => ended(TransactionEnd::Aborted),
            2 => Value::ZeroPage,
            3 => Value::Image(bytes),
            4 => Value::Dropped,
            _ => match PagePatches::decode(bytes) {
                Ok(patches) => Value::Patched(patches),
                Err(_) => continue,
            },
        });
    }
    let wellformed =
        |change: &Value| !matches!(change, Value::Image(page) if page.len() != PAGE_SIZE);
    if let Ok(page) = slru_page(None, &changes) {
        let _ = transaction_end(&page, u32::MAX);
        let is_page = page.len() == PAGE_SIZE;
        assert!(is_page || !changes.iter().all(wellformed));
    }
}

/// After a base of which all numbers are known.
fn interpreter() -> Interpreter {
    let mut interpreter = Interpreter::new(RelationSizes::default(), BaseFacts::consistent());
    let numbers = [
        (Key::ControlData, ControlData::LEN),
        (Key::NextMultiXact, NextMultiXact::LEN),
    ];
    for (key, len) in numbers {
        let zeros = Value::File(vec![0; len].into());
        interpreter
            .note(key, &zeros)
            .expect("it has the length that it says");
    }
    interpreter
}

/// What a record changes may be an error, but where it is not, every value must be one of its key.
fn record_changes(interpreter: &mut Interpreter, raw: &RawRecord) {
    if let Ok(record) = raw.decode() {
        restore_images(raw, &record);
    }
    let Ok(changes) = interpreter.interpret(raw) else {
        return;
    };
    for change in &changes {
        let is_page = matches!(change.key, Key::RelBlock(..) | Key::SlruBlock(..));
        match &change.value {
            Value::Image(page) => assert!(is_page && page.len() == PAGE_SIZE),
            Value::ZeroPage => assert!(is_page),
            _ => {}
        }
        assert_eq!(Key::from_bytes(&change.key.to_bytes()), Ok(change.key));
    }
}

fn restore_images(raw: &RawRecord, record: &DecodedRecord) {
    for image in record
        .blocks
        .iter()
        .filter_map(|block| block.image.as_ref())
    {
        if let Ok(page) = restore_image(image, raw.end_lsn) {
            assert_eq!(page.len(), PAGE_SIZE);
        }
    }
}
