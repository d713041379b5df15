use bytes::Bytes;
use palimpsest_proto::redo::v1 as wire;
use palimpsest_redo::{ApplyRequest, EngineError};
use palimpsest_types::{BlockNumber, Fault, TenantId};

use super::{Batch, BatchJob, RedoTenant, Urgency};
use crate::{
    convert::{
        InvalidMessageError, id_bytes, record_from_wire, record_to_wire, rel_tag, rel_tag_to_wire,
    },
    status::error_detail,
};

pub(super) fn job_to_wire(
    job_id: u64,
    request: ApplyRequest,
    traceparent: Option<String>,
) -> wire::apply_request::Job {
    wire::apply_request::Job {
        job_id,
        rel: Some(rel_tag_to_wire(request.rel)),
        block_number: request.block.get(),
        base: request.base.unwrap_or_default(),
        records: request.records.into_iter().map(record_to_wire).collect(),
        traceparent: traceparent.unwrap_or_default(),
    }
}

impl TryFrom<wire::ApplyRequest> for Batch {
    type Error = InvalidMessageError;

    fn try_from(message: wire::ApplyRequest) -> Result<Self, Self::Error> {
        let tenant = RedoTenant {
            tenant: TenantId::from_bytes(id_bytes("tenant_id", &message.tenant_id)?),
            pg_version: message.pg_version,
            wal_log_hints: message.wal_log_hints,
        };
        let job = |job: wire::apply_request::Job| {
            let request = ApplyRequest {
                rel: rel_tag(job.rel)?,
                block: BlockNumber::new(job.block_number),
                base: (!job.base.is_empty()).then_some(job.base),
                records: job.records.into_iter().map(record_from_wire).collect(),
            };
            Ok(BatchJob {
                id: job.job_id,
                request,
                traceparent: job.traceparent,
            })
        };
        Ok(Self {
            tenant,
            urgency: if message.background {
                Urgency::Background
            } else {
                Urgency::Awaited
            },
            jobs: message
                .jobs
                .into_iter()
                .map(job)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The answer to one job as a message.
pub fn result_to_wire(
    job_id: u64,
    outcome: Result<Bytes, EngineError>,
) -> wire::apply_response::Result {
    match outcome {
        Ok(page) => wire::apply_response::Result {
            job_id,
            error: None,
            page,
        },
        Err(error) => {
            let fault = Fault::new(error.kind, error.reason);
            let detail = error_detail(fault, &error);
            wire::apply_response::Result {
                job_id,
                error: Some(detail),
                page: Bytes::new(),
            }
        }
    }
}
