use std::{future::Future, time::Duration};

use bytes::Bytes;
use palimpsest_types::{BlockNumber, ErrorKind, Reason, RelTag};
use palimpsest_wal::RawRecord;

/// How long an engine may take to have a process: a healthy one takes some ten milliseconds.
pub const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a process may work on one request, a bounded piece of a chain, before it is killed.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Records to replay on one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyRequest {
    /// Relation fork of the page.
    pub rel: RelTag,
    /// The page.
    pub block: BlockNumber,
    /// The page before; `None` when the first record builds it from nothing.
    pub base: Option<Bytes>,
    /// Records to replay, oldest first.
    pub records: Vec<RawRecord>,
}

/// An engine could not replay a request.
#[derive(Debug, Clone, thiserror::Error)]
#[error("redo of {rel} block {block} failed: {message}")]
pub struct EngineError {
    /// Relation fork of the page.
    pub rel: RelTag,
    /// The page.
    pub block: BlockNumber,
    /// What the caller may do: retry elsewhere when not ready, nothing when corrupt.
    pub kind: ErrorKind,
    /// What is so.
    pub reason: Reason,
    /// What the engine said.
    pub message: String,
}

/// Runs PostgreSQL's redo routines on single pages.
pub trait Engine: Send + Sync {
    /// The page after all records of the request.
    fn apply(
        &self,
        request: ApplyRequest,
    ) -> impl Future<Output = Result<Bytes, EngineError>> + Send;
}

/// Replays nothing: for who reads sizes and such of a timeline, but no pages.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEngine;

impl Engine for NoEngine {
    async fn apply(&self, request: ApplyRequest) -> Result<Bytes, EngineError> {
        Err(EngineError {
            rel: request.rel,
            block: request.block,
            kind: ErrorKind::Internal,
            reason: Reason::NoWorker,
            message: "there is no engine here".to_owned(),
        })
    }
}

impl ApplyRequest {
    /// Bytes it takes to send.
    pub fn size(&self) -> usize {
        let base = self.base.as_ref().map_or(0, Bytes::len);
        base + self
            .records
            .iter()
            .map(|record| record.bytes.len() + 24)
            .sum::<usize>()
    }
}
