use palimpsest_codec::{TruncatedError, crc32c};
use palimpsest_types::InvalidKeyError;

use super::index::BlockNo;

/// Bytes that are not the delta layer they should be. Another copy of the file may be whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeltaLayerError {
    /// The file is something else.
    #[error("the file is not a delta layer, which would begin with PALDELTA")]
    Magic,
    /// The file was written by a newer program.
    #[error("the delta layer has format version {found}; this program reads version {known} only")]
    Version {
        /// What the file says.
        found: u32,
        /// What this program knows.
        known: u32,
    },
    /// Something is missing at the end.
    #[error(transparent)]
    Truncated(#[from] TruncatedError),
    /// A checksum does not match.
    #[error("the {what} fails its checksum: {found:08X} computed, {stored:08X} stored")]
    Checksum {
        /// Which part.
        what: &'static str,
        /// In the file.
        stored: u32,
        /// Over the bytes.
        found: u32,
    },
    /// A key is unknown to this version.
    #[error(transparent)]
    Key(#[from] InvalidKeyError),
    /// Parts of the file contradict each other.
    #[error("the {what} is malformed: {problem}")]
    Malformed {
        /// Which part.
        what: &'static str,
        /// What can't be.
        problem: &'static str,
    },
    /// A block's lengths can't be those of a block, so nothing is allocated for it.
    #[error("a block of {stored} bytes and {items} entries or records can't hold {raw} bytes")]
    BlockLength {
        /// Length in the file.
        stored: u32,
        /// Length unpacked, as the index claims.
        raw: u32,
        /// What is in it, as the index claims.
        items: u32,
    },
    /// The block asked for belongs to another layer or section.
    #[error("block {0} is not a block of this section of this delta layer")]
    NoBlock(BlockNo),
}

/// Compares the checksum of a part with the one stored for it.
pub(super) fn check(what: &'static str, bytes: &[u8], stored: u32) -> Result<(), DeltaLayerError> {
    let found = crc32c(bytes);
    if found == stored {
        Ok(())
    } else {
        Err(DeltaLayerError::Checksum {
            what,
            stored,
            found,
        })
    }
}

/// Says what can't be, if it is.
pub(super) fn ensure(
    possible: bool,
    what: &'static str,
    problem: &'static str,
) -> Result<(), DeltaLayerError> {
    if possible {
        Ok(())
    } else {
        Err(DeltaLayerError::Malformed { what, problem })
    }
}
