//! Records about databases as a whole: copied as files, and dropped.

use std::collections::BTreeSet;

use palimpsest_types::Key;

use super::{Reason, changes::Changes};
use crate::{change::Value, record::DecodedRecord, v15};

const CREATE_FILE_COPY: u8 = 0x00;
const CREATE_WAL_LOG: u8 = 0x10;
const DROP: u8 = 0x20;

/// Relation forks that a cluster may have: their sizes are held in memory ([`RelationSizes::size`]). A
/// record of 40 bytes that copies a database can add as many as there are. Tests have less memory.
///
/// [`RelationSizes::size`]: crate::RelationSizes::size
pub(super) const MAX_FORKS: usize = if cfg!(test) { 1 << 12 } else { 1 << 24 };

/// A database has files in no more tablespaces: each makes a change, and all changes of a record are
/// held at once.
pub(super) const MAX_TABLESPACES: usize = 1 << 16;

impl Changes<'_> {
    pub(super) fn database(&mut self, record: &DecodedRecord) -> Result<(), Reason> {
        match record.header.rmgr_info() {
            CREATE_FILE_COPY => self.copy_database(v15::database_copied(&record.main_data)?),
            // It begins with what is there, which is nothing: what was before has been dropped. Its
            // relation map and pages follow as records of their own.
            CREATE_WAL_LOG => {}
            DROP => {
                let (db, tablespaces) = v15::database_dropped(&record.main_data)?;
                if tablespaces.len() > MAX_TABLESPACES {
                    return Err(Reason::TooManyTablespaces {
                        count: tablespaces.len(),
                        limit: MAX_TABLESPACES,
                    });
                }
                for spc in BTreeSet::from_iter(tablespaces) {
                    self.sizes.remove_database(spc, db);
                    self.torn.drop_database(spc, db);
                    self.push(Key::Database { spc, db }, Value::Dropped);
                }
            }
            unknown => return Err(Reason::UnknownRecord(unknown)),
        }
        Ok(())
    }

    /// As `dbase_redo` does: what was there is removed, then the files of the other are copied.
    fn copy_database(&mut self, copy: v15::DatabaseCopy) {
        let v15::DatabaseCopy { from, to } = copy;
        self.sizes.copy_database(from, to);
        self.torn.copy_database(from, to);
        let (spc, db) = to;
        let copied = Value::CopyOf {
            spc: from.0,
            db: from.1,
        };
        self.push(Key::Database { spc, db }, copied);
    }
}
