//! A base backup as messages.

use futures::{Stream, StreamExt as _, stream};
use palimpsest_api::error_status;
use palimpsest_basebackup::{BackupError, BackupFacts};
use palimpsest_proto::page::v1::{
    Compression, GetBaseBackupRequest, GetBaseBackupResponse,
    get_base_backup_response::{Begin, Part},
};
use palimpsest_types::SystemIdentifier;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::core::{RunningBackup, WantedBackup};

/// What a request asks for.
pub(super) fn wanted(request: &GetBaseBackupRequest) -> WantedBackup {
    let identifier = Some(request.system_identifier).filter(|number| *number != 0);
    WantedBackup {
        system_identifier: identifier.map(SystemIdentifier::new),
        timeline: Some(request.postgres_timeline).filter(|timeline| *timeline != 0),
        is_packed: request.compression() == Compression::Zstd,
    }
}

/// The messages: what it is, its chunks, and an error if it is not complete.
pub(super) fn messages(
    backup: RunningBackup,
) -> impl Stream<Item = Result<GetBaseBackupResponse, Status>> + Send {
    let RunningBackup {
        facts,
        chunks,
        outcome,
    } = backup;
    let begin = stream::iter([Ok(message(Part::Begin(begin(&facts))))]);
    let chunks = ReceiverStream::new(chunks).map(|chunk| Ok(message(Part::Chunk(chunk))));
    let end = stream::once(outcome).filter_map(async |outcome| match outcome {
        Ok(Some(Ok(()))) => None,
        Ok(Some(Err(error))) => Some(Err(failed(&error))),
        Ok(None) | Err(_) => Some(Err(Status::unavailable(
            "this page-serve is shutting down; ask another",
        ))),
    });
    begin.chain(chunks).chain(end)
}

/// Why there is none.
pub(super) fn failed(error: &BackupError) -> Status {
    error_status(error.fault(), error)
}

fn begin(facts: &BackupFacts) -> Begin {
    Begin {
        lsn: facts.lsn.get(),
        checkpoint_lsn: facts.checkpoint.get(),
        system_identifier: facts.system_identifier.get(),
        postgres_timeline: facts.timeline,
        file_count: facts.files,
        file_bytes: facts.bytes,
    }
}

fn message(part: Part) -> GetBaseBackupResponse {
    GetBaseBackupResponse { part: Some(part) }
}
