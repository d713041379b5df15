use palimpsest_proto::common::v1 as wire;
use palimpsest_types::{ErrorKind, Fault, Reason};
use prost::Message as _;
use tonic::{Code, Status};

/// An error that another service answered with, or a failure to reach it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// What the caller may do.
    pub kind: ErrorKind,
    /// What is so, if the kind does not say it all.
    pub reason: Option<Reason>,
    /// What the other side said.
    pub message: String,
}

impl RemoteError {
    /// An error of which the kind says all.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            reason: None,
            message: message.into(),
        }
    }

    /// The same, with the reason.
    #[must_use]
    pub fn because(self, reason: Reason) -> Self {
        Self {
            reason: Some(reason),
            ..self
        }
    }

    /// Nobody answered, or not to the end.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotReady, message).because(Reason::Unreachable)
    }
}

/// The status of a failed call. The fault travels in the details, because gRPC codes are coarser.
pub fn error_status(fault: impl Into<Fault>, error: &dyn std::error::Error) -> Status {
    let fault = fault.into();
    let detail = error_detail(fault, error);
    let message = detail.message.clone();
    Status::with_details(code(fault.kind), message, detail.encode_to_vec().into())
}

/// An error inside a stream's response.
pub fn error_detail(fault: impl Into<Fault>, error: &dyn std::error::Error) -> wire::ErrorDetail {
    let Fault { kind, reason } = fault.into();
    let reason = reason.map_or(wire::ErrorReason::Unspecified, reason_to_wire);
    wire::ErrorDetail {
        kind: kind_to_wire(kind).into(),
        message: chain(error),
        reason: reason.into(),
    }
}

/// An error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    with_causes(error.to_string(), error)
}

/// `text` and the causes of `error` that it does not name already.
fn with_causes(mut text: String, error: &dyn std::error::Error) -> String {
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

const fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Conflict => Code::FailedPrecondition,
        ErrorKind::Fenced => Code::Aborted,
        ErrorKind::NotReady => Code::Unavailable,
        ErrorKind::Throttled => Code::ResourceExhausted,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
    }
}

const fn kind_to_wire(kind: ErrorKind) -> wire::ErrorKind {
    match kind {
        ErrorKind::Invalid => wire::ErrorKind::Invalid,
        ErrorKind::NotFound => wire::ErrorKind::NotFound,
        ErrorKind::AlreadyExists => wire::ErrorKind::AlreadyExists,
        ErrorKind::Conflict => wire::ErrorKind::Conflict,
        ErrorKind::Fenced => wire::ErrorKind::Fenced,
        ErrorKind::NotReady => wire::ErrorKind::NotReady,
        ErrorKind::Throttled => wire::ErrorKind::Throttled,
        ErrorKind::Corrupt => wire::ErrorKind::Corrupt,
        ErrorKind::Internal => wire::ErrorKind::Internal,
    }
}

const fn reason_to_wire(reason: Reason) -> wire::ErrorReason {
    match reason {
        Reason::Malformed => wire::ErrorReason::Malformed,
        Reason::UnknownTimeline => wire::ErrorReason::UnknownTimeline,
        Reason::MissingRelation => wire::ErrorReason::MissingRelation,
        Reason::BeyondEnd => wire::ErrorReason::BeyondEnd,
        Reason::BelowHorizon => wire::ErrorReason::BelowHorizon,
        Reason::NotArrived => wire::ErrorReason::NotArrived,
        Reason::NotOpen => wire::ErrorReason::NotOpen,
        Reason::MissingSegment => wire::ErrorReason::MissingSegment,
        Reason::MissingMap => wire::ErrorReason::MissingMap,
        Reason::Overloaded => wire::ErrorReason::Overloaded,
        Reason::Unreachable => wire::ErrorReason::Unreachable,
        Reason::NoWorker => wire::ErrorReason::NoWorker,
        Reason::StoreAway => wire::ErrorReason::StoreAway,
        Reason::RedoDied => wire::ErrorReason::RedoDied,
        Reason::Quarantined => wire::ErrorReason::Quarantined,
        Reason::Damaged => wire::ErrorReason::Damaged,
        Reason::Unsupported => wire::ErrorReason::Unsupported,
        Reason::Defect => wire::ErrorReason::Defect,
        Reason::Lost => wire::ErrorReason::Lost,
        Reason::UnknownTenant => wire::ErrorReason::UnknownTenant,
        Reason::NameTaken => wire::ErrorReason::NameTaken,
        Reason::SourceTaken => wire::ErrorReason::SourceTaken,
        Reason::BeingDeleted => wire::ErrorReason::BeingDeleted,
        Reason::Needed => wire::ErrorReason::Needed,
        Reason::Protected => wire::ErrorReason::Protected,
        Reason::InUse => wire::ErrorReason::InUse,
        Reason::NotABranch => wire::ErrorReason::NotABranch,
        Reason::NotStopped => wire::ErrorReason::NotStopped,
        Reason::WrongEnd => wire::ErrorReason::WrongEnd,
        Reason::LimitReached => wire::ErrorReason::LimitReached,
    }
}

