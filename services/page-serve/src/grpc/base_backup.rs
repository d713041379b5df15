//! A base backup as messages.

use futures::{Stream, StreamExt as _, stream};
use palimpsest_api::error_status;
use palimpsest_basebackup::{BackupFacts, Form};
use palimpsest_proto::page::v1::{
    Compression, GetBaseBackupRequest, GetBaseBackupResponse,
    get_base_backup_response::{Begin, LeftOut, Part},
};
use palimpsest_types::SystemIdentifier;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::listing;
use crate::core::{NoBackupError, RunningBackup, WantedBackup};

/// What a request asks for.
pub(super) fn wanted(request: &GetBaseBackupRequest) -> WantedBackup {
    let identifier = Some(request.system_identifier).filter(|number| *number != 0);
    WantedBackup {
        system_identifier: identifier.map(SystemIdentifier::new),
        timeline: Some(request.postgres_timeline).filter(|timeline| *timeline != 0),
        is_packed: request.compression() == Compression::Zstd,
        form: match request.sparse {
            true => Form::Sparse,
            false => Form::Full,
        },
    }
}

/// The messages: what it is, its chunks, and an error if it is not complete.
pub(super) fn messages(
    backup: RunningBackup,
) -> impl Stream<Item = Result<GetBaseBackupResponse, Status>> + Send {
    let RunningBackup {
        facts,
        left_out,
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
    let left_out = listing::portions(left_out).map(|relations| {
        let left_out = LeftOut { relations };
        Ok(message(Part::LeftOut(left_out)))
    });
    begin.chain(stream::iter(left_out)).chain(chunks).chain(end)
}

/// Why there is none.
pub(super) fn failed(error: &NoBackupError) -> Status {
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
        superuser: facts.superuser.clone().unwrap_or_default(),
    }
}

fn message(part: Part) -> GetBaseBackupResponse {
    GetBaseBackupResponse { part: Some(part) }
}
