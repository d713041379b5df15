use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use palimpsest_codec::crc32c_append;
use palimpsest_types::Lsn;

use crate::{
    page::{LogIdentity, PageHeader, PageHeaderError},
    record::{RawRecord, RecordHeader},
    segment::{SegmentSize, WAL_PAGE_SIZE},
    v15,
};

/// Takes a WAL stream apart into records.
///
/// Bytes go in with [`RecordReader::push`] in any portions; records come out of
/// [`RecordReader::next_record`] in order, each with its CRC checked. Follows `XLogReadRecord` of
/// PostgreSQL's `xlogreader.c`: records across pages and segments, the padding after an
/// `XLOG_SWITCH`, and records that a crash of the source left unfinished (overwritten
/// continuation records), which are dropped as PostgreSQL drops them.
///
/// A record is held until it is whole, up to [`RecordReader::MAX_RECORD_LEN`]. Of logical messages,
/// which anyone may write at almost any length, only the header comes out; their bodies are checked
/// as they pass.
#[derive(Debug)]
pub struct RecordReader {
    segment_size: SegmentSize,
    input: Input,
    /// Padding up to here belongs to no record.
    skip_to: Lsn,
    partial: Option<Partial>,
    /// Start of the newest whole record.
    previous: Option<Lsn>,
    /// Of the newest page; 0 before the first.
    timeline: u32,
    /// Whose log it must be, if that is known.
    identity: Option<LogIdentity>,
}

/// Why a stream can't be taken apart further. The reader stays at the offending place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// Bytes were pushed that do not follow the ones before.
    #[error("WAL was expected at {expected}, but bytes of {found} came")]
    Gap {
        /// Where the next byte belongs.
        expected: Lsn,
        /// Where the pushed bytes begin.
        found: Lsn,
    },
    /// A page header is wrong.
    #[error("bad WAL page at {at}")]
    Page {
        /// Start of the page.
        at: Lsn,
        /// What is wrong with it.
        #[source]
        source: PageHeaderError,
    },
    /// A page continues a record other than the one that was begun, or none.
    #[error("the WAL page at {at} continues a record by {found:?} bytes, expected {expected:?}")]
    Continuation {
        /// Start of the page.
        at: Lsn,
        /// What the page says.
        found: Option<u32>,
        /// What is missing of the record begun before.
        expected: Option<u32>,
    },
    /// A record's length can't be.
    #[error("the WAL record at {at} claims {length} bytes")]
    Length {
        /// Start of the record.
        at: Lsn,
        /// The claim.
        length: u32,
    },
    /// A record is longer than what is held in memory for one.
    #[error(
        "the WAL record at {at} ({rmgr}) has {length} bytes, more than the {limit} that are held for one; it can't be replicated"
    )]
    TooLong {
        /// Start of the record.
        at: Lsn,
        /// Its resource manager, by number.
        rmgr: u8,
        /// Its length.
        length: u32,
        /// The limit.
        limit: u32,
    },
    /// A record says that it comes after another than it does. The source lost WAL that it had
    /// sent, and has written anew where that began (`ValidXLogRecordHeader`).
    #[error(
        "the WAL record at {at} was written after one at {found}, not after the one at {expected} that came before it; the source has lost WAL that it had sent, attach again"
    )]
    Previous {
        /// Start of the record.
        at: Lsn,
        /// Start of the record that it says it follows.
        found: Lsn,
        /// Start of the one that it does.
        expected: Lsn,
    },
    /// The record's bytes are not what was written.
    #[error("the WAL record at {at} fails its CRC: {found:08X} computed, {stored:08X} stored")]
    Checksum {
        /// Start of the record.
        at: Lsn,
        /// In the record.
        stored: u32,
        /// Over the bytes.
        found: u32,
    },
}

/// A record of which some bytes have come.
#[derive(Debug)]
struct Partial {
    start: Lsn,
    total: u32,
    /// The header, and what is kept of the body.
    bytes: BytesMut,
    /// Body bytes that have passed, kept or not.
    body_len: u32,
    /// Of those.
    body_crc: u32,
}

/// Unread bytes, and where in the log they begin.
#[derive(Debug)]
struct Input {
    position: Lsn,
    chunks: VecDeque<Bytes>,
    len: usize,
}

/// PostgreSQL's own limit on a record (`XLogRecordMaxSize`).
const MAX_CLAIMED_LEN: u32 = 1020 << 20;
/// A record's buffer begins at most this large and grows as bytes arrive, not as they are claimed.
const INITIAL_CAPACITY: usize = 64 << 10;

impl RecordReader {
    /// A longer record ends the stream, unless nothing of its body is kept. The largest that
    /// PostgreSQL has a use for are commits, by 12 bytes for each relation that they drop.
    pub const MAX_RECORD_LEN: u32 = 256 << 20;

