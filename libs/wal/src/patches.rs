use bytes::{BufMut, Bytes};
use palimpsest_codec::{Cursor, TruncatedError};
use palimpsest_types::PAGE_SIZE;

/// Bytes that replace parts of a page, in the order of writing.
///
/// One form serves memory, files and messages: for each part its offset in the page u16, its length
/// u16 and its bytes, little-endian. Cloning shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagePatches(Bytes);

/// Collects [`PagePatches`].
#[derive(Debug, Default)]
pub(crate) struct PatchWriter {
    encoded: Vec<u8>,
    /// Where the last part's length stands in `encoded`, and where the part ends in the page.
    last: Option<(usize, usize)>,
}

/// Bytes that are not the patches of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPatchesError {
    /// Something is missing at the end.
    #[error(transparent)]
    Truncated(#[from] TruncatedError),
    /// A part would not be on the page.
    #[error("{len} bytes at {offset} do not fit on a page")]
    BeyondEnd {
        /// Where the part would begin.
        offset: u16,
        /// Its length.
        len: u16,
    },
}

impl PagePatches {
    /// Takes encoded patches.
    ///
    /// # Errors
    /// If they are cut short or would write beyond a page.
    pub fn decode(encoded: Bytes) -> Result<Self, InvalidPatchesError> {
        let mut cursor = Cursor::new(encoded.clone());
        while cursor.remaining() > 0 {
            let offset = cursor.u16("offset of a patch")?;
            let len = cursor.u16("length of a patch")?;
            if usize::from(offset) + usize::from(len) > PAGE_SIZE {
                return Err(InvalidPatchesError::BeyondEnd { offset, len });
            }
            cursor.skip(usize::from(len), "patch")?;
        }
        Ok(Self(encoded))
    }

    /// The encoded form.
    pub fn encoded(&self) -> &Bytes {
        &self.0
    }

    /// Writes them over a page; what a shorter one has no room for is left out.
    pub fn apply(&self, page: &mut [u8]) {
        let mut cursor = Cursor::new(self.0.clone());
        while let Ok((offset, patch)) = next_part(&mut cursor) {
            let part = page.get_mut(offset..).unwrap_or_default();
            for (old, new) in part.iter_mut().zip(patch) {
                *old = new;
            }
        }
    }
}

fn next_part(cursor: &mut Cursor) -> Result<(usize, Bytes), TruncatedError> {
    let offset = cursor.u16("offset of a patch")?;
    let len = cursor.u16("length of a patch")?;
    Ok((offset.into(), cursor.bytes(len.into(), "patch")?))
}

impl PatchWriter {
    /// Adds bytes at an offset; those that would be beyond the page's end are not there to be
    /// written. What begins where the part before ends is written together with it.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if end > PAGE_SIZE {
            return;
        }
        match self.last {
            Some((at, last_end)) if last_end == offset => {
                let start = at.checked_sub(2).and_then(|at| read_u16(&self.encoded, at));
                let len = end - usize::from(start.unwrap_or_default());
                if let Some(stored) = self.encoded.get_mut(at..at + 2) {
                    stored.copy_from_slice(&(len as u16).to_le_bytes());
                }
                self.last = Some((at, end));
            }
            Some(_) | None => {
                self.encoded.put_u16_le(offset as u16);
                self.last = Some((self.encoded.len(), end));
                self.encoded.put_u16_le(bytes.len() as u16);
            }
        }
        self.encoded.put_slice(bytes);
    }

    pub(crate) fn finish(self) -> PagePatches {
        PagePatches(self.encoded.into())
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_become_one_part() {
        let mut writer = PatchWriter::default();
        writer.write(10, &[1, 2]);
        writer.write(12, &[3]);
        writer.write(20, &[4]);
        writer.write(PAGE_SIZE, &[5]);
        let patches = writer.finish();
        let expected = [10, 0, 3, 0, 1, 2, 3, 20, 0, 1, 0, 4];
        assert_eq!(patches.encoded().as_ref(), expected);
    }

    proptest! {
        #[test]
        fn what_is_written_is_applied_in_order(
            parts in prop::collection::vec((0..PAGE_SIZE, prop::collection::vec(any::<u8>(), 1..9)), 0..20),
        ) {
            let mut expected = vec![7; PAGE_SIZE];
            let mut writer = PatchWriter::default();
            for (offset, bytes) in &parts {
                writer.write(*offset, bytes);
                if let Some(part) = expected.get_mut(*offset..offset + bytes.len()) {
                    part.copy_from_slice(bytes);
                }
            }
            let patches = writer.finish();
            let decoded = PagePatches::decode(patches.encoded().clone()).unwrap();
            prop_assert_eq!(&decoded, &patches);
            let mut page = vec![7; PAGE_SIZE];
            decoded.apply(&mut page);
            prop_assert_eq!(page, expected);
        }

        #[test]
        fn any_bytes_are_patches_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(patches) = PagePatches::decode(bytes.into()) {
                patches.apply(&mut vec![0; PAGE_SIZE]);
                patches.apply(&mut [0; 3]);
            }
        }
    }
}
