//! A log that begins with one record: what a cluster needs to be started at an LSN of its past.

use bytes::{BufMut as _, Bytes, BytesMut};
use palimpsest_codec::{crc32c, crc32c_append};
use palimpsest_types::Lsn;

use crate::{
    page::{LONG_LEN, LogIdentity, PageHeader, SHORT_LEN},
    record::RecordHeader,
    rmgr::ResourceManager,
    segment::{SegmentNumber, SegmentSize, WAL_PAGE_SIZE},
};

/// A log with nothing in it but one record, page by page, from the start of the segment that has it.
///
/// Pages before the record's are those of one that began in an earlier segment and ends where ours begins, so
/// that programs which look for the first whole record find ours:
///
/// ```text
///  segment start                                   at         end        segment end
///  │ long header │ zeros … │ header │ zeros …      │ record   │ zeros …  │
///    continues, N to come    continues, fewer
/// ```
#[derive(Debug, Clone)]
pub struct LogHead {
    record: Bytes,
    at: Lsn,
    end: Lsn,
    first: SegmentNumber,
    identity: LogIdentity,
    segment_size: SegmentSize,
}

/// Bytes of main data whose length fits one byte.
const SHORT_MAIN_DATA: usize = 255;
/// `XLR_BLOCK_ID_DATA_SHORT`.
const MAIN_DATA_SHORT: u8 = 255;

/// A record without blocks (`XLogRecordAssemble`); `None` if its data are longer than those of any record that is
/// written here.
pub fn record_of(
    rmgr: ResourceManager,
    info: u8,
    previous: Lsn,
    main_data: &[u8],
) -> Option<Bytes> {
    let len = u8::try_from(main_data.len()).ok()?;
    let total = RecordHeader::LEN + 2 + main_data.len();
    let mut body = BytesMut::with_capacity(2 + SHORT_MAIN_DATA);
    body.put_u8(MAIN_DATA_SHORT);
    body.put_u8(len);
    body.put_slice(main_data);
    let mut record = BytesMut::with_capacity(total);
    record.put_u32_le(u32::try_from(total).ok()?);
    record.put_u32_le(0);
    record.put_u64_le(previous.get());
    record.put_u8(info);
    record.put_u8(rmgr.number());
    record.put_u16_le(0);
    let crc = crc32c_append(crc32c(&body), &record);
    record.put_u32_le(crc);
    record.put_slice(&body);
    Some(record.freeze())
}

/// Where a record may begin at an LSN or next after it: not in the header of a page. `None` past the end of the
/// address space.
pub fn record_place(lsn: Lsn, segment_size: SegmentSize) -> Option<Lsn> {
    let lsn = lsn.checked_add(7)?.floor_to(8);
    let page = lsn.floor_to(WAL_PAGE_SIZE);
    let header = PageHeader::len_at(page, segment_size) as u64;
    Some(lsn.max(page.checked_add(header)?))
}

/// The first LSN at which the same records have ended as at this one: not in the header of a page, where the next would
/// begin behind it.
pub fn record_end(lsn: Lsn, segment_size: SegmentSize) -> Lsn {
    let lsn = lsn.floor_to(8);
    match record_place(lsn, segment_size) {
        Some(place) if place == lsn => lsn,
        _ => lsn.floor_to(WAL_PAGE_SIZE),
    }
}

impl LogHead {
    /// The log with this record at a place where one may begin ([`record_place`]); `None` if there is no room for
    /// it before the end of the address space.
    pub fn new(
        record: Bytes,
        at: Lsn,
        identity: LogIdentity,
        segment_size: SegmentSize,
    ) -> Option<Self> {
        let first = segment_size.number_of(at);
        let mut head = Self {
            record,
            at,
            end: at,
            first,
            identity,
            segment_size,
        };
        let mut left = head.record.len() as u64;
        loop {
            let page_end = head
                .end
                .floor_to(WAL_PAGE_SIZE)
                .checked_add(WAL_PAGE_SIZE)?;
            let room = page_end.checked_sub(head.end)?;
            if left <= room {
                let end = head.end.checked_add(left)?.checked_add(7)?.floor_to(8);
                // Its segment must end before the address space does.
                segment_size.round_up(end)?;
                return Some(Self { end, ..head });
            }
            left -= room;
            let header = PageHeader::len_at(page_end, segment_size) as u64;
            head.end = page_end.checked_add(header)?;
        }
    }

