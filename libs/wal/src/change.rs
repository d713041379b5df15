use std::sync::Arc;

use bytes::Bytes;
use palimpsest_types::{BlockNumber, Key, Oid};

use crate::{
    clog::{TransactionEnd, Xid},
    patches::PagePatches,
    record::RawRecord,
};

/// A new version of one key. Its LSN is the end of the record that it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What changes.
    pub key: Key,
    /// Its new value, or how to get it from the value before.
    pub value: Value,
}

/// A version of a key. A record makes at most one for each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The page as it is from here on.
    Image(Bytes),
    /// A page of zeros.
    ZeroPage,
    /// The page before, with this record replayed on it.
    Record {
        /// The page before does not matter: the record builds the page from nothing.
        will_init: bool,
        /// The whole record; redo of splits needs all of it.
        record: RawRecord,
    },
    /// A visibility map page loses the bits of heap blocks from this one on.
    TruncateVisibilityMap {
        /// Length of the heap after the truncation.
        heap_blocks: BlockNumber,
    },
    /// Transactions on a page of `pg_xact` ended.
    TransactionsEnded {
        /// How they all did.
        end: TransactionEnd,
        /// Which; all on the page. Shared, because reading copies values.
        xids: Arc<[Xid]>,
    },
    /// Parts of the page before get other bytes.
    Patched(PagePatches),
    /// The relation fork, or segment of an SLRU area, has this many blocks.
    RelSize(BlockNumber),
    /// A file's whole content.
    File(Bytes),
    /// All that a database has in a tablespace is what another had just before this change, until
    /// it changes.
    CopyOf {
        /// Tablespace of the other.
        spc: Oid,
        /// The other database, which may be the same one in another tablespace.
        db: Oid,
    },
    /// The relation fork, segment or file does not exist any more; of a database, nothing that it
    /// had in the tablespace does.
    Dropped,
}

impl Value {
    /// True if no earlier version is needed to read this one.
    pub fn stands_alone(&self) -> bool {
        match self {
            Self::Record { will_init, .. } => *will_init,
            Self::TruncateVisibilityMap { .. }
            | Self::TransactionsEnded { .. }
            | Self::Patched(_) => false,
            Self::Image(_)
            | Self::ZeroPage
            | Self::RelSize(_)
            | Self::File(_)
            | Self::CopyOf { .. }
            | Self::Dropped => true,
        }
    }

    /// Bytes in memory that belong to this value alone, beside the value itself.
    pub fn own_bytes(&self) -> u64 {
        match self {
            Self::Image(bytes) | Self::File(bytes) => bytes.len() as u64,
            Self::Patched(patches) => patches.encoded().len() as u64,
            Self::TransactionsEnded { xids, .. } => size_of_val::<[_]>(xids) as u64,
            Self::ZeroPage
            | Self::Record { .. }
            | Self::TruncateVisibilityMap { .. }
            | Self::RelSize(_)
            | Self::CopyOf { .. }
            | Self::Dropped => 0,
        }
    }

    /// Bytes of its record, which all values of one record may share.
    pub fn record_bytes(&self) -> u64 {
        match self {
            Self::Record { record, .. } => record.bytes.len() as u64,
            _ => 0,
        }
    }
}
