use std::fmt;

use palimpsest_types::WriterEpoch;

use crate::{
    error::ManifestError,
    timeline::{CompactorEpoch, TimelineManifest},
};

/// On whose behalf a manifest is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publisher {
    /// The timeline's writer of this generation.
    Writer(WriterEpoch),
    /// The timeline's compactor of this generation.
    Compactor(CompactorEpoch),
    /// A storage-broker, which only sets and removes pins. There may be several: each of their
    /// changes stands alone.
    Broker,
}

impl Publisher {
    /// Whether this manifest still lets it publish.
    pub(crate) fn check(self, manifest: &TimelineManifest) -> Result<(), ManifestError> {
        let newest = match self {
            Self::Writer(_) => Self::Writer(manifest.writer_epoch),
            Self::Compactor(_) => Self::Compactor(manifest.compactor_epoch),
            Self::Broker => Self::Broker,
        };
        if newest == self {
            Ok(())
        } else {
            Err(ManifestError::Superseded { ours: self, newest })
        }
    }
}

impl From<WriterEpoch> for Publisher {
    fn from(epoch: WriterEpoch) -> Self {
        Self::Writer(epoch)
    }
}

impl From<CompactorEpoch> for Publisher {
    fn from(epoch: CompactorEpoch) -> Self {
        Self::Compactor(epoch)
    }
}

impl fmt::Display for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Writer(epoch) => write!(f, "the writer of epoch {epoch}"),
            Self::Compactor(epoch) => write!(f, "the compactor of epoch {epoch}"),
            Self::Broker => f.write_str("the storage-broker"),
        }
    }
}
