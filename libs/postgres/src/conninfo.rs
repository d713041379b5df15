//! Connection strings as libpq reads them: `host=db port=5432 …` or `postgresql://…`.

mod endpoint;
mod key_value;
pub(crate) mod passfile;
mod ssl_mode;
#[cfg(test)]
mod tests;
mod uri;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

pub use endpoint::{Endpoint, Host};
pub(crate) use passfile::lookup as lookup_passfile;
pub use ssl_mode::SslMode;

/// How to reach a PostgreSQL server and as whom. Neither `Debug` nor `Display` shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnInfo {
    endpoints: Vec<Endpoint>,
    user: String,
    password: Option<Password>,
    dbname: Option<String>,
    ssl_mode: SslMode,
    ssl_root_cert: Option<PathBuf>,
    application_name: Option<String>,
    connect_timeout: Option<Duration>,
    passfile: Option<PathBuf>,
    primary_only: bool,
    /// The keys that were given, with their values, but `***` for the password.
    written: Pairs,
}

/// A secret that prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

/// The text is not a connection string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnInfoError {
    /// A key that this client does not know.
    #[error("unknown key {0:?} in the connection string; known are {known}", known = KEYS.join(", "))]
    UnknownKey(String),
    /// A key without a value, or an unfinished quotation.
    #[error("malformed connection string near {near:?}: {reason}")]
    Syntax {
        /// The key, or the part of the text, that is wrong; never a value.
        near: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A key that must be there.
    #[error("the connection string lacks {0}")]
    Missing(&'static str),
    /// A value that its key does not allow.
    #[error("{key} in the connection string must be {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it may be.
        expected: &'static str,
    },
}

/// What is shown for a password.
const REDACTED: &str = "***";

/// Every key that is understood, in the order in which they are shown.
const KEYS: [&str; 13] = [
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "application_name",
    "connect_timeout",
    "passfile",
    "fallback_application_name",
    "target_session_attrs",
];

/// libpq waits for ever; a service that does is stuck, so an absent `connect_timeout` means this.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Keys and values before they are understood.
type Pairs = BTreeMap<String, String>;

impl ConnInfo {
    /// The servers, in the order in which they are tried. Never empty.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The same with one of the servers each, in that order.
    pub fn each_endpoint(&self) -> impl Iterator<Item = Self> + '_ {
        self.endpoints.iter().map(|endpoint| Self {
            endpoints: vec![endpoint.clone()],
            ..self.clone()
        })
    }

    /// The role to log in as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The password, if the string has one.
    pub fn password(&self) -> Option<&Password> {
        self.password.as_ref()
    }

    /// The database, which physical replication ignores.
    pub fn dbname(&self) -> Option<&str> {
        self.dbname.as_deref()
    }

    /// How much TLS is asked for.
    pub fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// File of trusted certificates; `None` is the system's.
    pub fn ssl_root_cert(&self) -> Option<&Path> {
        self.ssl_root_cert.as_deref()
    }

    /// The name shown in `pg_stat_replication`.
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// Limit on connecting to one server and logging in; `None` is no limit.
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// The password file to look in when there is no password.
    pub fn passfile(&self) -> Option<&Path> {
        self.passfile.as_deref()
    }

    /// Names the password file to use if the string does not: the value of `PGPASSFILE`, else
    /// `.pgpass` in the home directory. The caller reads the environment, this library does not.
    #[must_use]
    pub fn with_default_passfile(mut self, pgpassfile: Option<&Path>, home: Option<&Path>) -> Self {
        let default = || {
            pgpassfile
                .map(Path::to_owned)
                .or_else(|| Some(home?.join(".pgpass")))
        };
        self.passfile = self.passfile.or_else(default);
        self
    }

    /// Whether a standby is passed over as a server that is not there is.
    pub fn primary_only(&self) -> bool {
        self.primary_only
    }

    /// Passes standbys over, whatever the string says.
    #[must_use]
    pub fn with_primary_only(self) -> Self {
        Self {
            primary_only: true,
            ..self
        }
    }

    /// Names the application, whatever the string says.
    #[must_use]
    pub fn with_application_name(mut self, name: &str) -> Self {
        self.application_name = Some(name.to_owned());
        self.written
            .insert("application_name".to_owned(), name.to_owned());
        self
    }

    /// What was written, as keys and values in a fixed order, with `***` for the password: fit for
    /// logs. Defaults are not shown, so that people recognise their own string.
    pub fn redacted(&self) -> String {
        let written = |key: &'static str| Some((key, self.written.get(key)?.clone()));
        key_value::format(&KEYS.into_iter().filter_map(written).collect::<Vec<_>>())
    }

    fn from_pairs(mut pairs: Pairs) -> Result<Self, ConnInfoError> {
        if let Some(unknown) = pairs.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(ConnInfoError::UnknownKey(unknown.clone()));
        }
        // libpq takes an empty value for an absent one.
        pairs.retain(|_, value| !value.is_empty());
        let mut written = pairs.clone();
        if let Some(password) = written.get_mut("password") {
            *password = REDACTED.to_owned();
        }
        let mut take = |key: &str| pairs.remove(key);
        let endpoints = endpoint::endpoints(take("host"), take("hostaddr"), take("port"))?;
        let fallback_name = take("fallback_application_name");
        Ok(Self {
            endpoints,
            user: take("user").ok_or(ConnInfoError::Missing("user"))?,
            password: take("password").map(Password),
            dbname: take("dbname"),
            ssl_mode: take("sslmode").map_or(Ok(SslMode::default()), |mode| mode.parse())?,
            ssl_root_cert: take("sslrootcert")
                .filter(|path| path != "system")
                .map(PathBuf::from),
            application_name: take("application_name").or(fallback_name),
            connect_timeout: connect_timeout(take("connect_timeout"))?,
            passfile: take("passfile").map(PathBuf::from),
            primary_only: primary_only(take("target_session_attrs"))?,
            written,
        })
    }
}

impl FromStr for ConnInfo {
    type Err = ConnInfoError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        // Neither the protocol nor the file system can carry a NUL.
        if text.contains('\0') {
            let near = "\\0".to_owned();
            return Err(ConnInfoError::Syntax {
                near,
                reason: "it contains a NUL character",
            });
        }
        let uri = ["postgresql://", "postgres://"]
            .iter()
            .find_map(|s| text.strip_prefix(s));
        Self::from_pairs(match uri {
            Some(rest) => uri::parse(rest)?,
            None => key_value::parse(text)?,
        })
    }
}

impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnInfo({})", self.redacted())
    }
}

impl Password {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// `target_session_attrs`. WAL comes from a primary, so the values that ask for a standby are refused.
fn primary_only(value: Option<String>) -> Result<bool, ConnInfoError> {
    match value.as_deref() {
        None | Some("any") => Ok(false),
        Some("primary" | "read-write") => Ok(true),
        Some(_) => Err(ConnInfoError::Value {
            key: "target_session_attrs",
            expected: "primary, read-write or any",
        }),
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

fn connect_timeout(text: Option<String>) -> Result<Option<Duration>, ConnInfoError> {
    let Some(text) = text else {
        return Ok(Some(DEFAULT_CONNECT_TIMEOUT));
    };
    let expected = "a number of seconds, 0 for no limit";
    let seconds: u32 = text.parse().map_err(|_| ConnInfoError::Value {
        key: "connect_timeout",
        expected,
    })?;
    Ok((seconds > 0).then(|| Duration::from_secs(u64::from(seconds))))
}
