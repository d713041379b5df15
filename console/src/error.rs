use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use palimpsest_api::RemoteError;
use palimpsest_catalog::ResolveError;
use palimpsest_settings::Problems;
use palimpsest_types::{Lsn, RelTag};

use crate::{place::PlaceError, stack::StackError};

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Nobody answers where the storage-broker should be.
    #[error("the storage-broker at {endpoint} can't be reached")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// Why.
        #[source]
        source: RemoteError,
    },
    /// A service said no.
    #[error("{what}")]
    Remote {
        /// What was asked of it.
        what: String,
        /// What it said.
        #[source]
        source: RemoteError,
    },
    /// There is no timeline of this name.
    #[error("there is no timeline {name:?}")]
    UnknownTimeline {
        /// The name.
        name: String,
        /// Names that there are.
        known: Vec<String>,
    },
    /// There is no tenant of this name.
    #[error("there is no tenant {name:?}")]
    UnknownTenant {
        /// The name.
        name: String,
        /// Names that there are.
        known: Vec<String>,
    },
    /// A relation fork does not exist.
    #[error("relation {rel} does not exist at {lsn}")]
    NoRelation {
        /// The fork.
        rel: RelTag,
        /// When.
        lsn: Lsn,
    },
    /// A relation's name means nothing at that LSN, or can't be looked up.
    #[error("can't find {name}")]
    Unresolved {
        /// As it was given.
        name: String,
        /// Why.
        #[source]
        source: Box<ResolveError<RemoteError>>,
    },
    /// No page-serve is alive.
    #[error("no page-serve has registered with the storage-broker")]
    NoPageServe,
    /// No compactor is alive.
    #[error("no compactor has registered with the storage-broker")]
    NoCompactor,
    /// An attach, deletion or check ended badly.
    #[error("{what}")]
    Failed {
        /// What happened.
        what: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A source does not pass the checks before an attach.
    #[error("it can't be attached as it is")]
    NotAttachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The user ended a command that goes on without them.
    #[error("interrupted; {what}")]
    Interrupted {
        /// What goes on.
        what: String,
    },
    /// Settings are wrong.
    #[error("the settings are wrong: {0}")]
    Settings(Problems),
    /// Settings are wrong, which is the answer to the question.
    #[error("{0}")]
    Unsound(Problems),
    /// The services did not start.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The data directory can't be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A file can't be written.
    #[error("can't write {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A data directory can't be written.
    #[error("the data directory can't be written")]
    Unpack(#[source] Box<dyn Error + Send + Sync>),
    /// Standard output can't be written.
    #[error("can't write to standard output")]
    Output(#[source] io::Error),
}

const FAILED: u8 = 1;
/// Of `pal up --check-config`.
const UNSOUND: u8 = 2;
const BAD_SETTINGS: u8 = 64;
const UNREACHABLE: u8 = 69;
/// What a shell reports for a program that was interrupted.
const INTERRUPTED: u8 = 130;
/// Names shown in a hint.
const SHOWN: usize = 8;

impl CliError {
    /// A service said no to `what`.
    pub(crate) fn remote(what: impl Into<String>) -> impl FnOnce(RemoteError) -> Self {
        let what = what.into();
        |source| Self::Remote { what, source }
    }

    /// A file can't be written.
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        |source| Self::File { path, source }
    }

    /// What the process ends with: 1 failed, 64 bad settings, 69 nobody there. (2 is clap's.)
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => UNREACHABLE,
            Self::Settings(_) => BAD_SETTINGS,
            Self::Unsound(_) => UNSOUND,
            Self::Stack(error) if error.is_about_settings() => BAD_SETTINGS,
            Self::Interrupted { .. } => INTERRUPTED,
            _ => FAILED,
        }
    }

    /// The error with its causes, as one line.
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let next = error.to_string();
            if !text.ends_with(&next) {
                text = format!("{text}: {next}");
            }
            cause = error.source();
        }
        text
    }

    /// What to do, where the error itself does not say it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } => Some(
                "is `pal up` running? start it, or name another broker by --endpoint or --data"
                    .to_owned(),
            ),
            Self::NoPageServe | Self::NoCompactor => {
                Some("wait a second if it has just started".to_owned())
            }
            Self::UnknownTimeline { known, .. } | Self::UnknownTenant { known, .. } => {
                Some(known_names(known))
            }
            Self::Unresolved { source, .. } => unresolved(source).map(str::to_owned),
            Self::NoRelation { .. } => Some("`pal rel list` shows all relations".to_owned()),
            Self::Failed { hint, .. } => hint.clone(),
            _ => None,
        }
    }

    /// Whether the reader of our output went away.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

fn unresolved(error: &ResolveError<RemoteError>) -> Option<&'static str> {
    match error {
        ResolveError::NoDatabase(_)
        | ResolveError::NoSchema { .. }
        | ResolveError::NoRelation { .. } => {
            Some("names are taken as written, upper and lower case too, as they were at that LSN")
        }
        ResolveError::NoStorage { .. } => Some("name one of its partitions, or a table or index"),
        ResolveError::Damaged(_) | ResolveError::Source(_) => None,
    }
}

fn known_names(known: &[String]) -> String {
    match known {
        [] => "there are none yet; `pal attach NAME --source …` makes one".to_owned(),
        some if some.len() <= SHOWN => format!("there are: {}", some.join(", ")),
        many => format!("there are {}; `pal timeline list` shows them", many.len()),
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::ErrorKind;

    use super::*;

    #[test]
    fn an_error_says_what_where_and_what_to_do() {
        let error = CliError::Unreachable {
            endpoint: "127.0.0.1:7700".into(),
            source: RemoteError::new(ErrorKind::NotReady, "refused"),
        };
        let text = "the storage-broker at 127.0.0.1:7700 can't be reached: refused";
        assert_eq!(error.in_full(), text);
        assert!(error.hint().unwrap().contains("pal up"));
        assert_eq!(error.exit_code(), 69);
    }

    #[test]
    fn an_unknown_name_comes_with_the_known_ones() {
        let unknown = |known: &[&str]| CliError::UnknownTimeline {
            name: "x".into(),
            known: known.iter().map(|name| (*name).to_owned()).collect(),
        };
        let hint = unknown(&["a/main", "b/main"]).hint().unwrap();
        assert_eq!(hint, "there are: a/main, b/main");
        assert!(unknown(&[]).hint().unwrap().contains("pal attach"));
    }
}
