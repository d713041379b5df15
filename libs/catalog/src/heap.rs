//! Rows on a heap page (`bufpage.h`, `itemid.h`, `htup_details.h`), within bounds.

use bytes::Bytes;
use palimpsest_types::PAGE_SIZE;
use palimpsest_wal::Xid;

/// A row version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tuple {
    /// Who wrote and who deleted it.
    pub(crate) header: TupleHeader,
    /// Its columns.
    pub(crate) data: Bytes,
}

/// What decides whether a row version is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TupleHeader {
    /// The transaction that wrote it.
    pub(crate) xmin: Xid,
    /// The transaction that deleted or locked it; 0 for none.
    pub(crate) xmax: Xid,
    /// `t_infomask`.
    pub(crate) infomask: u16,
}

const PAGE_HEADER_LEN: usize = 24;
const LOWER_OFFSET: usize = 12;
const LINE_POINTER_LEN: usize = 4;
const LP_NORMAL: u32 = 1;

const XMAX_OFFSET: usize = 4;
const INFOMASK_OFFSET: usize = 20;
const HOFF_OFFSET: usize = 22;
const TUPLE_HEADER_LEN: usize = 23;

/// All row versions of a page: what redirects and dead pointers stand for is found as itself or gone.
pub(crate) fn tuples(page: &Bytes) -> Result<Vec<Tuple>, &'static str> {
    if page.len() != PAGE_SIZE {
        return Err("it is not a page long");
    }
    let lower = usize::from(u16_at(page, LOWER_OFFSET).unwrap_or_default());
    // A page of zeros was added to the relation and never used.
    if lower == 0 {
        return Ok(Vec::new());
    }
    if !(PAGE_HEADER_LEN..=PAGE_SIZE).contains(&lower) {
        return Err("its line pointers are out of bounds");
    }
    let count = (lower - PAGE_HEADER_LEN) / LINE_POINTER_LEN;
    let pointers = (0..count).map(|index| PAGE_HEADER_LEN + index * LINE_POINTER_LEN);
    pointers
        .filter_map(|at| tuple_at(page, at).transpose())
        .collect()
}

/// The row version that the line pointer at `at` points to, if it is in use.
fn tuple_at(page: &Bytes, at: usize) -> Result<Option<Tuple>, &'static str> {
    let pointer = u32_at(page, at).ok_or("a line pointer is out of bounds")?;
    // Fifteen bits of offset, two of state, fifteen of length.
    let (offset, state, len) = (pointer & 0x7FFF, pointer >> 15 & 3, pointer >> 17);
    if state != LP_NORMAL {
        return Ok(None);
    }
    let (start, end) = (offset as usize, (offset + len) as usize);
    if end > page.len() {
        return Err("a row is out of bounds");
    }
    let bytes = page.slice(start..end);
    let (Some(xmin), Some(xmax), Some(infomask), Some(hoff)) = (
        u32_at(&bytes, 0),
        u32_at(&bytes, XMAX_OFFSET),
        u16_at(&bytes, INFOMASK_OFFSET),
        bytes.get(HOFF_OFFSET),
    ) else {
        return Err("a row is too short for its header");
    };
    let data_offset = usize::from(*hoff);
    if !(TUPLE_HEADER_LEN..=bytes.len()).contains(&data_offset) {
        return Err("a row's columns are out of bounds");
    }
    Ok(Some(Tuple {
        header: TupleHeader {
            xmin,
            xmax,
            infomask,
        },
        data: bytes.slice(data_offset..),
    }))
}

/// A little-endian number, if there are enough bytes.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

/// A page of these row versions, each with a header of 24 bytes.
#[cfg(test)]
pub(crate) fn page_of(rows: &[(TupleHeader, Vec<u8>)]) -> Bytes {
    const HOFF: usize = 24;
    let mut page = vec![0; PAGE_SIZE];
    let mut upper = PAGE_SIZE;
    for (index, (header, data)) in rows.iter().enumerate() {
        let len = HOFF + data.len();
        upper = (upper - len) & !7;
        let tuple = &mut page[upper..upper + len];
        tuple[..4].copy_from_slice(&header.xmin.to_le_bytes());
        tuple[4..8].copy_from_slice(&header.xmax.to_le_bytes());
        tuple[20..22].copy_from_slice(&header.infomask.to_le_bytes());
        tuple[22] = HOFF as u8;
        tuple[HOFF..].copy_from_slice(data);
        let pointer = upper as u32 | LP_NORMAL << 15 | (len as u32) << 17;
        let at = PAGE_HEADER_LEN + index * LINE_POINTER_LEN;
        page[at..at + 4].copy_from_slice(&pointer.to_le_bytes());
    }
    let lower = (PAGE_HEADER_LEN + rows.len() * LINE_POINTER_LEN) as u16;
    page[LOWER_OFFSET..LOWER_OFFSET + 2].copy_from_slice(&lower.to_le_bytes());
    page.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: TupleHeader = TupleHeader {
        xmin: 700,
        xmax: 701,
        infomask: 0x0900,
    };

    #[test]
    fn reads_back_what_a_page_holds() {
        let rows = vec![(HEADER, vec![1, 2, 3]), (HEADER, vec![4; 100])];
        let found = tuples(&page_of(&rows)).unwrap();
        let found: Vec<_> = found
            .into_iter()
            .map(|tuple| (tuple.header, tuple.data.to_vec()))
            .collect();
        assert_eq!(found, rows);
        assert_eq!(tuples(&vec![0; PAGE_SIZE].into()), Ok(vec![]));
        assert!(tuples(&vec![0; 100].into()).is_err());
    }

    #[test]
    fn pointers_that_are_not_in_use_are_no_rows() {
        for state in [0, 2, 3] {
            let mut page = page_of(&[(HEADER, vec![1])]).to_vec();
            page[25] = page[25] & 0x7F | (state & 1) << 7;
            page[26] = page[26] & 0xFE | state >> 1;
            assert_eq!(tuples(&page.into()), Ok(vec![]));
        }
    }

    proptest! {
        #[test]
        fn any_page_is_rows_or_an_error(
            lower: u16,
            bytes in proptest::collection::vec(any::<u8>(), 64),
        ) {
            let mut page = bytes.repeat(PAGE_SIZE / 64);
            page[LOWER_OFFSET..LOWER_OFFSET + 2].copy_from_slice(&lower.to_le_bytes());
            let _ = tuples(&page.into());
        }

        #[test]
        fn a_flipped_byte_is_survived(at in 0..PAGE_SIZE, to: u8) {
            let mut page = page_of(&[(HEADER, vec![7; 200]), (HEADER, vec![8; 90])]).to_vec();
            page[at] = to;
            let _ = tuples(&page.into());
        }
    }
}
