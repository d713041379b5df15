//! Where settings come from.

use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use config::ValueKind;

use crate::{
    Problem, Problems, Service, TomlFile,
    environment::{PREFIX, section_and_key, variable},
};

/// A file that is longer is no file of settings.
const MAX_FILE: u64 = 1 << 20;

/// What a process was told, but for its defaults.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<TomlFile>,
    /// Variables with their values.
    pub variables: Vec<(String, String)>,
    /// Keys of the flags that were given, with their values.
    pub flags: Vec<(String, String)>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of a file.
    Line {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
    },
    /// The variable of this name.
    Variable(String),
    /// The flag of this key.
    Flag(String),
}

impl Sources {
    /// Reads the file and our variables among `variables`.
    ///
    /// # Errors
    /// If the file can't be read or understood, or a variable is not text.
    pub fn gather(
        file: Option<&Path>,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Problems> {
        let file = file.map(read).transpose()?;
        let ours = |(name, value): (OsString, OsString)| {
            let name = name.into_string().ok()?;
            name.starts_with(PREFIX).then_some((name, value))
        };
        let mut texts = Vec::new();
        for (name, value) in variables.filter_map(ours) {
            let value = value.into_string().map_err(|_| Problem::NotText {
                origin: Origin::Variable(name.clone()),
            })?;
            texts.push((name, value));
        }
        Ok(Self {
            file,
            variables: texts,
            flags: Vec::new(),
        })
    }

    /// The same with these flags.
    #[must_use]
    pub fn with_flags(self, flags: Vec<(String, String)>) -> Self {
        Self { flags, ..self }
    }

    /// What is said for a service, or for every process, the strongest source last.
    pub(crate) fn settings(
        &self,
        service: Option<Service>,
        keys: &[&str],
    ) -> [Vec<(String, Origin, ValueKind)>; 3] {
        let file = self.file.iter().flat_map(|file| file.settings(service));
        let flags = self.flags.iter().map(|(key, value)| {
            let origin = Origin::Flag(key.clone());
            (key.clone(), origin, value.clone().into())
        });
        let variables = self.variables.iter().filter_map(|(name, value)| {
            let key = match service {
                Some(service) => {
                    let (section, key) = section_and_key(name)?;
                    (section == service.name()).then_some(key)?
                }
                // Not every variable of ours is a setting of every process.
                None => (*keys.iter().find(|key| variable(None, key) == *name)?).to_owned(),
            };
            let origin = Origin::Variable(name.clone());
            Some((key, origin, value.clone().into()))
        });
        [file.collect(), variables.collect(), flags.collect()]
    }

    /// Variables that are written like those of a service that does not exist.
    pub(crate) fn strange_variables(&self) -> impl Iterator<Item = Problem> {
        self.variables.iter().filter_map(|(name, _)| {
            let (section, _) = section_and_key(name)?;
            let known = Service::ALL.iter().any(|service| service.name() == section);
            (!known).then(|| Problem::UnknownSection {
                origin: Origin::Variable(name.clone()),
                section,
            })
        })
    }
}

fn read(path: &Path) -> Result<TomlFile, Problems> {
    let unreadable = |source| Problem::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    let length = file.take(MAX_FILE).read_to_string(&mut text);
    if length.map_err(unreadable)? as u64 == MAX_FILE {
        let error = io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB");
        return Err(unreadable(error).into());
    }
    TomlFile::parse(&path.display().to_string(), &text)
}

impl Origin {
    pub(crate) fn line(file: &str, line: usize) -> Self {
        Self::Line {
            file: file.to_owned(),
            line,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(key) => write!(f, "--{key}"),
        }
    }
}
