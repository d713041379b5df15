use std::future::Future;

use anyhow::Result;
use bytes::Bytes;
use palimpsest_types::{BlockNumber, Lsn, RelTag};

/// Whoever claims to have every version of every page.
pub trait PageSource {
    /// All relation forks at an LSN, with their lengths.
    fn relations(
        &self,
        lsn: Lsn,
    ) -> impl Future<Output = Result<Vec<(RelTag, BlockNumber)>>> + Send;

    /// Pages of one fork at an LSN, each or why it cannot be had, in the order of `blocks`.
    fn pages(
        &self,
        rel: RelTag,
        blocks: &[BlockNumber],
        lsn: Lsn,
    ) -> impl Future<Output = Vec<Result<Bytes>>> + Send;
}
