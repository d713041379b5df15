use std::io;

use bytes::Bytes;
use object_store::{PutPayload, PutPayloadMut};

/// What an object is to consist of, in pieces, so that it need not lie in one stretch of memory.
#[derive(Debug, Clone, Default)]
pub struct Body(pub(crate) PutPayload);

/// Makes a [`Body`], which grows by a piece at a time: nothing is ever moved to make room, and nobody waits
/// for a thread that gets much memory at once.
#[derive(Debug)]
pub struct BodyWriter(PutPayloadMut);

/// As much memory as is got at a time.
const PIECE: usize = 256 << 10;

impl Body {
    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.0.content_length()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(bytes.into())
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl BodyWriter {
    /// With nothing in it yet.
    pub fn new() -> Self {
        Self(PutPayloadMut::new().with_block_size(PIECE))
    }

    /// What was written.
    pub fn finish(self) -> Body {
        Body(self.0.freeze())
    }
}

impl Default for BodyWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl io::Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_written_in_pieces_is_read_as_one() {
        let mut written = BodyWriter::new();
        let mut expected = Vec::new();
        for (number, len) in [1, PIECE - 2, 3, 0, 3 * PIECE, 5].into_iter().enumerate() {
            let part = vec![number as u8; len];
            written.write_all(&part).unwrap();
            expected.extend(part);
        }
        let body = written.finish();
        assert!(body.0.iter().count() > 2);
        assert_eq!(body.len(), expected.len());
        let read: Vec<_> = body.0.iter().flatten().copied().collect();
        assert_eq!(read, expected);
        assert!(BodyWriter::new().finish().is_empty());
    }
}
