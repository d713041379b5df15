//! The relation map file, `pg_filenode.map` (`relmapper.c`).
//!
//! ```text
//! 0     magic u32, number of mappings u32              8 bytes
//! 8     62 mappings: object id u32, file number u32  496 bytes
//! 504   CRC-32C of what is before                      4 bytes
//! 508   padding                                        4 bytes
//! ```

use bytes::Bytes;
use palimpsest_codec::{Cursor, crc32c};
use palimpsest_types::Oid;

const MAGIC: u32 = 0x0059_2717;
const MAX_MAPPINGS: u32 = 62;
const CRC_OFFSET: usize = 8 + MAX_MAPPINGS as usize * 8;

/// Where a mapped relation's pages are; `None` if the map does not have it.
pub(crate) fn file_of(map: &Bytes, oid: Oid) -> Result<Option<Oid>, &'static str> {
    let covered = map.get(..CRC_OFFSET).ok_or("it is too short")?;
    let stored = map.get(CRC_OFFSET..).and_then(<[u8]>::first_chunk);
    if stored.copied().map(u32::from_le_bytes) != Some(crc32c(covered)) {
        return Err("it fails its checksum");
    }
    let mut cursor = Cursor::new(map.clone());
    let mut word = || cursor.u32("relation map").map_err(|_| "it is too short");
    if word()? != MAGIC {
        return Err("it has another magic number");
    }
    let count = word()?;
    if count > MAX_MAPPINGS {
        return Err("it has too many mappings");
    }
    for _ in 0..count {
        let (mapped, file) = (word()?, word()?);
        if mapped == oid {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(crate) fn made_of(mappings: &[(Oid, Oid)]) -> Bytes {
    let mut words = vec![MAGIC, mappings.len() as u32];
    words.extend(mappings.iter().flat_map(|(oid, file)| [*oid, *file]));
    let mut map: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    map.resize(CRC_OFFSET, 0);
    map.extend(crc32c(&map).to_le_bytes());
    map.extend([0; 4]);
    map.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_what_is_mapped_and_believes_no_damage() {
        let map = made_of(&[(1259, 16400), (1249, 16401)]);
        assert_eq!(map.len(), 512);
        assert_eq!(file_of(&map, 1249), Ok(Some(16401)));
        assert_eq!(file_of(&map, 2615), Ok(None));
        let mut damaged = map.to_vec();
        damaged[9] ^= 1;
        assert!(file_of(&damaged.into(), 1249).is_err());
        assert!(file_of(&map.slice(..500), 1249).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_map_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = file_of(&bytes.into(), 1259);
        }
    }
}
