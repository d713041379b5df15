use std::{io, path::PathBuf, time::Duration};

use palimpsest_types::ErrorKind;

use crate::ServerError;

/// What went wrong between us and a PostgreSQL server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection to the server's address.
    #[error("could not connect to {endpoint}; is the server running and reachable?")]
    Connect {
        /// The server, as in the connection string.
        endpoint: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Connecting and authenticating took too long.
    #[error("{endpoint} did not accept the connection within {} s (connect_timeout)", .after.as_secs())]
    ConnectTimeout {
        /// The server, as in the connection string.
        endpoint: String,
        /// The limit.
        after: Duration,
    },
    /// The server is a standby, and a primary is wanted.
    #[error("{endpoint} is a standby; a primary is needed")]
    Standby {
        /// The server, as in the connection string.
        endpoint: String,
    },
    /// The TLS handshake failed, for example because the certificate is not trusted.
    #[error("TLS with {endpoint} failed; check sslmode, sslrootcert and the server's certificate")]
    Tls {
        /// The server, as in the connection string.
        endpoint: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `sslmode` demands TLS and the server has it switched off.
    #[error("{endpoint} does not offer TLS, and sslmode demands it; set ssl = on at the server")]
    TlsNotOffered {
        /// The server, as in the connection string.
        endpoint: String,
    },
    /// The trusted certificates could not be read.
    #[error("could not read trusted certificates from {path:?}")]
    RootCertificates {
        /// The file, or `system`.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server asks for a password and there is none.
    #[error("{user:?} needs a password; give one in the connection string or a password file")]
    PasswordRequired {
        /// Who is logging in.
        user: String,
    },
    /// The server asks for a way of authenticating that this client does not have.
    #[error("the server asks for {method} authentication; use scram-sha-256, md5 or password")]
    UnsupportedAuthentication {
        /// The way it asks for.
        method: String,
    },
    /// The SCRAM exchange failed; the server may not be the one that knows the password.
    #[error("the SCRAM exchange failed; the server did not prove that it knows the password")]
    Scram(#[source] io::Error),
    /// The server reported an error.
    #[error("the server reported an error")]
    Server(#[from] ServerError),
    /// The server is shutting down and has sent all there was.
    #[error("the server ended the WAL stream because it is shutting down")]
    ServerShutdown,
    /// The connection was closed without a word.
    #[error("the server closed the connection; its log says why")]
    Closed,
    /// The server is connected and says nothing.
    #[error("the server has not said anything for {} s, {during}; is it overloaded or stopped?", .after.as_secs())]
    Silent {
        /// What was under way.
        during: &'static str,
        /// The limit.
        after: Duration,
    },
    /// Reading from or writing to the connection failed.
    #[error("the connection to the server broke")]
    Io(#[source] io::Error),
    /// The server does not speak the protocol as documented.
    #[error("protocol violation: {what}")]
    Protocol {
        /// What was seen, where.
        what: String,
    },
    /// A message of the server could not be taken apart.
    #[error("the server sent a malformed message")]
    Malformed(#[source] io::Error),
    /// An earlier command was abandoned half-way, so replies would be misread.
    #[error("an earlier command was abandoned half-way; open a new connection")]
    OutOfStep,
    /// An argument cannot be sent.
    #[error("{argument} {value:?} cannot be sent: {reason}")]
    Argument {
        /// Which argument.
        argument: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl ClientError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Server(error) => error.kind(),
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Standby { .. }
            | Self::ServerShutdown
            | Self::Closed
            | Self::Silent { .. }
            | Self::Io(_)
            | Self::OutOfStep => ErrorKind::NotReady,
            Self::Tls { source, .. } if !is_certificate_error(source) => ErrorKind::NotReady,
            Self::Tls { .. }
            | Self::TlsNotOffered { .. }
            | Self::RootCertificates { .. }
            | Self::PasswordRequired { .. }
            | Self::UnsupportedAuthentication { .. }
            | Self::Scram(_)
            | Self::Argument { .. } => ErrorKind::Invalid,
            Self::Protocol { .. } | Self::Malformed(_) => ErrorKind::Internal,
        }
    }

    /// The server's own error, if it is one.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            _ => None,
        }
    }

    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol { what: what.into() }
    }
}

/// Whether a handshake failed because of a certificate, which waiting does not cure.
fn is_certificate_error(error: &io::Error) -> bool {
    let cause = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}
