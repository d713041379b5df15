//! What can go wrong, and what callers do about it.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use palimpsest_types::{ErrorKind, Reason};

use crate::process::Obituary;

/// A redo process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `postgres` refuses to run as root.
    #[error("postgres does not run as root; name an unprivileged user in run_as")]
    Root,
    /// The private directory could not be prepared.
    #[error("cannot prepare the redo process's directory at {}", path.display())]
    DataDir {
        /// What could not be made.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `mkcontrol` failed.
    #[error("{} failed ({status}): {said}", program.display())]
    ControlFile {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// Its standard error.
        said: String,
    },
    /// A program could not be run.
    #[error("cannot run {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process ended, or said something else, before it was ready.
    #[error("the redo process did not become ready: {obituary}")]
    NotReady {
        /// How it ended.
        obituary: Obituary,
    },
    /// The process took too long.
    #[error("the redo process was not ready within {limit:?}: {obituary}")]
    Overdue {
        /// The setting.
        limit: Duration,
        /// How it ended.
        obituary: Obituary,
    },
}

/// A request was not served.
#[derive(Debug, thiserror::Error)]
pub enum RedoError {
    /// The request does not fit in a message to the process.
    #[error("a redo request of {len} bytes exceeds {max}; apply the records in several steps")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The most allowed.
        max: usize,
    },
    /// A page of the request has the wrong length.
    #[error("a page has {len} bytes; pages have 8192")]
    PageLength {
        /// Its length.
        len: usize,
    },
    /// PostgreSQL raised an error: records and base page do not belong together, or are damaged.
    #[error("postgres refused the redo request: {message}")]
    Refused {
        /// Its message.
        message: String,
    },
    /// The process died while it worked on this request.
    #[error("the redo process died: {obituary}")]
    Died {
        /// How it ended.
        obituary: Obituary,
    },
    /// Processes died over other requests, one after the other, while this one waited.
    #[error("redo processes died over other requests while this one waited: {obituary}")]
    Disturbed {
        /// How the last one ended.
        obituary: Obituary,
    },
    /// The process was killed because it worked on this request for too long.
    #[error("the redo request was not served within {limit:?} and its process was killed")]
    Overdue {
        /// The setting.
        limit: Duration,
    },
    /// The process gave an answer of another length than this request's.
    #[error("the redo process answered {len} bytes, which is not what was asked for")]
    UnexpectedAnswer {
        /// The answer's length.
        len: usize,
    },
    /// No process could be started.
    #[error("no redo process is available")]
    Unavailable {
        /// Why not.
        source: Arc<StartError>,
    },
    /// The engine has been stopped.
    #[error("the redo engine has stopped")]
    Stopped,
}

impl StartError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Root => ErrorKind::Invalid,
            Self::DataDir { .. } | Self::ControlFile { .. } | Self::Spawn { .. } => {
                ErrorKind::Internal
            }
            Self::NotReady { .. } | Self::Overdue { .. } => ErrorKind::NotReady,
        }
    }
}

impl RedoError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } | Self::PageLength { .. } => ErrorKind::Invalid,
            Self::Refused { .. } => ErrorKind::Corrupt,
            Self::Died { .. } | Self::Overdue { .. } | Self::UnexpectedAnswer { .. } => {
                ErrorKind::Internal
            }
            Self::Disturbed { .. } | Self::Unavailable { .. } | Self::Stopped => {
                ErrorKind::NotReady
            }
        }
    }

    /// What is so.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooLarge { .. } | Self::PageLength { .. } | Self::UnexpectedAnswer { .. } => {
                Reason::Defect
            }
            Self::Refused { .. } => Reason::Damaged,
            Self::Died { .. } | Self::Overdue { .. } => Reason::RedoDied,
            Self::Disturbed { .. } | Self::Unavailable { .. } | Self::Stopped => Reason::NoWorker,
        }
    }
}
