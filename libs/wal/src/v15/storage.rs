//! Records about files: storage, databases and relation maps
//! (`storage_xlog.h`, `dbcommands_xlog.h`, `relmapper.h`).

use bytes::Bytes;
use palimpsest_codec::{Cursor, TruncatedError};
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
pub(crate) fn relation_map(main_data: &Bytes) -> Result<(Oid, Oid, Bytes), TruncatedError> {
    let mut cursor = Cursor::new(main_data.clone());
    let db = cursor.u32("database")?;
    let spc = cursor.u32("tablespace")?;
    let len = cursor.u32("file length")? as usize;
    Ok((spc, db, cursor.bytes(len, "relation map file")?))
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