    /// Where the record ends: the next may begin there.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// The segments that the log needs, in order: one, or two if the record is in both.
    pub fn segments(&self) -> impl Iterator<Item = SegmentNumber> + use<> {
        let last = Lsn::new(self.end.get().saturating_sub(1));
        let last = self.segment_size.number_of(last);
        std::iter::successors(Some(self.first), move |segment| {
            Some(segment.next()).filter(|next| *next <= last)
        })
    }

    /// The page that begins at an LSN, which is at or after the start of the first segment.
    pub fn page(&self, at: Lsn) -> Bytes {
        let len = usize::try_from(WAL_PAGE_SIZE).unwrap_or_default();
        let mut page = BytesMut::with_capacity(len);
        if at < self.end {
            let (to_come, of_record) = self.content(at);
            let header = PageHeader {
                timeline: self.identity.timeline,
                continuation: to_come.filter(|bytes| *bytes > 0),
                overwrites_continuation: false,
                system_identifier: Some(self.identity.system_identifier),
            };
            header.put(&mut page, at, self.segment_size);
            if self.at > at {
                let before = self.at.saturating_sub(at).min(WAL_PAGE_SIZE);
                page.resize(usize::try_from(before).unwrap_or(len), 0);
            }
            page.put_slice(&of_record);
        }
        page.resize(len, 0);
        page.freeze()
    }

    /// What is in a page: bytes to come of what was begun before it, and its part of our record.
    fn content(&self, page: Lsn) -> (Option<u32>, Bytes) {
        let page_end = page.get().saturating_add(WAL_PAGE_SIZE);
        if page <= self.at {
            let begins_here = self.at.get() < page_end;
            let room = if begins_here {
                page_end - self.at.get()
            } else {
                0
            };
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let to_come = u32::try_from(self.room_between(page, self.at)).ok();
            return (to_come, self.record.slice(..room.min(self.record.len())));
        }
        let before = self.room_between(self.at.floor_to(WAL_PAGE_SIZE), page);
        let first = self.room_between(self.at.floor_to(WAL_PAGE_SIZE), self.at);
        let written = usize::try_from(before - first).unwrap_or(usize::MAX);
        let rest = self.record.slice(written.min(self.record.len())..);
        let room = WAL_PAGE_SIZE as usize - PageHeader::len_at(page, self.segment_size);
        let to_come = u32::try_from(rest.len()).ok();
        (to_come, rest.slice(..room.min(rest.len())))
    }

