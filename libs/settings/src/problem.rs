//! What is wrong with settings.

use std::{fmt, io, path::PathBuf};

use crate::{Service, sources::Origin};

/// One thing that is wrong: where it stands, what was expected, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file can't be read.
    #[error("can't read the settings in {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{origin}: this is not TOML: {message}")]
    NotToml {
        /// Where.
        origin: Origin,
        /// What the parser says.
        message: String,
    },
    /// There is no such service.
    #[error(
        "{origin}: there is no service {section:?}; there are {}",
        Service::names()
    )]
    UnknownSection {
        /// Where.
        origin: Origin,
        /// The name.
        section: String,
    },
    /// A service has no such setting.
    #[error("{origin}: {whose} has no setting {key:?}; it has {known}")]
    UnknownSetting {
        /// Where.
        origin: Origin,
        /// Who.
        whose: &'static str,
        /// The name.
        key: String,
        /// Names that there are.
        known: String,
    },
    /// A variable is not text.
    #[error("{origin}: the value is not UTF-8")]
    NotText {
        /// Where.
        origin: Origin,
    },
    /// A value is of its type, but has no place in a file.
    #[error(
        "a setting of {whose} can't be written as TOML: {message}; paths must be UTF-8, numbers below 2^63"
    )]
    Unwritable {
        /// Of which program.
        whose: &'static str,
        /// Why.
        message: String,
    },
    /// A value is not of the setting's type, or can't work.
    #[error("{origin}: {key}: {message}")]
    Value {
        /// Where.
        origin: String,
        /// The setting.
        key: String,
        /// What is wrong and what was expected.
        message: String,
    },
}

/// Everything that is wrong.
#[derive(Debug)]
pub struct Problems(pub Vec<Problem>);

impl Problem {
    /// The problem with its cause, as one line.
    pub fn in_full(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(Problem::in_full).collect();
        f.write_str(&lines.join("; "))
    }
}

impl std::error::Error for Problems {}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}
