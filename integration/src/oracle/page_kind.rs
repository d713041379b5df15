use palimpsest_types::PAGE_SIZE;

/// What kind of relation a page belongs to, told from the page alone.
///
/// The special space at its end has a size and a mark that differ by access method; that is how
/// `pg_filedump` tells them apart too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageKind {
    /// Never initialised: all zeros in the header.
    New,
    /// No special space.
    Heap,
    /// The largest cycle id is below the marks of the others (`nbtree.h`).
    Btree,
    /// `HASHO_PAGE_ID`.
    Hash,
    /// What is left among those of 8 bytes: GIN has no mark.
    Gin,
    /// `GIST_PAGE_ID`.
    Gist,
    /// `SPGIST_PAGE_ID`.
    SpGist,
    /// `SEQ_MAGIC`.
    Sequence,
    /// `BRIN_PAGETYPE_META` and the two after it.
    Brin,
    /// `BLOOM_PAGE_ID`; an extension that uses generic WAL.
    Bloom,
}

const HASH_ID: u16 = 0xFF80;
const GIST_ID: u16 = 0xFF81;
const SPGIST_ID: u16 = 0xFF82;
const BLOOM_ID: u16 = 0xFF83;
const BRIN_IDS: std::ops::RangeInclusive<u16> = 0xF091..=0xF093;
const SEQUENCE_MAGIC: u32 = 0x1717;
const SPGIST_META: u16 = 1;

impl PageKind {
    /// The kind of a page.
    pub fn of(page: &[u8]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
        if u16_at(14) == 0 {
            return Self::New;
        }
        let special = usize::from(u16_at(16));
        let mark = u16_at(PAGE_SIZE - 2);
        let magic = u32::from(u16_at(PAGE_SIZE - 8)) | u32::from(u16_at(PAGE_SIZE - 6)) << 16;
        match PAGE_SIZE.saturating_sub(special) {
            16 if mark == HASH_ID => Self::Hash,
            16 if mark == GIST_ID => Self::Gist,
            16 => Self::Btree,
            8 if mark == SPGIST_ID => Self::SpGist,
            8 if mark == BLOOM_ID => Self::Bloom,
            8 if BRIN_IDS.contains(&mark) => Self::Brin,
            8 if magic == SEQUENCE_MAGIC => Self::Sequence,
            8 => Self::Gin,
            _ => Self::Heap,
        }
    }

    /// Number of the resource manager whose mask hides what PostgreSQL does not log on such pages.
    pub fn masking_rmgr(self) -> Option<u8> {
        match self {
            Self::New => None,
            Self::Heap => Some(10),
            Self::Btree => Some(11),
            Self::Hash => Some(12),
            Self::Gin => Some(13),
            Self::Gist => Some(14),
            Self::Sequence => Some(15),
            Self::SpGist => Some(16),
            Self::Brin => Some(17),
            Self::Bloom => Some(20),
        }
    }
}

/// The first page of an SP-GiST index, which caches page numbers without logging them.
pub(super) fn is_spgist_meta(page: &[u8]) -> bool {
    let flags = u16::from_le_bytes([page[PAGE_SIZE - 8], page[PAGE_SIZE - 7]]);
    PageKind::of(page) == PageKind::SpGist && flags & SPGIST_META != 0
}
