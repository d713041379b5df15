//! A base backup, as it comes.

use bytes::Bytes;
use palimpsest_proto::page::v1 as wire;
use palimpsest_types::{BlockNumber, ByteCount, ErrorKind, Lsn, RelTag, SystemIdentifier};
use tonic::Streaming;
use wire::{
    get_base_backup_response::{Begin, LeftOut, Part},
    list_relations_response::Relation,
};

use super::{PageClient, ReadAt, malformed};
use crate::{
    convert::{InvalidMessageError, TimelineRef, rel_tag},
    status::RemoteError,
};

/// What base backup is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseBackupRequest {
    /// Of which timeline.
    pub timeline: TimelineRef,
    /// When.
    pub at: ReadAt,
    /// The cluster that starts from it; the same as the one whose history is read if it is `None`.
    pub system_identifier: Option<SystemIdentifier>,
    /// PostgreSQL's timeline of what that writes; a fresh one if it is `None`.
    pub postgres_timeline: Option<u32>,
    /// As one zstd frame.
    pub is_packed: bool,
    /// Without what relations hold.
    pub is_sparse: bool,
}

/// What a base backup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupFacts {
    /// What it sees: records that end here or before.
    pub lsn: Lsn,
    /// Where its own checkpoint record is.
    pub checkpoint: Lsn,
    /// The cluster that starts from it.
    pub system_identifier: SystemIdentifier,
    /// PostgreSQL's timeline of what that writes.
    pub postgres_timeline: u32,
    /// Files, without the manifest.
    pub files: u64,
    /// Bytes of those files.
    pub size: ByteCount,
    /// A superuser who may log in, if there is one.
    pub superuser: Option<String>,
}

/// A base backup that is on its way. Dropping it ends it.
#[derive(Debug)]
pub struct BaseBackupStream {
    facts: BaseBackupFacts,
    left_out: Vec<(RelTag, BlockNumber)>,
    messages: Streaming<wire::GetBaseBackupResponse>,
}

impl PageClient {
    /// A data directory that a stock PostgreSQL starts from, as a tar archive.
    ///
    /// # Errors
    /// What page-serve says.
    pub async fn base_backup(
        &self,
        request: BaseBackupRequest,
    ) -> Result<BaseBackupStream, RemoteError> {
        let mut client = self.unary.clone();
        let mut messages = client.get_base_backup(wire_of(request)).await?.into_inner();
        let first = messages.message().await?.and_then(|message| message.part);
        let Some(Part::Begin(begin)) = first else {
            return Err(malformed(InvalidMessageError::missing("begin")));
        };
        let facts = begin.into();
        Ok(BaseBackupStream {
            facts,
            left_out: Vec::new(),
            messages,
        })
    }
}

impl BaseBackupStream {
    /// What it is.
    pub fn facts(&self) -> &BaseBackupFacts {
        &self.facts
    }

    /// Forks that are left out of a sparse one, as far as they are told of: all when the first chunk has come.
    pub fn left_out(&self) -> &[(RelTag, BlockNumber)] {
        &self.left_out
    }

    /// The next bytes of the archive; `None` when it is complete. Cancel-safe.
    ///
    /// # Errors
    /// What page-serve says. Nothing comes after an error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RemoteError> {
        loop {
            match self.messages.message().await?.map(|message| message.part) {
                None => return Ok(None),
                Some(Some(Part::Chunk(chunk))) => return Ok(Some(chunk)),
                Some(Some(Part::LeftOut(LeftOut { relations }))) => {
                    for Relation { rel, blocks } in relations {
                        let rel = rel_tag(rel).map_err(malformed)?;
                        self.left_out.push((rel, BlockNumber::new(blocks)));
                    }
                }
                Some(Some(Part::Begin(_)) | None) => {
                    let what = "a base backup begins twice";
                    return Err(RemoteError::new(ErrorKind::Internal, what.to_owned()));
                }
            }
        }
    }
}

fn wire_of(request: BaseBackupRequest) -> wire::GetBaseBackupRequest {
    let compression = match request.is_packed {
        true => wire::Compression::Zstd,
        false => wire::Compression::Unspecified,
    };
    wire::GetBaseBackupRequest {
        timeline: Some(request.timeline.into()),
        read_lsn: Some(request.at.into()),
        system_identifier: request.system_identifier.map_or(0, SystemIdentifier::get),
        postgres_timeline: request.postgres_timeline.unwrap_or_default(),
        compression: compression.into(),
        sparse: request.is_sparse,
    }
}

impl From<Begin> for BaseBackupFacts {
    fn from(begin: Begin) -> Self {
        Self {
            lsn: Lsn::new(begin.lsn),
            checkpoint: Lsn::new(begin.checkpoint_lsn),
            system_identifier: SystemIdentifier::new(begin.system_identifier),
            postgres_timeline: begin.postgres_timeline,
            files: begin.file_count,
            size: ByteCount::new(begin.file_bytes),
            superuser: Some(begin.superuser).filter(|name| !name.is_empty()),
        }
    }
}
