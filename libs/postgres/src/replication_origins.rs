//! `pg_logical/replorigin_checkpoint`: how far a cluster has replayed the origins that it replicates
//! from, as of a checkpoint (`origin.c`).
//!
//! | bytes         | field                                                             |
//! |---------------|-------------------------------------------------------------------|
//! | 0–3           | magic, `1257DADE`                                                 |
//! | 16 each       | origin u16, padding, position at the origin u64                   |
//! | the last four | CRC-32C of all before                                             |

use std::collections::BTreeMap;

use bytes::{BufMut as _, Bytes, BytesMut};
use palimpsest_codec::{Cursor, TruncatedError, crc32c};
use palimpsest_types::{ErrorKind, Lsn};

/// How far each replication origin is replayed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicationOrigins(BTreeMap<u16, Lsn>);

/// These bytes are not the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicationOriginsError {
    /// Too short, or cut in an origin.
    #[error("the file of replication origins is cut short")]
    Truncated(#[source] TruncatedError),
    /// Another file.
    #[error("the file of replication origins begins with {0:08x} instead of {MAGIC:08x}")]
    Magic(u32),
    /// Damaged.
    #[error(
        "the file of replication origins is damaged: its checksum is {found:08x} and should be {computed:08x}"
    )]
    Checksum {
        /// The checksum in the file.
        found: u32,
        /// That of its bytes.
        computed: u32,
    },
}

const MAGIC: u32 = 0x1257_DADE;
const MAGIC_LEN: usize = 4;
const CHECKSUM_LEN: usize = 4;
const ENTRY_LEN: usize = 16;
const PADDING: usize = 6;

impl ReplicationOrigins {
    /// The longest there is: an origin has a number of 16 bits.
    pub const MAX_LEN: usize = MAGIC_LEN + (ENTRY_LEN << u16::BITS) + CHECKSUM_LEN;

    /// Reads the file.
    ///
    /// # Errors
    /// If it is another or damaged.
    pub fn parse(bytes: &Bytes) -> Result<Self, ReplicationOriginsError> {
        let mut cursor = Cursor::new(bytes.clone());
        let magic = cursor.u32("magic")?;
        if magic != MAGIC {
            return Err(ReplicationOriginsError::Magic(magic));
        }
        let mut origins = BTreeMap::new();
        while cursor.remaining() > CHECKSUM_LEN {
            let origin = cursor.u16("replication origin")?;
            cursor.skip(PADDING, "padding")?;
            origins.insert(origin, Lsn::new(cursor.u64("position at the origin")?));
        }
        let computed = crc32c(bytes.get(..cursor.position()).unwrap_or_default());
        let found = cursor.u32("checksum")?;
        if found != computed {
            return Err(ReplicationOriginsError::Checksum { found, computed });
        }
        Ok(Self(origins))
    }

    /// The file.
    pub fn to_bytes(&self) -> Bytes {
        let len = MAGIC_LEN + ENTRY_LEN * self.0.len() + CHECKSUM_LEN;
        let mut bytes = BytesMut::with_capacity(len);
        bytes.put_u32_le(MAGIC);
        for (origin, up_to) in self.iter() {
            bytes.put_u16_le(origin);
            bytes.put_bytes(0, PADDING);
            bytes.put_u64_le(up_to.get());
        }
        let crc = crc32c(&bytes);
        bytes.put_u32_le(crc);
        bytes.freeze()
    }

    /// Each origin's number, and how far it is replayed there.
    pub fn iter(&self) -> impl Iterator<Item = (u16, Lsn)> + '_ {
        self.0.iter().map(|(origin, up_to)| (*origin, *up_to))
    }
}

impl FromIterator<(u16, Lsn)> for ReplicationOrigins {
    fn from_iter<I: IntoIterator<Item = (u16, Lsn)>>(origins: I) -> Self {
        Self(origins.into_iter().collect())
    }
}

impl ReplicationOriginsError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

impl From<TruncatedError> for ReplicationOriginsError {
    fn from(error: TruncatedError) -> Self {
        Self::Truncated(error)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(origins: &[(u16, u64)]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        for (origin, up_to) in origins {
            bytes.extend(origin.to_le_bytes());
            bytes.extend([0; PADDING]);
            bytes.extend(up_to.to_le_bytes());
        }
        let crc = crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<ReplicationOrigins, ReplicationOriginsError> {
        ReplicationOrigins::parse(&Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn every_origin_comes_back() {
        let origins = [(1, 0x300_0028), (7, u64::MAX)];
        let found = parse(&file(&origins)).unwrap();
        let expected = origins.map(|(origin, up_to)| (origin, Lsn::new(up_to)));
        assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        assert_eq!(parse(&file(&[])), Ok(ReplicationOrigins::default()));
        assert_eq!(found.to_bytes(), file(&origins));
        let again: ReplicationOrigins = expected.into_iter().collect();
        assert_eq!(again, found);
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_found() {
        let bytes = file(&[(1, 2), (3, 4)]);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&damaged).is_err(), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_origins_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(magic) = bytes.first_chunk_mut() {
                *magic = MAGIC.to_le_bytes();
            }
            let crc = crc32c(&bytes);
            bytes.extend(crc.to_le_bytes());
            let _ = parse(&bytes);
        }
    }
}
