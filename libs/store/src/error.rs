use std::time::Duration;

use palimpsest_types::ErrorKind;

use crate::{
    location::Bucket,
    trouble::{Said, Trouble, diagnose},
};

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
    /// Files could not be read or written.
    #[error("the object store failed at {path}")]
    Files {
        /// The object.
        path: String,
        /// What the system said.
        #[source]
        source: object_store::Error,
    },
    /// A bucket did not do it.
    #[error("{url}: {trouble}")]
    Bucket {
        /// The object.
        url: String,
        /// What is wrong.
        trouble: Trouble,
        /// What was said.
        #[source]
        source: Said,
    },
    /// A bucket can't even be asked.
    #[error("the environment does not say how to reach {url}: correct its {variables}… variables")]
    Environment {
        /// The store.
        url: String,
        /// How their names begin.
        variables: &'static str,
        /// What is wrong.
        #[source]
        source: Said,
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
        "{store} lets two writers create the same object, so it can't be used: writers could not be fenced; use a store that honours If-None-Match: * or a file system that makes hard links"
    )]
    NotAtomic {
        /// The store.
        store: String,
    },
}

impl StoreError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Self::Files { .. } => ErrorKind::NotReady,
            Self::Bucket { trouble, .. } => trouble.kind(),
            Self::Environment { .. } | Self::Directory { .. } | Self::NotAtomic { .. } => {
                ErrorKind::Invalid
            }
        }
    }

    /// What files answered.
    pub(crate) fn of_files(path: &object_store::path::Path, source: object_store::Error) -> Self {
        let path = path.to_string();
        match source {
            object_store::Error::NotFound { .. } => Self::NotFound { path },
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. } => Self::AlreadyExists { path },
            source => Self::Files { path, source },
        }
    }

    /// What a bucket answered.
    pub(crate) fn of_bucket(
        bucket: &Bucket,
        path: &object_store::path::Path,
        answer: &object_store::Error,
    ) -> Self {
        let (trouble, source) = diagnose(answer);
        let url = format!("{bucket}/{path}");
        match answer {
            // Said of the bucket it is no answer about the object.
            object_store::Error::NotFound { .. } if trouble != Trouble::NoBucket => {
                Self::NotFound { path: url }
            }
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. } => Self::AlreadyExists { path: url },
            _ => Self::Bucket {
                url,
                trouble,
                source,
            },
        }
    }

    /// A bucket that did not answer for so long.
    pub(crate) fn silence(
        bucket: &Bucket,
        path: &object_store::path::Path,
        waited: Duration,
    ) -> Self {
        Self::Bucket {
            url: format!("{bucket}/{path}"),
            trouble: Trouble::Silent,
            source: Said::new(&format!("waited for {} s", waited.as_secs())),
        }
    }

    /// A client that could not be made.
    pub(crate) fn environment(bucket: &Bucket, error: &object_store::Error) -> Self {
        Self::Environment {
            url: bucket.to_string(),
            variables: bucket.provider().variables(),
            source: diagnose(error).1,
        }
    }
}