impl From<wire::ErrorDetail> for RemoteError {
    fn from(detail: wire::ErrorDetail) -> Self {
        let kind = match detail.kind() {
            wire::ErrorKind::Invalid => ErrorKind::Invalid,
            wire::ErrorKind::NotFound => ErrorKind::NotFound,
            wire::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            wire::ErrorKind::Conflict => ErrorKind::Conflict,
            wire::ErrorKind::Fenced => ErrorKind::Fenced,
            wire::ErrorKind::NotReady => ErrorKind::NotReady,
            wire::ErrorKind::Throttled => ErrorKind::Throttled,
            wire::ErrorKind::Corrupt => ErrorKind::Corrupt,
            wire::ErrorKind::Internal | wire::ErrorKind::Unspecified => ErrorKind::Internal,
        };
        Self {
            kind,
            // One that is not known here, from a later version, is as good as none.
            reason: Reason::ALL
                .into_iter()
                .find(|reason| i32::from(reason_to_wire(*reason)) == detail.reason),
            message: detail.message,
        }
    }
}

impl From<Status> for RemoteError {
    fn from(status: Status) -> Self {
        if let Ok(detail) = wire::ErrorDetail::decode(status.details())
            && detail.kind() != wire::ErrorKind::Unspecified
        {
            return detail.into();
        }
        // Not from a handler of ours: the transport or a layer failed.
        let kind = match status.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => ErrorKind::Invalid,
            Code::NotFound => ErrorKind::NotFound,
            Code::AlreadyExists => ErrorKind::AlreadyExists,
            Code::FailedPrecondition => ErrorKind::Conflict,
            Code::ResourceExhausted => ErrorKind::Throttled,
            Code::DataLoss => ErrorKind::Corrupt,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::PermissionDenied
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::Unauthenticated => ErrorKind::NotReady,
        };
        let reason = match kind {
            ErrorKind::NotReady => Some(Reason::Unreachable),
            _ => None,
        };
        Self {
            kind,
            reason,
            message: with_causes(status.message().to_owned(), &status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        let kinds = [
            ErrorKind::Invalid,
            ErrorKind::NotFound,
            ErrorKind::AlreadyExists,
            ErrorKind::Conflict,
            ErrorKind::Fenced,
            ErrorKind::NotReady,
            ErrorKind::Throttled,
            ErrorKind::Corrupt,
            ErrorKind::Internal,
        ];
        for kind in kinds {
            let status = error_status(kind, &std::io::Error::other("why"));
            assert_eq!(RemoteError::from(status), RemoteError::new(kind, "why"));
        }
    }

    #[test]
    fn every_reason_survives_the_wire_under_the_name_it_has() {
        for reason in Reason::ALL {
            let fault = Fault::new(ErrorKind::NotFound, reason);
            let status = error_status(fault, &std::io::Error::other("why"));
            assert_eq!(RemoteError::from(status).reason, Some(reason));
            let name = reason_to_wire(reason).as_str_name();
            let name = name.trim_start_matches("ERROR_REASON_").to_lowercase();
            assert_eq!(name.replace('_', "-"), reason.name());
        }
        let all = (1..).map_while(|number| wire::ErrorReason::try_from(number).ok());
        assert_eq!(all.count(), Reason::ALL.len());
    }

    #[test]
    fn a_reason_of_a_later_version_leaves_the_kind() {
        let detail = wire::ErrorDetail {
            kind: wire::ErrorKind::NotFound.into(),
            message: "why".into(),
            reason: 12_345,
        };
        let expected = RemoteError::new(ErrorKind::NotFound, "why");
        assert_eq!(RemoteError::from(detail), expected);
    }

    #[test]
    fn a_failure_to_connect_may_be_retried() {
        let error = RemoteError::from(Status::unavailable("refused"));
        assert_eq!(error.kind, ErrorKind::NotReady);
        assert_eq!(error.reason, Some(Reason::Unreachable));
    }
}
