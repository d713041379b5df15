use bytes::Bytes;
use palimpsest_types::{BlockNumber, PAGE_SIZE, RelTag};
use palimpsest_wal::Value;

/// A page's history up to an LSN, as far back as is needed to build the page.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Relation fork of the page.
    pub rel: RelTag,
    /// The page.
    pub block: BlockNumber,
    /// The newest whole page before the changes; `None` if the first change stands alone.
    pub base: Option<Bytes>,
    /// Changes since, oldest first.
    pub changes: Vec<Value>,
}

/// A chain that does not lead to a page: versions are missing or of the wrong kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChainError {
    /// Neither a base nor a first change that stands alone.
    #[error("no version of {rel} block {block} is old enough to begin with")]
    NoBase {
        /// The relation fork.
        rel: RelTag,
        /// The page.
        block: BlockNumber,
    },
    /// A value in the chain is not a version of a page.
    #[error("{rel} block {block} has a version that is not a page")]
    NotAPage {
        /// The relation fork.
        rel: RelTag,
        /// The page.
        block: BlockNumber,
    },
}

impl Chain {
    /// Drops everything before the newest change that stands alone.
    pub(crate) fn shortened(mut self) -> Self {
        if let Some(first) = self.changes.iter().rposition(Value::stands_alone) {
            self.changes.drain(..first);
            self.base = None;
        }
        self
    }

    pub(crate) fn no_base(&self) -> InvalidChainError {
        InvalidChainError::NoBase {
            rel: self.rel,
            block: self.block,
        }
    }

    pub(crate) fn not_a_page(&self) -> InvalidChainError {
        InvalidChainError::NotAPage {
            rel: self.rel,
            block: self.block,
        }
    }
}

/// A page of zeros, as a relation has where nothing was ever written.
pub(crate) fn zero_page() -> Bytes {
    static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
    Bytes::from_static(&ZEROS)
}