    /// Bytes from the start of a page up to an LSN, not in a header, that are not of page headers.
    fn room_between(&self, page: Lsn, to: Lsn) -> u64 {
        let segments_before = |lsn: Lsn| lsn.get().div_ceil(self.segment_size.bytes());
        let bytes = to.saturating_sub(page);
        let segments = segments_before(to).saturating_sub(segments_before(page));
        let headers = SHORT_LEN as u64 * bytes.div_ceil(WAL_PAGE_SIZE)
            + (LONG_LEN - SHORT_LEN) as u64 * segments;
        bytes.saturating_sub(headers)
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::SystemIdentifier;
    use proptest::prelude::*;

    use super::*;
    use crate::reader::RecordReader;

    const IDENTITY: LogIdentity = LogIdentity {
        system_identifier: SystemIdentifier::new(77),
        timeline: 5,
    };

    /// Where the first whole record begins at or after the start of a page (`XLogFindNextRecord`).
    fn first_record(head: &LogHead, from: Lsn, segment_size: SegmentSize) -> Lsn {
        let mut page = from;
        loop {
            let bytes = head.page(page);
            let header = bytes.first_chunk().unwrap();
            let header = PageHeader::parse(header, page, segment_size).unwrap();
            let len = PageHeader::len_at(page, segment_size) as u64;
            let to_come = u64::from(header.continuation.unwrap_or(0)).next_multiple_of(8);
            if to_come < WAL_PAGE_SIZE - len {
                return page.checked_add(len + to_come).unwrap();
            }
            page = page.checked_add(WAL_PAGE_SIZE).unwrap();
        }
    }

    /// Reads a log from the start of a page, as a program does that knows no record of it.
    fn read(head: &LogHead, from: Lsn, segment_size: SegmentSize) -> Vec<crate::RawRecord> {
        let first = first_record(head, from, segment_size);
        let mut reader = RecordReader::new(first, segment_size).of(IDENTITY);
        let mut records = Vec::new();
        let mut at = first;
        while at < head.end() {
            let page = at.floor_to(WAL_PAGE_SIZE);
            let skipped = usize::try_from(at.saturating_sub(page)).unwrap();
            reader.push(at, head.page(page).slice(skipped..)).unwrap();
            while let Ok(Some(record)) = reader.next_record() {
                records.push(record);
            }
            at = page.checked_add(WAL_PAGE_SIZE).unwrap();
        }
        records
    }

    proptest! {
        #[test]
        fn the_record_is_the_first_that_a_reader_finds(
            offset in 0u64..4 << 20,
            near_page_end in any::<bool>(),
            data_len in 0usize..256,
        ) {
            let segment_size = SegmentSize::new(1 << 20).unwrap();
            let mut lsn = Lsn::new((7 << 20) + offset);
            if near_page_end {
                lsn = Lsn::new(lsn.floor_to(WAL_PAGE_SIZE).get() + WAL_PAGE_SIZE - 8 * (1 + offset % 16));
            }
            let at = record_place(lsn, segment_size).unwrap();
            prop_assert!(at >= lsn && at.saturating_sub(lsn) <= 40 + 7);
            let record = record_of(ResourceManager::Xlog, 0, Lsn::new(99), &vec![7; data_len]).unwrap();
            let head = LogHead::new(record.clone(), at, IDENTITY, segment_size).unwrap();
            let first = head.segments().next().unwrap();
            for from in [segment_size.start_of(first).unwrap(), at.floor_to(WAL_PAGE_SIZE)] {
                let records = read(&head, from, segment_size);
                prop_assert_eq!(records.len(), 1);
                prop_assert_eq!(records[0].start_lsn, at);
                prop_assert_eq!(records[0].end_lsn, head.end());
                prop_assert_eq!(&records[0].bytes, &record);
            }
            let decoded = read(&head, at.floor_to(WAL_PAGE_SIZE), segment_size)[0].decode().unwrap();
            prop_assert_eq!(decoded.main_data, vec![7; data_len]);
            prop_assert_eq!(decoded.header.previous, Lsn::new(99));
            let beyond = head.end().floor_to(WAL_PAGE_SIZE).checked_add(WAL_PAGE_SIZE).unwrap();
            prop_assert!(head.page(beyond).iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn there_is_no_record_at_the_end_of_the_address_space() {
        let size = SegmentSize::DEFAULT;
        let record = record_of(ResourceManager::Xlog, 0, Lsn::ZERO, &[0; 88]).unwrap();
        for before in [1, 100, 8000, 16 << 20] {
            let at = Lsn::new(u64::MAX - before);
            let head = record_place(at, size)
                .and_then(|at| LogHead::new(record.clone(), at, IDENTITY, size));
            assert!(head.is_none(), "{before}");
        }
        assert!(record_of(ResourceManager::Xlog, 0, Lsn::ZERO, &[0; 256]).is_none());
    }
}
