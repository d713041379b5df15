use bytes::{BufMut, Bytes, BytesMut};
use palimpsest_codec::crc32c;
use palimpsest_types::{Lsn, SystemIdentifier};
use proptest::prelude::*;

use super::*;
use crate::rmgr::ResourceManager;

const TIMELINE: u32 = 7;
const CLUSTER: SystemIdentifier = SystemIdentifier::new(42);

/// Writes WAL as PostgreSQL lays it out, so that the reader can be shown to invert it.
struct Writer {
    start: Lsn,
    bytes: BytesMut,
    size: SegmentSize,
    /// Start of the newest whole record.
    previous: Lsn,
    /// Of the pages that come.
    timeline: u32,
}

impl Writer {
    fn new(start: Lsn) -> Self {
        let size = SegmentSize::new(1 << 20).unwrap();
        Self {
            start,
            bytes: BytesMut::new(),
            size,
            previous: Lsn::ZERO,
            timeline: TIMELINE,
        }
    }

    fn position(&self) -> Lsn {
        Lsn::new(self.start.get() + self.bytes.len() as u64)
    }

    fn page_header(&mut self, remaining: Option<u32>, extra: u16) {
        let at = self.position();
        let long = PageHeader::len_at(at, self.size) == 40;
        let info = u16::from(remaining.is_some()) | u16::from(long) << 1 | extra;
        self.bytes.put_u16_le(v15::PAGE_MAGIC);
        self.bytes.put_u16_le(info);
        self.bytes.put_u32_le(self.timeline);
        self.bytes.put_u64_le(at.get());
        self.bytes.put_u32_le(remaining.unwrap_or(0));
        self.bytes.put_u32_le(0);
        if long {
            self.bytes.put_u64_le(CLUSTER.get());
            self.bytes.put_u32_le(self.size.bytes() as u32);
            self.bytes.put_u32_le(WAL_PAGE_SIZE as u32);
        }
    }

    /// Writes a record, or its first `cut` bytes; returns where it starts.
    fn record(&mut self, body: &[u8], info: u8, cut: usize) -> Lsn {
        self.record_of(ResourceManager::Xlog, body, info, cut)
    }

    fn record_of(&mut self, rmgr: ResourceManager, body: &[u8], info: u8, cut: usize) -> Lsn {
        let mut record = BytesMut::new();
        record.put_u32_le((RecordHeader::LEN + body.len()) as u32);
        record.put_u32_le(0);
        record.put_u64_le(self.previous.get());
        record.put_u8(info);
        record.put_u8(rmgr.number());
        record.put_u16_le(0);
        record.put_u32_le(0);
        record.extend_from_slice(body);
        let crc = crc32c_append(crc32c(body), &record[..RecordHeader::CRC_OFFSET]);
        record[RecordHeader::CRC_OFFSET..RecordHeader::LEN].copy_from_slice(&crc.to_le_bytes());
        if self.position().offset_in(WAL_PAGE_SIZE) == 0 {
            self.page_header(None, 0);
        }
        let start = self.position();
        let mut rest = &record[..cut.min(record.len())];
        while !rest.is_empty() {
            if self.position().offset_in(WAL_PAGE_SIZE) == 0 {
                let remaining = rest.len() + record.len() - cut.min(record.len());
                self.page_header(Some(remaining as u32), 0);
            }
            let room = WAL_PAGE_SIZE - self.position().offset_in(WAL_PAGE_SIZE);
            let step = rest.len().min(room as usize);
            self.bytes.extend_from_slice(&rest[..step]);
            rest = &rest[step..];
        }
        self.pad_to(self.position().align_up());
        if cut >= record.len() {
            self.previous = start;
        }
        start
    }

    fn pad_to(&mut self, lsn: Lsn) {
        let len = lsn.checked_sub(self.start).unwrap() as usize;
        self.bytes.resize(len, 0);
    }
}

