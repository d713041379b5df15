use bytes::Bytes;
use palimpsest_proto::common::v1 as wire;
use palimpsest_types::{
    ErrorKind, Fault, Fork, Lsn, Reason, RelTag, RequestId, TenantId, TimelineId,
};
use palimpsest_wal::RawRecord;

/// A message lacks a field, or a field's value can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidMessageError {
    /// Which field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// Which timeline something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineRef {
    /// The tenant.
    pub tenant: TenantId,
    /// Its timeline.
    pub timeline: TimelineId,
}

impl InvalidMessageError {
    pub(crate) fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self {
            field,
            problem: problem.into(),
        }
    }

    pub(crate) fn missing(field: &'static str) -> Self {
        Self::new(field, "is required")
    }

    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }

    /// The same, for programs.
    pub fn fault(&self) -> Fault {
        Fault::new(self.kind(), Reason::Malformed)
    }
}

impl std::fmt::Display for TimelineRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.tenant, self.timeline)
    }
}

impl From<TimelineRef> for wire::TimelineRef {
    fn from(timeline: TimelineRef) -> Self {
        Self {
            tenant_id: id_to_wire(timeline.tenant.as_bytes()),
            timeline_id: id_to_wire(timeline.timeline.as_bytes()),
        }
    }
}

impl TryFrom<Option<wire::TimelineRef>> for TimelineRef {
    type Error = InvalidMessageError;

    fn try_from(message: Option<wire::TimelineRef>) -> Result<Self, Self::Error> {
        let message = message.ok_or_else(|| InvalidMessageError::missing("timeline"))?;
        Ok(Self {
            tenant: TenantId::from_bytes(id_bytes("tenant_id", &message.tenant_id)?),
            timeline: TimelineId::from_bytes(id_bytes("timeline_id", &message.timeline_id)?),
        })
    }
}

pub(crate) fn id_to_wire(bytes: &[u8; 16]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

pub(crate) fn id_bytes(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], InvalidMessageError> {
    let problem = || InvalidMessageError::new(field, format!("has {} bytes, not 16", bytes.len()));
    bytes.try_into().map_err(|_| problem())
}

/// By what a request is told from others; empty if it is not.
///
/// # Errors
/// If it has neither 0 nor 16 bytes.
pub fn request_id(bytes: &[u8]) -> Result<Option<RequestId>, InvalidMessageError> {
    match bytes {
        [] => Ok(None),
        bytes => Ok(Some(RequestId::from_bytes(id_bytes("request_id", bytes)?))),
    }
}

/// A relation fork from its message.
///
/// # Errors
/// If it is missing or its fork does not exist.
pub fn rel_tag(message: Option<wire::RelTag>) -> Result<RelTag, InvalidMessageError> {
    let message = message.ok_or_else(|| InvalidMessageError::missing("rel"))?;
    let fork = Fork::try_from(message.fork_number)
        .map_err(|error| InvalidMessageError::new("fork_number", error.to_string()))?;
    Ok(RelTag {
        spc: message.spc_oid,
        db: message.db_oid,
        rel: message.rel_number,
        fork,
    })
}

/// A relation fork as a message.
pub fn rel_tag_to_wire(rel: RelTag) -> wire::RelTag {
    wire::RelTag {
        spc_oid: rel.spc,
        db_oid: rel.db,
        rel_number: rel.rel,
        fork_number: rel.fork.number().into(),
    }
}

/// An LSN of which 0 means "none".
pub fn lsn_from_wire(lsn: u64) -> Option<Lsn> {
    (lsn != 0).then(|| Lsn::new(lsn))
}

pub(crate) fn record_to_wire(record: RawRecord) -> wire::WalRecord {
    wire::WalRecord {
        start_lsn: record.start_lsn.get(),
        end_lsn: record.end_lsn.get(),
        data: record.bytes,
    }
}

pub(crate) fn record_from_wire(record: wire::WalRecord) -> RawRecord {
    RawRecord {
        start_lsn: Lsn::new(record.start_lsn),
        end_lsn: Lsn::new(record.end_lsn),
        bytes: record.data,
    }
}
