//! Records about files: storage, databases and relation maps
//! (`storage_xlog.h`, `dbcommands_xlog.h`, `relmapper.h`).

use bytes::Bytes;
use palimpsest_codec::{Cursor, TruncatedError, crc32c};
use palimpsest_types::{BlockNumber, Fork, Oid, RelTag};

use crate::interpret::Reason;

/// `xl_smgr_truncate`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Truncation {
    /// New length of the main fork; the maps shrink accordingly.
    pub(crate) blocks: BlockNumber,
    /// The relation, as its main fork.
    pub(crate) rel: RelTag,
    /// Which forks shrink.
    pub(crate) heap: bool,
    pub(crate) visibility_map: bool,
    pub(crate) free_space_map: bool,
}

/// `xl_dbase_create_file_copy_rec`: of each, the tablespace and the database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DatabaseCopy {
    pub(crate) from: (Oid, Oid),
    pub(crate) to: (Oid, Oid),
}

/// `RELMAPPER_FILEMAGIC`.
const RELATION_MAP_MAGIC: u32 = 0x0059_2717;
const MAX_MAPPINGS: u32 = 62;
/// Bytes before the checksum.
const RELATION_MAP_CRC: usize = 8 + 8 * MAX_MAPPINGS as usize;
const RELATION_MAP_LEN: usize = RELATION_MAP_CRC + 4 + 4;

const TRUNCATE_HEAP: u32 = 0x1;
const TRUNCATE_VM: u32 = 0x2;
const TRUNCATE_FSM: u32 = 0x4;

/// `XLOG_SMGR_CREATE`: the fork that exists from now on.
pub(crate) fn created_fork(main_data: &Bytes) -> Result<RelTag, Reason> {
    let mut cursor = Cursor::new(main_data.clone());
    let rel = rel_file_node(&mut cursor)?;
    let fork = Fork::try_from(cursor.u32("fork")?)?;
    Ok(rel.with_fork(fork))
}

/// `XLOG_SMGR_TRUNCATE`.
pub(crate) fn truncation(main_data: &Bytes) -> Result<Truncation, TruncatedError> {
    let mut cursor = Cursor::new(main_data.clone());
    let blocks = BlockNumber::new(cursor.u32("block count")?);
    let rel = rel_file_node(&mut cursor)?;
    let flags = cursor.u32("truncate flags")?;
    Ok(Truncation {
        blocks,
        rel,
        heap: flags & TRUNCATE_HEAP != 0,
        visibility_map: flags & TRUNCATE_VM != 0,
        free_space_map: flags & TRUNCATE_FSM != 0,
    })
}

/// `XLOG_DBASE_CREATE_FILE_COPY`.
pub(crate) fn database_copied(main_data: &Bytes) -> Result<DatabaseCopy, TruncatedError> {
    let mut cursor = Cursor::new(main_data.clone());
    let db = cursor.u32("database")?;
    let spc = cursor.u32("tablespace")?;
    let from_db = cursor.u32("database copied")?;
    let from_spc = cursor.u32("tablespace copied from")?;
    Ok(DatabaseCopy {
        from: (from_spc, from_db),
        to: (spc, db),
    })
}

/// `XLOG_DBASE_DROP`: the database, and the tablespaces it had files in.
pub(crate) fn database_dropped(main_data: &Bytes) -> Result<(Oid, Vec<Oid>), TruncatedError> {
    let mut cursor = Cursor::new(main_data.clone());
    let db = cursor.u32("database")?;
    let count = cursor.u32("tablespace count")?;
    let tablespaces = (0..count)
        .map(|_| cursor.u32("tablespace"))
        .collect::<Result<_, _>>()?;
    Ok((db, tablespaces))
}

/// `XLOG_RELMAP_UPDATE`: database, tablespace and the file's new content.
pub(crate) fn relation_map(main_data: &Bytes) -> Result<(Oid, Oid, Bytes), Reason> {
    let mut cursor = Cursor::new(main_data.clone());
    let db = cursor.u32("database")?;
    let spc = cursor.u32("tablespace")?;
    let len = cursor.u32("file length")? as usize;
    let content = cursor.bytes(len, "relation map file")?;
    match check_relation_map(&content) {
        None => Ok((spc, db, content)),
        Some(why) => Err(Reason::RelationMap { spc, db, why }),
    }
}

/// What is wrong with a relation map file, as `read_relmap_file` would find (`RelMapFile`: magic,
/// number of mappings, mappings, checksum, padding).
fn check_relation_map(content: &Bytes) -> Option<&'static str> {
    if content.len() != RELATION_MAP_LEN {
        return Some("it has another length");
    }
    let mut numbers = Cursor::new(content.clone());
    let mut number = |what| numbers.u32(what).unwrap_or_default();
    if number("magic") != RELATION_MAP_MAGIC {
        return Some("it begins with another magic");
    }
    if number("number of mappings") > MAX_MAPPINGS {
        return Some("it claims too many mappings");
    }
    let (covered, stored) = content.split_at_checked(RELATION_MAP_CRC)?;
    match stored.first_chunk().map(|crc| u32::from_le_bytes(*crc)) == Some(crc32c(covered)) {
        true => None,
        false => Some("its checksum is wrong"),
    }
}

/// `RelFileNode`, as the main fork.
pub(super) fn rel_file_node(cursor: &mut Cursor) -> Result<RelTag, TruncatedError> {
    let spc = cursor.u32("tablespace")?;
    let db = cursor.u32("database")?;
    let rel = cursor.u32("relfilenode")?;
    Ok(RelTag {
        spc,
        db,
        rel,
        fork: Fork::Main,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(mappings: u32) -> Vec<u8> {
        let mut bytes = vec![0; RELATION_MAP_LEN];
        bytes[..4].copy_from_slice(&RELATION_MAP_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&mappings.to_le_bytes());
        bytes[8..12].copy_from_slice(&1259_u32.to_le_bytes());
        let crc = crc32c(&bytes[..RELATION_MAP_CRC]);
        bytes[RELATION_MAP_CRC..RELATION_MAP_CRC + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn update(map: &[u8]) -> Result<(Oid, Oid, Bytes), Reason> {
        let header = [5, 1663, map.len() as u32].map(u32::to_le_bytes).concat();
        relation_map(&[&header, map].concat().into())
    }

    #[test]
    fn a_relation_map_is_checked_as_its_file_would_be() {
        let whole = map(MAX_MAPPINGS);
        let (spc, db, content) = update(&whole).unwrap();
        assert_eq!((spc, db, &content[..]), (1663, 5, &whole[..]));
        for bit in 0..(RELATION_MAP_CRC + 4) * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = update(&damaged).unwrap_err();
            assert!(matches!(error, Reason::RelationMap { .. }), "bit {bit}");
        }
        for other in [map(MAX_MAPPINGS + 1), whole[..511].to_vec(), Vec::new()] {
            assert!(update(&other).is_err());
        }
    }
}
