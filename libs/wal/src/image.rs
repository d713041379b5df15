use bytes::Bytes;
use palimpsest_types::{Lsn, PAGE_SIZE};

use crate::pglz;

/// A full-page image in a record: the page without its hole, perhaps compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockImage {
    pub(crate) bytes: Bytes,
    pub(crate) stored_len: u16,
    pub(crate) hole_offset: u16,
    pub(crate) hole_len: u16,
    pub(crate) compression: Compression,
    /// Redo puts this image in the page's place. False for images that only serve
    /// `wal_consistency_checking`.
    pub apply: bool,
}

/// How an image is compressed (`wal_compression`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Pglz,
    Lz4,
    Zstd,
}

/// An image does not decompress to a page without its hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a page image does not decompress to the {expected} bytes it must have")]
pub struct ImageError {
    expected: usize,
}

/// Where `pd_upper` stands in a page; zero in a page never initialised (`PageIsNew`).
const PD_UPPER: std::ops::Range<usize> = 14..16;

/// The page that an image stands for, with its hole and with `pd_lsn` set to `end_lsn`.
///
/// As `RestoreBlockImage` and then `PageSetLSN`, which redo leaves out on a new page.
///
/// # Errors
/// If the image does not decompress to exactly one page.
pub fn restore_image(image: &BlockImage, end_lsn: Lsn) -> Result<Bytes, ImageError> {
    let hole_len = usize::from(image.hole_len);
    let expected = PAGE_SIZE
        .checked_sub(hole_len)
        .ok_or(ImageError { expected: 0 })?;
    let mut page = vec![0; PAGE_SIZE];
    let body = page.get_mut(..expected).ok_or(ImageError { expected })?;
    decompress(image, body).ok_or(ImageError { expected })?;
    if hole_len > 0 {
        let hole = usize::from(image.hole_offset);
        page.copy_within(hole..expected, hole + hole_len);
        page[hole..hole + hole_len].fill(0);
    }
    if page[PD_UPPER] != [0, 0] {
        page[..8].copy_from_slice(&lsn_on_page(end_lsn));
    }
    Ok(page.into())
}

/// Fills `body` wholly, or says that it can't.
fn decompress(image: &BlockImage, body: &mut [u8]) -> Option<()> {
    let expected = body.len();
    let filled = match image.compression {
        Compression::None => {
            body.copy_from_slice(image.bytes.get(..expected)?);
            image.bytes.len()
        }
        Compression::Pglz => pglz::decompress(&image.bytes, body)?,
        Compression::Lz4 => lz4_flex::block::decompress_into(&image.bytes, body).ok()?,
        Compression::Zstd => zstd::bulk::decompress_to_buffer(&image.bytes, body).ok()?,
    };
    (filled == expected).then_some(())
}

/// `PageXLogRecPtr`: high word first, each little-endian.
pub(crate) const fn lsn_on_page(lsn: Lsn) -> [u8; 8] {
    let [l0, l1, l2, l3, h0, h1, h2, h3] = lsn.get().to_le_bytes();
    [h0, h1, h2, h3, l0, l1, l2, l3]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page() -> Vec<u8> {
        let mut page: Vec<u8> = (0..PAGE_SIZE).map(|i| (i / 7) as u8).collect();
        page[PD_UPPER].copy_from_slice(&[0, 2]);
        page[100..612].fill(0);
        page
    }

    fn image(compression: Compression, compress: impl Fn(&[u8]) -> Vec<u8>) -> BlockImage {
        let mut body = page();
        body.drain(100..612);
        let bytes = compress(&body);
        let stored_len = bytes.len() as u16;
        BlockImage {
            bytes: bytes.into(),
            stored_len,
            hole_offset: 100,
            hole_len: 512,
            compression,
            apply: true,
        }
    }

    fn assert_restores(image: &BlockImage) {
        let restored = restore_image(image, Lsn::new(0x1_0000_0002)).unwrap();
        assert_eq!(restored[..8], [1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(restored[8..], page()[8..]);
    }

    #[test]
    fn puts_the_hole_back_whatever_the_compression() {
        assert_restores(&image(Compression::None, <[u8]>::to_vec));
        assert_restores(&image(Compression::Lz4, lz4_flex::block::compress));
        assert_restores(&image(Compression::Zstd, |b| {
            zstd::bulk::compress(b, 1).unwrap()
        }));
    }

    #[test]
    fn an_image_of_a_new_page_keeps_a_zero_lsn() {
        let bytes = Bytes::from_static(&[]);
        let (hole_offset, hole_len) = (0, PAGE_SIZE as u16);
        let compression = Compression::None;
        let image = BlockImage {
            bytes,
            stored_len: 0,
            hole_offset,
            hole_len,
            compression,
            apply: true,
        };
        assert_eq!(restore_image(&image, Lsn::MAX).unwrap(), vec![0; PAGE_SIZE]);
    }

    proptest! {
        #[test]
        fn hostile_images_are_errors(bytes: Vec<u8>, hole_len in 0u16..=8192, kind in 0..4) {
            let compression = match kind {
                0 => Compression::None,
                1 => Compression::Pglz,
                2 => Compression::Lz4,
                _ => Compression::Zstd,
            };
            let stored_len = bytes.len() as u16;
            let bytes = bytes.into();
            let image =
                BlockImage { bytes, stored_len, hole_offset: 0, hole_len, compression, apply: true };
            let _ = restore_image(&image, Lsn::ZERO);
        }
    }
}
