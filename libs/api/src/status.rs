use palimpsest_proto::common::v1 as wire;
use palimpsest_types::ErrorKind;
use prost::Message as _;
use tonic::{Code, Status};

/// An error that another service answered with, or a failure to reach it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// What the caller may do.
    pub kind: ErrorKind,
    /// What the other side said.
    pub message: String,
}

/// The status of a failed call. The kind travels in the details, because gRPC codes are coarser.
pub fn error_status(kind: ErrorKind, error: &dyn std::error::Error) -> Status {
    let detail = error_detail(kind, error);
    let message = detail.message.clone();
    Status::with_details(code(kind), message, detail.encode_to_vec().into())
}

/// An error inside a stream's response.
pub fn error_detail(kind: ErrorKind, error: &dyn std::error::Error) -> wire::ErrorDetail {
    wire::ErrorDetail {
        kind: kind_to_wire(kind).into(),
        message: chain(error),
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
        Self {
            kind,
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
            let expected = RemoteError {
                kind,
                message: "why".into(),
            };
            assert_eq!(RemoteError::from(status), expected);
        }
    }

    #[test]
    fn a_failure_to_connect_may_be_retried() {
        let error = RemoteError::from(Status::unavailable("refused"));
        assert_eq!(error.kind, ErrorKind::NotReady);
    }
}
