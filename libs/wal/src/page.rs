use bytes::{BufMut as _, BytesMut};
use palimpsest_types::{Lsn, SystemIdentifier};

use crate::{
    segment::{SegmentSize, WAL_PAGE_SIZE},
    v15,
};

/// The header that begins every WAL page (`XLogPageHeaderData`; `XLogLongPageHeaderData` on the
/// first page of a segment).
///
/// ```text
///  0 magic u16 | 2 info u16 | 4 timeline u32 | 8 page address u64 | 16 remaining u32 | 20 pad
/// 24 system identifier u64 | 32 segment size u32 | 36 page size u32      (long form only)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// The PostgreSQL timeline that wrote the page.
    pub timeline: u32,
    /// Bytes of a record begun on an earlier page that are still to come from this page on.
    pub continuation: Option<u32>,
    /// The record begun on the page before was never finished; a new one begins here.
    pub overwrites_continuation: bool,
    /// The cluster that wrote the page, if the long form says it.
    pub system_identifier: Option<SystemIdentifier>,
}

/// Whose log it is: pages of another are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogIdentity {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The PostgreSQL timeline that is followed. Its log may begin with pages that an older one
    /// wrote, and has none of a newer one.
    pub timeline: u32,
}

/// A WAL page header is not what must stand at this LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageHeaderError {
    /// Another PostgreSQL major version, or not WAL at all.
    #[error("magic is {found:04X}, expected {expected:04X}")]
    Magic {
        /// What stands there.
        found: u16,
        /// What this PostgreSQL version writes.
        expected: u16,
    },
    /// The page belongs elsewhere: a recycled segment, or a gap.
    #[error("the page says it is at {found}")]
    Address {
        /// The address in the page.
        found: Lsn,
    },
    /// The long form is missing where a segment begins, or stands elsewhere.
    #[error("info bits {0:04X} do not fit the page's place")]
    Info(u16),
    /// Segment or page size differ from the stream's.
    #[error("the page says segments of {segment} bytes and pages of {page} bytes")]
    Sizes {
        /// Segment size in the header.
        segment: u32,
        /// Page size in the header.
        page: u32,
    },
    /// Another cluster wrote the page.
    #[error("the page is of the cluster with system identifier {found}, expected {expected}")]
    Cluster {
        /// What the page says.
        found: SystemIdentifier,
        /// The cluster that is followed.
        expected: SystemIdentifier,
    },
    /// A timeline wrote the page that is not followed.
    #[error("the page is of PostgreSQL timeline {found}, newer than {expected}, which is followed")]
    NewerTimeline {
        /// What the page says.
        found: u32,
        /// The timeline that is followed.
        expected: u32,
    },
    /// Timelines only rise in a log.
    #[error("the page is of PostgreSQL timeline {found}, after one of {before}")]
    OlderTimeline {
        /// What the page says.
        found: u32,
        /// What a page before it said.
        before: u32,
    },
}

const FIRST_IS_CONTRECORD: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// Length of the short form.
pub(crate) const SHORT_LEN: usize = 24;
/// Length of the long form.
pub(crate) const LONG_LEN: usize = 40;

impl PageHeader {
    /// Length of the longest header there is, which begins a segment.
    pub const LONGEST: usize = LONG_LEN;

    /// Length of the header of the page that begins at `at`.
    pub const fn len_at(at: Lsn, segment_size: SegmentSize) -> usize {
        if at.get().is_multiple_of(segment_size.bytes()) {
            LONG_LEN
        } else {
            SHORT_LEN
        }
    }

