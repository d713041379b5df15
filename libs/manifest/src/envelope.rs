use bytes::{BufMut, Bytes, BytesMut};
use palimpsest_codec::{Cursor, TruncatedError, crc32c};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes that are not the state object they should be.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It ends too early.
    #[error("the object ends too early")]
    Truncated(#[from] TruncatedError),
    /// It begins with something else.
    #[error("the object does not begin with {expected:?}")]
    Magic {
        /// What it should begin with.
        expected: [u8; 4],
    },
    /// A later version of Palimpsest wrote it.
    #[error("the object has version {0}, which this version can't read")]
    Version(u32),
    /// Its bytes have changed.
    #[error("the object fails its checksum")]
    Checksum,
    /// Its body is not what the version says.
    #[error("the object's body can't be read")]
    Body(#[source] serde_json::Error),
}

/// Wraps a state as an object: magic, version u32, crc32c of the body u32, then the body as JSON.
///
/// # Errors
/// If the state can't be written as JSON.
pub fn seal<T: Serialize>(
    magic: [u8; 4],
    version: u32,
    state: &T,
) -> Result<Bytes, serde_json::Error> {
    Ok(seal_body(magic, version, &serde_json::to_vec(state)?))
}

/// Wraps a body that is JSON already.
pub(crate) fn seal_body(magic: [u8; 4], version: u32, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(12 + body.len());
    bytes.put_slice(&magic);
    bytes.put_u32_le(version);
    bytes.put_u32_le(crc32c(body));
    bytes.put_slice(body);
    bytes.freeze()
}

/// Unwraps what [`seal`] wrote.
///
/// # Errors
/// If it is damaged, something else, or of another version.
pub fn open<T: DeserializeOwned>(
    magic: [u8; 4],
    version: u32,
    object: &Bytes,
) -> Result<T, EnvelopeError> {
    let mut cursor = Cursor::new(object.clone());
    if cursor.array::<4>("magic")? != magic {
        return Err(EnvelopeError::Magic { expected: magic });
    }
    let found = cursor.u32("version")?;
    if found != version {
        return Err(EnvelopeError::Version(found));
    }
    let crc = cursor.u32("checksum")?;
    let body = cursor.bytes(cursor.remaining(), "body")?;
    if crc32c(&body) != crc {
        return Err(EnvelopeError::Checksum);
    }
    serde_json::from_slice(&body).map_err(EnvelopeError::Body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong_with_an_object() {
        let object = seal(*b"TEST", 3, &vec![1, 2, 3]).unwrap();
        assert_eq!(open::<Vec<u32>>(*b"TEST", 3, &object).unwrap(), [1, 2, 3]);
        let error =
            |magic, version, object: &Bytes| open::<Vec<u32>>(magic, version, object).unwrap_err();
        assert!(matches!(
            error(*b"NOPE", 3, &object),
            EnvelopeError::Magic { .. }
        ));
        assert!(matches!(
            error(*b"TEST", 2, &object),
            EnvelopeError::Version(3)
        ));
        assert!(matches!(
            error(*b"TEST", 3, &object.slice(..7)),
            EnvelopeError::Truncated(_)
        ));
        let mut damaged = Vec::from(object);
        damaged[13] ^= 1;
        assert!(matches!(
            error(*b"TEST", 3, &damaged.into()),
            EnvelopeError::Checksum
        ));
    }
}
