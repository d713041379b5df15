use palimpsest_types::ErrorKind;

/// The object store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("there is no object {path}")]
    NotFound {
        /// Its path.
        path: String,
    },
    /// An object of this name exists already.
    #[error("object {path} exists already")]
    AlreadyExists {
        /// Its path.
        path: String,
    },
    /// The store itself failed.
    #[error("the object store failed at {path}")]
    Store {
        /// The object.
        path: String,
        /// What it said.
        #[source]
        source: object_store::Error,
    },
    /// The directory can't be used.
    #[error("the directory {path} can't be used as an object store")]
    Directory {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Two writers created the same object.
    #[error(
        "this object store lets two writers create the same object, so it can't be used: writers could not be fenced"
    )]
    NotAtomic,
}

impl StoreError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Self::Store { .. } => ErrorKind::NotReady,
            Self::Directory { .. } | Self::NotAtomic => ErrorKind::Invalid,
        }
    }

    pub(crate) fn from_store(path: &object_store::path::Path, source: object_store::Error) -> Self {
        let path = path.to_string();
        match source {
            object_store::Error::NotFound { .. } => Self::NotFound { path },
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. } => Self::AlreadyExists { path },
            source => Self::Store { path, source },
        }
    }
}