    /// A reader whose first byte is at `start`, a record boundary or a page start.
    pub fn new(start: Lsn, segment_size: SegmentSize) -> Self {
        let input = Input {
            position: start,
            chunks: VecDeque::new(),
            len: 0,
        };
        Self {
            segment_size,
            input,
            skip_to: start,
            partial: None,
            previous: None,
            timeline: 0,
            identity: None,
        }
    }

    /// The same, which refuses pages of another cluster, or of a timeline that is not followed.
    #[must_use]
    pub fn of(self, identity: LogIdentity) -> Self {
        Self {
            identity: Some(identity),
            ..self
        }
    }

    /// Forgets what came after `end`, the end of the newest whole record, and expects it again.
    pub fn begin_again(&mut self, end: Lsn) {
        *self = Self {
            previous: self.previous,
            identity: self.identity,
            ..Self::new(end, self.segment_size)
        };
    }

    /// Where the next pushed byte belongs.
    pub fn expects(&self) -> Lsn {
        Lsn::new(self.input.position.get() + self.input.len as u64)
    }

    /// The PostgreSQL timeline in the newest page header; 0 before the first.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Adds the bytes that begin at `at`.
    ///
    /// # Errors
    /// [`WalError::Gap`] if they do not follow the bytes before.
    pub fn push(&mut self, at: Lsn, bytes: Bytes) -> Result<(), WalError> {
        let expected = self.expects();
        if at != expected {
            return Err(WalError::Gap {
                expected,
                found: at,
            });
        }
        if !bytes.is_empty() {
            self.input.len += bytes.len();
            self.input.chunks.push_back(bytes);
        }
        Ok(())
    }

    /// The next whole record, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// If the bytes are not WAL that can stand here.
    pub fn next_record(&mut self) -> Result<Option<RawRecord>, WalError> {
        loop {
            if !self.skip_padding() || !self.enter_page()? {
                return Ok(None);
            }
            if self.partial.is_none() && !self.begin_record()? {
                return Ok(None);
            }
            match self.gather()? {
                Gathered::Record(record) => return Ok(Some(record)),
                Gathered::Part => {}
                Gathered::NeedsInput => return Ok(None),
            }
        }
    }

    /// Drops bytes before `skip_to`; false if more must come first.
    fn skip_padding(&mut self) -> bool {
        let missing = self.skip_to.saturating_sub(self.input.position);
        let available = usize::try_from(missing)
            .unwrap_or(usize::MAX)
            .min(self.input.len);
        self.input.advance(available);
        self.input.position >= self.skip_to
    }

    /// Reads the page header if one stands here; false if more bytes must come first.
    fn enter_page(&mut self) -> Result<bool, WalError> {
        let at = self.input.position;
        if at.offset_in(WAL_PAGE_SIZE) != 0 {
            return Ok(true);
        }
        let len = PageHeader::len_at(at, self.segment_size);
        if self.input.len < len {
            return Ok(false);
        }
        let mut bytes = [0; PageHeader::LONGEST];
        self.input.peek(&mut bytes);
        let bad = |source| WalError::Page { at, source };
        let header = PageHeader::parse(&bytes, at, self.segment_size).map_err(bad)?;
        header
            .check_origin(self.timeline, self.identity)
            .map_err(bad)?;
        if header.overwrites_continuation {
            self.partial = None;
        }
        let expected = self.partial.as_ref().map(Partial::missing);
        if header.continuation != expected {
            return Err(WalError::Continuation {
                at,
                found: header.continuation,
                expected,
            });
        }
        self.timeline = header.timeline;
        self.input.advance(len);
        self.skip_to = self.input.position;
        Ok(true)
    }

    /// Starts the record that begins here; false if more bytes must come first.
    fn begin_record(&mut self) -> Result<bool, WalError> {
        let start = self.input.position;
        let mut length = [0; 4];
        if self.input.len < length.len() {
            return Ok(false);
        }
        self.input.peek(&mut length);
        let total = u32::from_le_bytes(length);
        if !(RecordHeader::LEN as u32..=MAX_CLAIMED_LEN).contains(&total) {
            return Err(WalError::Length {
                at: start,
                length: total,
            });
        }
        self.partial = Some(Partial::new(start, total));
        Ok(true)
    }

