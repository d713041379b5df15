//! What a sequence writes before the state of its caller.
//!
//! ```text
//! 0   magic "PALS"                  4 bytes
//! 4   version                       u32 LE   1
//! 8   floor                         u64 LE   lowest number that may still exist
//! 16  CRC-32C of the 16 bytes above u32 LE
//! 20  the caller's state, to the end of the object
//! ```
//!
//! The state has a checksum of its own: whoever reads the floor need not understand the state.

use bytes::{BufMut, Bytes, BytesMut};
use palimpsest_codec::{Cursor, TruncatedError, crc32c};

/// An object that does not begin as one of a sequence.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It ends too early.
    #[error("the object ends too early")]
    Truncated(#[from] TruncatedError),
    /// It begins with something else.
    #[error("the object does not begin with a sequence header")]
    Magic,
    /// It is from before there was a floor.
    #[error(
        "the object was written by an earlier, unreleased version of palimpsest, whose data can't be read any more; start with an empty store and attach again"
    )]
    Unreleased,
    /// A later version of Palimpsest wrote it.
    #[error("the object has sequence version {0}, which this version can't read; use a newer one")]
    Version(u32),
    /// Its bytes have changed.
    #[error("the object's sequence header fails its checksum")]
    Checksum,
}

const MAGIC: [u8; 4] = *b"PALS";
const VERSION: u32 = 1;
/// Bytes that the checksum is over.
const CHECKED: usize = 16;
/// What objects began with while sequences had no header: a manifest's or the catalog's magic.
const UNRELEASED: [[u8; 4]; 2] = [*b"PALM", *b"PALC"];

/// The object for a state.
pub(super) fn join(floor: u64, state: &[u8]) -> Bytes {
    let mut object = BytesMut::with_capacity(CHECKED + 4 + state.len());
    object.put_slice(&MAGIC);
    object.put_u32_le(VERSION);
    object.put_u64_le(floor);
    let crc = crc32c(&object);
    object.put_u32_le(crc);
    object.put_slice(state);
    object.freeze()
}

/// The floor and the state of an object.
pub(super) fn split(object: &Bytes) -> Result<(u64, Bytes), HeaderError> {
    let mut cursor = Cursor::new(object.clone());
    let magic = cursor.array::<4>("magic")?;
    if UNRELEASED.contains(&magic) {
        return Err(HeaderError::Unreleased);
    }
    if magic != MAGIC {
        return Err(HeaderError::Magic);
    }
    let version = cursor.u32("version")?;
    if version != VERSION {
        return Err(HeaderError::Version(version));
    }
    let floor = cursor.u64("floor")?;
    let expected = cursor.u32("checksum")?;
    if object.get(..CHECKED).map(crc32c) != Some(expected) {
        return Err(HeaderError::Checksum);
    }
    let state = cursor.bytes(cursor.remaining(), "state")?;
    Ok((floor, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong_with_a_header() {
        let object = join(7, b"state");
        let (floor, state) = split(&object).unwrap();
        assert_eq!((floor, &state[..]), (7, &b"state"[..]));
        for len in 0..20 {
            let cut = split(&object.slice(..len));
            assert!(matches!(cut, Err(HeaderError::Truncated(_))), "{len}");
        }
        for at in 0..20 {
            let mut damaged = object.to_vec();
            damaged[at] ^= 1;
            assert!(split(&damaged.into()).is_err(), "{at}");
        }
    }

    #[test]
    fn an_object_from_before_the_first_release_is_named_as_such() {
        let old = crate::seal(*b"PALM", 1, &"a manifest").unwrap();
        assert!(matches!(split(&old), Err(HeaderError::Unreleased)));
    }
}
