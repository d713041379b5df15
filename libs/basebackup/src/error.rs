use palimpsest_catalog::ResolveError;
use palimpsest_postgres::{ControlFileError, Tli};
use palimpsest_read::ReadError;
use palimpsest_types::{ErrorKind, Fault, Lsn, Reason};
use palimpsest_wal::InvalidSegmentSizeError;

/// A base backup can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The timeline was attached before what a control file says was kept.
    #[error(
        "timeline has no control file at {0}: it was attached by an older Palimpsest; attach the cluster again"
    )]
    NoControlFile(Lsn),
    /// What is kept as the base's control file is none.
    #[error("the control file of the base can't be used")]
    ControlFile(#[from] ControlFileError),
    /// No cluster has such segments.
    #[error("the control file of the base can't be used")]
    SegmentSize(#[from] InvalidSegmentSizeError),
    /// PostgreSQL's timelines only rise.
    #[error(
        "PostgreSQL timeline {wanted} does not come after {parent}, the one that is left at that LSN"
    )]
    Timeline {
        /// What was asked for.
        wanted: Tli,
        /// What the log is of.
        parent: Tli,
    },
    /// No later timeline can be chosen.
    #[error("there is no PostgreSQL timeline to choose after {0}; name one")]
    NoTimeline(Tli),
    /// A file came out longer or shorter than its relation is.
    #[error("{path} would have {found} bytes in place of {expected}")]
    WrongLength {
        /// The file.
        path: String,
        /// What its size says.
        expected: u64,
        /// What its pages are.
        found: u64,
    },
    /// The archive can't name a file.
    #[error("{0} is too long a path for a tar archive")]
    LongPath(String),
    /// There is no place for another record in the log.
    #[error("there is no room for a record in the log after {0}")]
    NoRoom(Lsn),
    /// More than a data directory has room for names of.
    #[error("there are more than {0} tablespaces")]
    TooManyTablespaces(usize),
    /// Something could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The list of tablespaces could not be read.
    #[error("the list of tablespaces can't be read")]
    Catalog(#[source] ResolveError<ReadError>),
    /// It can't be packed.
    #[error("the base backup can't be compressed")]
    Zstd(#[source] std::io::Error),
    /// A defect.
    #[error("reading a piece of the base backup panicked")]
    Panicked,
    /// Who wanted it does not any more.
    #[error("nobody takes the base backup any more")]
    Abandoned,
}

impl BackupError {
    /// What the caller may do and what is so, for programs.
    pub fn fault(&self) -> Fault {
        let (kind, reason) = match self {
            Self::NoControlFile(_) => (ErrorKind::Conflict, Reason::Unsupported),
            Self::ControlFile(error) => (error.kind(), Reason::Damaged),
            Self::SegmentSize(_) => (ErrorKind::Corrupt, Reason::Damaged),
            Self::WrongLength { .. } | Self::LongPath(_) | Self::Zstd(_) | Self::Panicked => {
                (ErrorKind::Internal, Reason::Defect)
            }
            Self::Timeline { .. } | Self::NoTimeline(_) | Self::NoRoom(_) => {
                (ErrorKind::Invalid, Reason::Malformed)
            }
            Self::TooManyTablespaces(_) => (ErrorKind::Invalid, Reason::Unsupported),
            Self::Read(error) | Self::Catalog(ResolveError::Source(error)) => {
                (error.kind(), error.reason())
            }
            Self::Catalog(error) => (error.kind().unwrap_or(ErrorKind::Internal), Reason::Damaged),
            Self::Abandoned => (ErrorKind::NotReady, Reason::Unreachable),
        };
        Fault::new(kind, reason)
    }
}