    /// Moves what this page has of the record begun: first its header, then its body.
    fn gather(&mut self) -> Result<Gathered, WalError> {
        let Some(partial) = &mut self.partial else {
            return Ok(Gathered::NeedsInput);
        };
        let header_missing = RecordHeader::LEN.saturating_sub(partial.bytes.len());
        let missing = match header_missing {
            0 => partial.missing() as usize,
            header => header,
        };
        let page_left = WAL_PAGE_SIZE - self.input.position.offset_in(WAL_PAGE_SIZE);
        let wanted = missing.min(page_left as usize);
        let len = wanted.min(self.input.len);
        if header_missing > 0 {
            self.input.move_to(&mut partial.bytes, len);
            partial.refuse_too_long()?;
        } else {
            let keep = !partial.is_passed_over();
            self.input
                .consume(len, |bytes| partial.add_to_body(bytes, keep));
        }
        if len < wanted {
            return Ok(Gathered::NeedsInput);
        }
        match self.partial.take_if(|partial| partial.missing() == 0) {
            Some(whole) => self.finish(whole).map(Gathered::Record),
            None => Ok(Gathered::Part),
        }
    }

    fn finish(&mut self, whole: Partial) -> Result<RawRecord, WalError> {
        let found = whole.crc();
        let Partial { start, bytes, .. } = whole;
        let bytes = bytes.freeze();
        let header = RecordHeader::parse(&bytes).ok_or(WalError::Length {
            at: start,
            length: bytes.len() as u32,
        })?;
        if found != header.crc {
            return Err(WalError::Checksum {
                at: start,
                stored: header.crc,
                found,
            });
        }
        if let Some(expected) = self.previous
            && header.previous != expected
        {
            return Err(WalError::Previous {
                at: start,
                found: header.previous,
                expected,
            });
        }
        self.previous = Some(start);
        let mut end = self.input.position.align_up();
        if v15::is_switch(&header) {
            end = self.segment_size.round_up(end).unwrap_or(Lsn::MAX);
        }
        self.skip_to = end;
        Ok(RawRecord {
            start_lsn: start,
            end_lsn: end,
            bytes,
        })
    }
}

/// What came of gathering a record's bytes.
enum Gathered {
    Record(RawRecord),
    /// The header, or all that stood on the page.
    Part,
    NeedsInput,
}

impl Partial {
    fn new(start: Lsn, total: u32) -> Self {
        Self {
            start,
            total,
            bytes: BytesMut::with_capacity((total as usize).min(INITIAL_CAPACITY)),
            body_len: 0,
            body_crc: 0,
        }
    }

    /// Bytes of header and body that have not come.
    fn missing(&self) -> u32 {
        let header_len = self.bytes.len().min(RecordHeader::LEN) as u32;
        self.total - header_len - self.body_len
    }

    /// Whether the body is checked but not kept; known once the header is here.
    fn is_passed_over(&self) -> bool {
        RecordHeader::parse(&self.bytes)
            .is_some_and(|header| v15::is_only_for_decoding(header.rmid))
    }

    fn refuse_too_long(&self) -> Result<(), WalError> {
        let limit = RecordReader::MAX_RECORD_LEN;
        match RecordHeader::parse(&self.bytes) {
            Some(header) if self.total > limit && !self.is_passed_over() => {
                Err(WalError::TooLong {
                    at: self.start,
                    rmgr: header.rmid,
                    length: self.total,
                    limit,
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn add_to_body(&mut self, bytes: &[u8], keep: bool) {
        self.body_len += bytes.len() as u32;
        self.body_crc = crc32c_append(self.body_crc, bytes);
        if keep {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// CRC-32C as PostgreSQL computes it: the body first, then the header up to the CRC field.
    fn crc(&self) -> u32 {
        let covered = self.bytes.get(..RecordHeader::CRC_OFFSET);
        crc32c_append(self.body_crc, covered.unwrap_or_default())
    }
}

impl Input {
    /// Copies the first bytes into `out` without moving on; leaves the rest of `out` as it is.
    fn peek(&self, out: &mut [u8]) {
        let mut filled = 0;
        for chunk in &self.chunks {
            let len = chunk.len().min(out.len() - filled);
            out[filled..filled + len].copy_from_slice(&chunk[..len]);
            filled += len;
            if filled == out.len() {
                break;
            }
        }
    }

    fn advance(&mut self, len: usize) {
        self.consume(len, |_| {});
    }

    fn move_to(&mut self, out: &mut BytesMut, len: usize) {
        self.consume(len, |bytes| out.extend_from_slice(bytes));
    }

    fn consume(&mut self, len: usize, mut take: impl FnMut(&[u8])) {
        let mut left = len;
        while left > 0 {
            let Some(chunk) = self.chunks.front_mut() else {
                break;
            };
            let step = left.min(chunk.len());
            take(&chunk[..step]);
            chunk.advance(step);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
            left -= step;
        }
        self.len -= len - left;
        self.position = Lsn::new(self.position.get() + (len - left) as u64);
    }
}

#[cfg(test)]
mod tests;
