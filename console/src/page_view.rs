//! A PostgreSQL page in words: its header, and where two versions of it differ.

use std::{fmt, ops::Range};

use palimpsest_types::{Lsn, PAGE_SIZE};
use serde::Serialize;

/// The header of a page (`PageHeaderData`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PageHeader {
    /// End of the last record that changed the page.
    pub(crate) lsn: Lsn,
    /// As written to the file; 0 while it is in memory, or if checksums are off.
    pub(crate) checksum: u16,
    /// Known flags by name, unknown ones as a number.
    pub(crate) flags: Vec<String>,
    /// End of the line pointers.
    pub(crate) lower: u16,
    /// Begin of the items.
    pub(crate) upper: u16,
    /// Begin of the access method's own part.
    pub(crate) special: u16,
    /// Page size as the page states it.
    pub(crate) page_size: u16,
    /// Version of the page layout.
    pub(crate) layout_version: u16,
    /// Oldest transaction whose row versions might be pruned.
    pub(crate) prune_xid: u32,
    /// All bytes are zero: the page has never been initialised.
    pub(crate) is_new: bool,
}

/// Bytes that differ, and what they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    /// First byte.
    pub(crate) from: usize,
    /// Byte after the last.
    pub(crate) to: usize,
    /// Part of the page.
    pub(crate) area: &'static str,
}

const HEADER_LEN: usize = 24;
const LINE_POINTER_LEN: usize = 4;
const FLAGS: [(u16, &str); 3] = [(1, "has-free-lines"), (2, "page-full"), (4, "all-visible")];
/// Differing bytes with fewer equal ones between them are shown as one range.
const GAP: usize = 4;

impl PageHeader {
    /// Reads the header of a page; `None` if these are too few bytes to be one.
    pub(crate) fn read(page: &[u8]) -> Option<Self> {
        let u16_at = |at: usize| Some(u16::from_le_bytes(page.get(at..at + 2)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(page.get(at..at + 4)?.try_into().ok()?));
        let size_and_version = u16_at(18)?;
        Some(Self {
            // The high half comes first.
            lsn: Lsn::new(u64::from(u32_at(0)?) << 32 | u64::from(u32_at(4)?)),
            checksum: u16_at(8)?,
            flags: flag_names(u16_at(10)?),
            lower: u16_at(12)?,
            upper: u16_at(14)?,
            special: u16_at(16)?,
            page_size: size_and_version & 0xFF00,
            layout_version: size_and_version & 0x00FF,
            prune_xid: u32_at(20)?,
            is_new: page.iter().all(|byte| *byte == 0),
        })
    }

    /// Names and values, for comparing two headers.
    pub(crate) fn fields(&self) -> [(&'static str, String); 8] {
        [
            ("lsn", self.lsn.to_string()),
            ("checksum", format!("{:#06x}", self.checksum)),
            ("flags", self.flag_text()),
            ("lower", self.lower.to_string()),
            ("upper", self.upper.to_string()),
            ("special", self.special.to_string()),
            ("layout", self.layout_version.to_string()),
            ("prune-xid", self.prune_xid.to_string()),
        ]
    }

    fn flag_text(&self) -> String {
        match self.flags.as_slice() {
            [] => "none".to_owned(),
            names => names.join("+"),
        }
    }

    /// The part of the page that holds a byte.
    fn area(&self, at: usize) -> &'static str {
        if at < HEADER_LEN {
            "header"
        } else if at < usize::from(self.lower) {
            "line pointers"
        } else if at < usize::from(self.upper) {
            "free space"
        } else if at < usize::from(self.special) {
            "items"
        } else {
            "special space"
        }
    }
}

impl fmt::Display for PageHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_new {
            return f.write_str("a new page: all zeros, never initialised");
        }
        let fields = self.fields();
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        let pointers = usize::from(self.lower).saturating_sub(HEADER_LEN) / LINE_POINTER_LEN;
        let free = self.upper.saturating_sub(self.lower);
        write!(
            f,
            "{}; {pointers} line pointers, {free} bytes free",
            fields.join(", ")
        )
    }
}

impl Difference {
    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.to - self.from
    }
}

fn flag_names(flags: u16) -> Vec<String> {
    let known = FLAGS.iter().filter(|(bit, _)| flags & bit != 0);
    let mut names: Vec<_> = known.map(|(_, name)| (*name).to_owned()).collect();
    let unknown = FLAGS.iter().fold(flags, |rest, (bit, _)| rest & !bit);
    if unknown != 0 {
        names.push(format!("{unknown:#x}"));
    }
    names
}

/// Where `new` differs from `old`; areas are those of `new`.
pub(crate) fn differences(old: &[u8], new: &[u8], header: &PageHeader) -> Vec<Difference> {
    let differs = |at: &usize| old.get(*at) != new.get(*at);
    let mut ranges: Vec<(Range<usize>, &'static str)> = Vec::new();
    for at in (0..PAGE_SIZE).filter(differs) {
        let area = header.area(at);
        match ranges.last_mut() {
            Some((last, its)) if *its == area && at - last.end < GAP => last.end = at + 1,
            _ => ranges.push((at..at + 1, area)),
        }
    }
    ranges
        .into_iter()
        .map(|(range, area)| Difference {
            from: range.start,
            to: range.end,
            area,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap_page() -> Vec<u8> {
        let mut page = vec![0; PAGE_SIZE];
        page[..24].copy_from_slice(&[
            1, 0, 0, 0, 0xF0, 0xA5, 0x0B, 0, 0x34, 0x12, 5, 0, 32, 0, 0xC0, 0x1F, 0, 0x20, 4, 0x20,
            7, 3, 0, 0,
        ]);
        page
    }

    #[test]
    fn reads_a_heap_page_header() {
        let header = PageHeader::read(&heap_page()).unwrap();
        assert_eq!(header.lsn, "1/BA5F0".parse().unwrap());
        assert_eq!(header.flags, ["has-free-lines", "all-visible"]);
        assert_eq!(
            (header.lower, header.upper, header.special),
            (32, 8128, 8192)
        );
        assert_eq!((header.page_size, header.layout_version), (8192, 4));
        assert_eq!(header.prune_xid, 775);
    }

    #[test]
    fn a_page_of_zeros_is_new_and_too_few_bytes_are_none() {
        let header = PageHeader::read(&[0; PAGE_SIZE]).unwrap();
        assert!(header.to_string().starts_with("a new page"));
        assert_eq!(PageHeader::read(&[0; 10]), None);
    }

    #[test]
    fn differences_close_together_in_one_area_are_one() {
        let old = heap_page();
        let mut new = old.clone();
        new[4] = 0;
        new[24] = 1;
        new[8000] = 1;
        new[8003] = 1;
        new[8190] = 1;
        let header = PageHeader::read(&new).unwrap();
        let found: Vec<_> = differences(&old, &new, &header)
            .into_iter()
            .map(|found| (found.from..found.to, found.area))
            .collect();
        assert_eq!(
            found,
            [
                (4..5, "header"),
                (24..25, "line pointers"),
                (8000..8004, "free space"),
                (8190..8191, "items"),
            ]
        );
    }
}