    /// Parses the header of the page that begins at `at`.
    ///
    /// `bytes` holds [`PageHeader::len_at`] bytes; bytes beyond the long form are ignored.
    ///
    /// # Errors
    /// If it is not a header that can stand there.
    pub fn parse(
        bytes: &[u8; LONG_LEN],
        at: Lsn,
        segment_size: SegmentSize,
    ) -> Result<Self, PageHeaderError> {
        let [m0, m1, i0, i1, t0, t1, t2, t3, rest @ ..] = *bytes;
        let (address, rest) = split_u64(&rest);
        let (remaining, rest) = split_u32(rest);
        let magic = u16::from_le_bytes([m0, m1]);
        if magic != v15::PAGE_MAGIC {
            return Err(PageHeaderError::Magic {
                found: magic,
                expected: v15::PAGE_MAGIC,
            });
        }
        let info = u16::from_le_bytes([i0, i1]);
        let long = info & LONG_HEADER != 0;
        if info & !ALL_FLAGS != 0 || long != (Self::len_at(at, segment_size) == LONG_LEN) {
            return Err(PageHeaderError::Info(info));
        }
        if address != at.get() {
            return Err(PageHeaderError::Address {
                found: Lsn::new(address),
            });
        }
        let mut system_identifier = None;
        if long {
            // 4 bytes of padding come first.
            let (cluster, rest) = split_u64(rest.get(4..).unwrap_or_default());
            system_identifier = Some(SystemIdentifier::new(cluster));
            let (segment, rest) = split_u32(rest);
            let (page, _) = split_u32(rest);
            if u64::from(segment) != segment_size.bytes() || u64::from(page) != WAL_PAGE_SIZE {
                return Err(PageHeaderError::Sizes { segment, page });
            }
        }
        Ok(Self {
            timeline: u32::from_le_bytes([t0, t1, t2, t3]),
            continuation: (info & FIRST_IS_CONTRECORD != 0).then_some(remaining),
            overwrites_continuation: info & FIRST_IS_OVERWRITE_CONTRECORD != 0,
            system_identifier,
        })
    }

    /// Writes the header of the page that begins at `at`; the long form needs the cluster's identifier.
    pub(crate) fn put(&self, page: &mut BytesMut, at: Lsn, segment_size: SegmentSize) {
        let is_long = Self::len_at(at, segment_size) == LONG_LEN;
        let flags = [
            (self.continuation.is_some(), FIRST_IS_CONTRECORD),
            (is_long, LONG_HEADER),
            (self.overwrites_continuation, FIRST_IS_OVERWRITE_CONTRECORD),
        ];
        let info = flags.iter().filter(|(set, _)| *set);
        page.put_u16_le(v15::PAGE_MAGIC);
        page.put_u16_le(info.fold(0, |info, (_, flag)| info | flag));
        page.put_u32_le(self.timeline);
        page.put_u64_le(at.get());
        page.put_u32_le(self.continuation.unwrap_or_default());
        page.put_bytes(0, 4);
        if is_long {
            let cluster = self.system_identifier.map_or(0, SystemIdentifier::get);
            page.put_u64_le(cluster);
            // A power of two up to 1 GiB.
            page.put_u32_le(u32::try_from(segment_size.bytes()).unwrap_or_default());
            page.put_u32_le(u32::try_from(WAL_PAGE_SIZE).unwrap_or_default());
        }
    }

    /// Whether the page can follow those before it, the newest of which was of timeline `before`
    /// (`XLogReaderValidatePageHeader`).
    pub(crate) fn check_origin(
        &self,
        before: u32,
        identity: Option<LogIdentity>,
    ) -> Result<(), PageHeaderError> {
        let found = self.timeline;
        if found < before {
            return Err(PageHeaderError::OlderTimeline { found, before });
        }
        let Some(identity) = identity else {
            return Ok(());
        };
        if found > identity.timeline {
            let expected = identity.timeline;
            return Err(PageHeaderError::NewerTimeline { found, expected });
        }
        let expected = identity.system_identifier;
        match self.system_identifier {
            Some(found) if found != expected => Err(PageHeaderError::Cluster { found, expected }),
            Some(_) | None => Ok(()),
        }
    }
}

fn split_u64(bytes: &[u8]) -> (u64, &[u8]) {
    let (head, rest) = bytes.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    (u64::from_le_bytes(*head), rest)
}

fn split_u32(bytes: &[u8]) -> (u32, &[u8]) {
    let (head, rest) = bytes.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
    (u32::from_le_bytes(*head), rest)
}
