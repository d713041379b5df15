//! The engine as the redo planner sees it.

use bytes::Bytes;
use palimpsest_redo::EngineError;

use crate::{
    engine::Engine,
    request::{ApplyRequest, RedoRecord},
};

impl palimpsest_redo::Engine for Engine {
    async fn apply(&self, request: palimpsest_redo::ApplyRequest) -> Result<Bytes, EngineError> {
        let (rel, block) = (request.rel, request.block);
        let records = request.records.into_iter().map(|record| RedoRecord {
            start_lsn: record.start_lsn,
            end_lsn: record.end_lsn,
            bytes: record.bytes,
        });
        let records = records.collect();
        let request = ApplyRequest {
            rel,
            block,
            base: request.base,
            records,
        };
        Self::apply(self, request)
            .await
            .map_err(|error| EngineError {
                rel,
                block,
                kind: error.kind(),
                reason: error.reason(),
                message: error.to_string(),
            })
    }
}