fn read_all(writer: &Writer, portions: &[usize]) -> Result<Vec<RawRecord>, WalError> {
    let mut reader = RecordReader::new(writer.start, writer.size);
    let mut rest = writer.bytes.clone().freeze();
    let mut portions = portions.iter().copied().cycle();
    let mut records = Vec::new();
    while !rest.is_empty() {
        let portion = rest.split_to(portions.next().unwrap_or(rest.len()).clamp(1, rest.len()));
        reader.push(reader.expects(), portion)?;
        while let Some(record) = reader.next_record()? {
            records.push(record);
        }
    }
    Ok(records)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_portions_give_the_records_that_were_written(
        lens in prop::collection::vec(0usize..20_000, 1..60),
        portions in prop::collection::vec(1usize..9_000, 1..10),
        segment in 0u64..3,
    ) {
        let mut writer = Writer::new(Lsn::new(segment << 20));
        let mut expected = Vec::new();
        for len in lens {
            let start = writer.record(&vec![len as u8; len], 0, usize::MAX);
            expected.push((start, writer.position(), len));
        }
        let records = read_all(&writer, &portions).unwrap();
        let found: Vec<_> = records
            .iter()
            .map(|r| (r.start_lsn, r.end_lsn, r.bytes.len() - RecordHeader::LEN))
            .collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn hostile_bytes_never_panic(bytes: Vec<u8>, start in 0u64..100_000) {
        let mut reader = RecordReader::new(Lsn::new(start), SegmentSize::DEFAULT);
        reader.push(Lsn::new(start), bytes.into()).unwrap();
        while let Ok(Some(_)) = reader.next_record() {}
    }

    #[test]
    fn a_flipped_byte_is_never_a_different_record(at in 0usize..3000, flip in 1u8..) {
        let mut writer = Writer::new(Lsn::new(1 << 20));
        for len in [10, 500, 2000] {
            writer.record(&vec![3; len], 0, usize::MAX);
        }
        let clean = read_all(&writer, &[usize::MAX]).unwrap();
        let at = at % writer.bytes.len();
        writer.bytes[at] ^= flip;
        if let Ok(records) = read_all(&writer, &[usize::MAX]) {
            // Padding, unused header fields and the timeline are not covered; records are.
            prop_assert!(records.iter().all(|record| clean.contains(record)));
        }
    }
}

#[test]
fn a_switch_skips_the_rest_of_the_segment() {
    let mut writer = Writer::new(Lsn::new(1 << 20));
    writer.record(&[], 0x40, usize::MAX);
    writer.pad_to(Lsn::new(2 << 20));
    let next = writer.record(&[1; 30], 0, usize::MAX);
    let records = read_all(&writer, &[5000]).unwrap();
    assert_eq!(records[0].end_lsn, Lsn::new(2 << 20));
    assert_eq!(records[1].start_lsn, next);
    assert_eq!(next, Lsn::new((2 << 20) + 40));
}

#[test]
fn a_record_that_a_crash_cut_off_is_dropped() {
    let mut writer = Writer::new(Lsn::new(1 << 20));
    writer.record(&[1; 100], 0, usize::MAX);
    let room = WAL_PAGE_SIZE - writer.position().offset_in(WAL_PAGE_SIZE);
    writer.record(&[2; 20_000], 0, room as usize);
    writer.page_header(None, 0x0008);
    let after = writer.record(&[3; 10], 0, usize::MAX);
    let records = read_all(&writer, &[777]).unwrap();
    assert_eq!(records.len(), 2);
    assert_eq!(records[1].start_lsn, after);
}

#[test]
fn a_gap_is_refused_where_it_begins() {
    let mut reader = RecordReader::new(Lsn::new(1 << 20), SegmentSize::DEFAULT);
    let error = reader
        .push(Lsn::new(2 << 20), Bytes::from_static(b"x"))
        .unwrap_err();
    assert!(matches!(error, WalError::Gap { .. }), "{error}");
}

#[test]
fn a_logical_message_passes_without_being_held() {
    let mut writer = Writer::new(Lsn::new(1 << 20));
    let message = ResourceManager::LogicalMessage;
    // The body of the first one begins on another page than its header.
    writer.record(&[1; 8192 - 40 - 24 - 8 - 24], 0, usize::MAX);
    writer.record_of(message, &[7; 100_000], 0, usize::MAX);
    let after = writer.record(&[2; 10], 0, usize::MAX);
    for portions in [[1], [777], [usize::MAX]] {
        let records = read_all(&writer, &portions).unwrap();
        assert_eq!(records.len(), 3);
        let passed = &records[1];
        assert_eq!(passed.bytes.len(), RecordHeader::LEN);
        assert_eq!(passed.end_lsn, after);
        assert_eq!(passed.header().unwrap().total_len, 100_024);
        let decoded = passed.decode().unwrap();
        assert!(decoded.blocks.is_empty() && decoded.main_data.is_empty());
        assert_eq!(records[2].start_lsn, after);
    }

    // What is not kept is still checked.
    let in_body = writer.bytes.len() - 1000;
    writer.bytes[in_body] ^= 1;
    let error = read_all(&writer, &[4096]).unwrap_err();
    assert!(matches!(error, WalError::Checksum { .. }), "{error}");
}

#[test]
fn memory_does_not_grow_with_a_logical_message() {
    let mut reader = RecordReader::new(Lsn::new((1 << 20) + 40), SegmentSize::DEFAULT);
    reader.partial = Some(Partial::new(reader.input.position, MAX_CLAIMED_LEN));
    let mut header = BytesMut::zeroed(RecordHeader::LEN);
    header[17] = ResourceManager::LogicalMessage.number();
    reader.push(reader.expects(), header.freeze()).unwrap();
    for _ in 0..7 {
        let some = Bytes::from(vec![1; 1000]);
        reader.push(reader.expects(), some).unwrap();
        assert_eq!(reader.next_record(), Ok(None));
        let partial = reader.partial.as_ref().unwrap();
        assert_eq!(partial.bytes.len(), RecordHeader::LEN);
        assert_eq!(reader.input.len, 0);
    }
}

#[test]
fn a_record_too_long_to_be_held_is_refused_at_its_header() {
    let mut bytes = BytesMut::zeroed(RecordHeader::LEN);
    let length = RecordReader::MAX_RECORD_LEN + 1;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[17] = ResourceManager::Transaction.number();
    let mut reader = RecordReader::new(Lsn::new((1 << 20) + 40), SegmentSize::DEFAULT);
    reader.push(reader.expects(), bytes.freeze()).unwrap();
    let error = reader.next_record().unwrap_err();
    assert!(
        matches!(error, WalError::TooLong { length: found, .. } if found == length),
        "{error}"
    );
}

/// What a source writes that lost its newest WAL after it was sent: each record is whole.
#[test]
fn a_record_that_follows_another_is_refused() {
    let mut writer = Writer::new(Lsn::new(8192));
    let first = writer.record(b"first", 0, usize::MAX);
    let second = writer.record(b"second", 0, usize::MAX);
    writer.previous = first;
    let spliced = writer.record(b"third", 0, usize::MAX);
    let refused = read_all(&writer, &[1000]).unwrap_err();
    assert_eq!(
        refused,
        WalError::Previous {
            at: spliced,
            found: first,
            expected: second,
        }
    );
}

#[test]
fn what_came_last_is_known_when_the_rest_is_read_again() {
    let mut writer = Writer::new(Lsn::new(8192));
    writer.record(b"first", 0, usize::MAX);
    let second = writer.record(b"second", 0, usize::MAX);
    let bytes = writer.bytes.clone().freeze();
    let mut reader = RecordReader::new(writer.start, writer.size);
    reader.push(writer.start, bytes.clone()).unwrap();
    let end = reader.next_record().unwrap().unwrap().end_lsn;
    reader.begin_again(end);
    let rest = end.saturating_sub(writer.start) as usize;
    reader.push(end, bytes.slice(rest..)).unwrap();
    assert_eq!(reader.next_record().unwrap().unwrap().start_lsn, second);
    assert!(reader.previous.is_some_and(|previous| previous == second));
}

/// Records over several segments, of which those from the second on are of this timeline.
fn switching_to(timeline: u32) -> Writer {
    let mut writer = Writer::new(Lsn::new(1 << 20));
    writer.record(&[1; 1000], 0x40, usize::MAX);
    writer.pad_to(Lsn::new(2 << 20));
    writer.timeline = timeline;
    writer.record(&[2; 20_000], 0, usize::MAX);
    writer
}

fn read_as(writer: &Writer, identity: Option<LogIdentity>) -> Result<usize, PageHeaderError> {
    let mut reader = RecordReader::new(writer.start, writer.size);
    reader.identity = identity;
    let bytes = writer.bytes.clone().freeze();
    reader.push(writer.start, bytes).unwrap();
    let mut records = 0;
    loop {
        match reader.next_record() {
            Ok(Some(_)) => records += 1,
            Ok(None) => return Ok(records),
            Err(WalError::Page { source, .. }) => return Err(source),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn timelines_rise_up_to_the_one_that_is_followed() {
    let followed = |timeline| {
        let system_identifier = CLUSTER;
        Some(LogIdentity {
            system_identifier,
            timeline,
        })
    };
    let promoted = switching_to(TIMELINE + 2);
    for identity in [None, followed(TIMELINE + 2), followed(TIMELINE + 3)] {
        assert_eq!(read_as(&promoted, identity), Ok(2), "{identity:?}");
    }
    let newer = read_as(&promoted, followed(TIMELINE + 1));
    let (found, expected) = (TIMELINE + 2, TIMELINE + 1);
    assert_eq!(
        newer,
        Err(PageHeaderError::NewerTimeline { found, expected })
    );
    let (found, before) = (TIMELINE - 1, TIMELINE);
    let falling = switching_to(found);
    let older = PageHeaderError::OlderTimeline { found, before };
    for identity in [None, followed(TIMELINE)] {
        assert_eq!(read_as(&falling, identity), Err(older.clone()));
    }
}

#[test]
fn the_log_of_another_cluster_is_refused_also_when_it_is_read_again() {
    let writer = switching_to(TIMELINE);
    let expected = SystemIdentifier::new(43);
    let identity = LogIdentity {
        system_identifier: expected,
        timeline: TIMELINE,
    };
    let found = CLUSTER;
    let refused = PageHeaderError::Cluster { found, expected };
    assert_eq!(read_as(&writer, Some(identity)), Err(refused));
    let mut reader = RecordReader::new(writer.start, writer.size).of(identity);
    reader.begin_again(writer.start);
    assert_eq!(reader.identity, Some(identity));
}
