use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{
    ByteCount, ErrorKind, Lsn, SystemIdentifier, TenantId, TimelineId, WriterEpoch,
};
use serde::{Deserialize, Serialize};

use crate::{
    envelope::{EnvelopeError, open, seal},
    sequence::{Sequence, SequenceError, Versioned},
};

/// What a timeline consists of in the object store. One object decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimelineManifest {
    /// Differs in every manifest ever written, so that a writer recognises its own.
    pub nonce: u128,
    /// Generation of the writer; a lower one may not publish any more.
    pub writer_epoch: WriterEpoch,
    /// The layers below hold all versions up to here (`remote_consistent`).
    pub lsn: Lsn,
    /// The oldest LSN that can be read: the end of the base backup, before which pages are torn.
    pub oldest_readable: Lsn,
    /// The cluster that the timeline came from.
    pub source: SourceCluster,
    /// Layers, all of them in the object store already.
    pub layers: Vec<LayerEntry>,
}

/// What is fixed about a PostgreSQL cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceCluster {
    /// From its control file.
    pub system_identifier: SystemIdentifier,
    /// 15 for PostgreSQL 15.
    pub pg_version: u32,
    /// The PostgreSQL timeline that the base backup was taken on.
    pub pg_timeline: u32,
    /// Size of its WAL segment files.
    pub wal_segment_size: ByteCount,
    /// Some records set page LSNs only if `wal_log_hints` or data checksums are on.
    pub wal_log_hints: bool,
}

/// One image layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerEntry {
    /// File name below the timeline's `layers`; holds the epoch and a random part, never reused.
    pub name: String,
    /// LSN of its versions.
    pub lsn: Lsn,
    /// Length of the file.
    pub size: ByteCount,
}

/// The manifests of one timeline.
#[derive(Debug, Clone)]
pub struct TimelineManifests {
    sequence: Sequence,
}

/// A manifest could not be read or published.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Reading or replacing the object failed.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// The object is damaged or of another version.
    #[error("manifest number {number} can't be read")]
    Damaged {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        #[source]
        source: EnvelopeError,
    },
    /// The manifest could not be written down.
    #[error("the manifest can't be encoded")]
    Encode(#[source] serde_json::Error),
}

const MAGIC: [u8; 4] = *b"PALM";
const VERSION: u32 = 1;

impl ManifestError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Sequence(error) => error.kind(),
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Encode(_) => ErrorKind::Internal,
        }
    }
}

impl TimelineManifests {
    /// Those of this timeline.
    pub fn new(store: ObjectStore, tenant: TenantId, timeline: TimelineId) -> Self {
        let path = StorePath::timeline(tenant, timeline).child("manifest");
        Self {
            sequence: Sequence::new(store, path),
        }
    }

    /// The newest manifest; `None` until the base backup is complete.
    ///
    /// # Errors
    /// If it can't be read.
    pub async fn newest(&self) -> Result<Option<Versioned<TimelineManifest>>, ManifestError> {
        let Some(Versioned { number, state }) = self.sequence.newest().await? else {
            return Ok(None);
        };
        let state = open(MAGIC, VERSION, &state)
            .map_err(|source| ManifestError::Damaged { number, source })?;
        Ok(Some(Versioned { number, state }))
    }

    /// Publishes `manifest` in the place of number `after`.
    ///
    /// # Errors
    /// If another writer published first, which means that this one is superseded.
    pub async fn publish(
        &self,
        after: u64,
        mut manifest: TimelineManifest,
    ) -> Result<u64, ManifestError> {
        manifest.nonce = rand::random();
        let object = seal(MAGIC, VERSION, &manifest).map_err(ManifestError::Encode)?;
        Ok(self.sequence.append(after, object).await?)
    }
}
