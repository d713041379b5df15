use bytes::Bytes;

/// A position in a byte buffer, moved forward by checked little-endian reads.
#[derive(Debug, Clone)]
pub struct Cursor {
    bytes: Bytes,
    position: usize,
}

/// The buffer ended before the value that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {offset} needs {wanted} bytes, {available} left")]
pub struct TruncatedError {
    /// What was being read.
    pub what: &'static str,
    /// Where it began.
    pub offset: usize,
    /// How many bytes it needs.
    pub wanted: usize,
    /// How many were left.
    pub available: usize,
}

impl Cursor {
    /// A cursor at the beginning of `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, position: 0 }
    }

    /// How far it has read.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `len` bytes, sharing the buffer.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<Bytes, TruncatedError> {
        let available = self.remaining();
        if len > available {
            let offset = self.position;
            return Err(TruncatedError {
                what,
                offset,
                wanted: len,
                available,
            });
        }
        let start = self.position;
        self.position += len;
        Ok(self.bytes.slice(start..self.position))
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], TruncatedError> {
        let slice = self
            .bytes
            .get(self.position..)
            .and_then(|rest| rest.first_chunk::<N>());
        let Some(array) = slice.copied() else {
            let (offset, available) = (self.position, self.remaining());
            return Err(TruncatedError {
                what,
                offset,
                wanted: N,
                available,
            });
        };
        self.position += N;
        Ok(array)
    }

    /// A byte.
    ///
    /// # Errors
    /// If none is left.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, TruncatedError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// A little-endian 16-bit number.
    ///
    /// # Errors
    /// If fewer than 2 bytes are left.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, TruncatedError> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// A little-endian 32-bit number.
    ///
    /// # Errors
    /// If fewer than 4 bytes are left.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, TruncatedError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// A little-endian 64-bit number.
    ///
    /// # Errors
    /// If fewer than 8 bytes are left.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, TruncatedError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Moves past `len` bytes.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn skip(&mut self, len: usize, what: &'static str) -> Result<(), TruncatedError> {
        self.bytes(len, what).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_in_order_and_stops_at_the_end() {
        let mut cursor = Cursor::new(Bytes::from_static(&[1, 2, 0, 3, 0, 0, 0]));
        assert_eq!(cursor.u8("a"), Ok(1));
        assert_eq!(cursor.u16("b"), Ok(2));
        assert_eq!(cursor.u32("c"), Ok(3));
        let error = cursor.u64("d").unwrap_err();
        assert_eq!((error.offset, error.wanted, error.available), (7, 8, 0));
        assert_eq!(cursor.position(), 7);
    }

    #[test]
    fn a_claim_beyond_the_end_is_an_error_and_moves_nothing() {
        let mut cursor = Cursor::new(Bytes::from_static(&[0; 4]));
        assert!(cursor.bytes(usize::MAX, "body").is_err());
        assert_eq!(cursor.remaining(), 4);
    }
}
