use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, lchown},
    path::{Path, PathBuf},
};

use palimpsest_api::{TimelineRef, broker::BranchWriter};
use palimpsest_redo_postgres::RunAs;
use palimpsest_types::{Lsn, SystemIdentifier};
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// The directory of a branch's PostgreSQL, which nobody else starts or stops while this lives.
#[derive(Debug)]
pub(crate) struct ComputePlace {
    dir: PathBuf,
    _lock: File,
}

/// What is remembered of a PostgreSQL whose data directory is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Record {
    /// The branch, as it was called then.
    pub(crate) name: String,
    /// TCP port, and part of its socket's name.
    pub(crate) port: u16,
    /// A superuser who may log in.
    pub(crate) superuser: String,
    /// The cluster that it is.
    pub(crate) system_identifier: u64,
    /// Its PostgreSQL timeline.
    pub(crate) pg_timeline: u32,
    /// Where its WAL begins.
    pub(crate) begin: Lsn,
    /// Whether its WAL is the history of the branch.
    pub(crate) is_attached: bool,
    /// The cluster whose place it takes, until it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<u64>,
}

const RECORD: &str = "compute.json";
const LOCK: &str = "lock";
/// `sun_path` without its last zero.
const LONGEST_SOCKET: usize = 107;
/// What comes after the directory: `/.s.PGSQL.65535.lock`.
const SOCKET_NAME: usize = 20;

impl ComputePlace {
    /// Makes the directory if it is missing, and takes it.
    ///
    /// # Errors
    /// If somebody else starts or stops this one, or it can't be written.
    pub(crate) fn claim(data: &Path, branch: TimelineRef) -> Result<Self, CliError> {
        Self::make(directory(data, branch))
    }

    /// The one of a cluster that a tenant is made of; its name is a good one.
    ///
    /// # Errors
    /// As [`ComputePlace::claim`].
    pub(crate) fn claim_first(data: &Path, tenant: &str) -> Result<Self, CliError> {
        Self::make(data.join("computes").join(format!("init-{tenant}")))
    }

    fn make(dir: PathBuf) -> Result<Self, CliError> {
        let made = DirBuilder::new().recursive(true).mode(0o711).create(&dir);
        made.map_err(CliError::file(&dir))?;
        Self::take(dir)
    }

    fn take(dir: PathBuf) -> Result<Self, CliError> {
        let dir = dir.canonicalize().map_err(CliError::file(&dir))?;
        let path = dir.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(CliError::file(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CliError::Failed {
                    what: "another command is starting or stopping it".to_owned(),
                    hint: Some("wait until that is done".to_owned()),
                });
            }
            Err(TryLockError::Error(error)) => return Err(CliError::file(&path)(error)),
        }
        let place = Self { dir, _lock: lock };
        place.check_length()?;
        Ok(place)
    }

    /// The same, if there is one.
    ///
    /// # Errors
    /// As [`ComputePlace::claim`].
    pub(crate) fn existing(data: &Path, branch: TimelineRef) -> Result<Option<Self>, CliError> {
        match directory(data, branch).exists() {
            true => Self::claim(data, branch).map(Some),
            false => Ok(None),
        }
    }

    /// Whether one was started for a branch.
    pub(crate) fn is_here(data: &Path, branch: TimelineRef) -> bool {
        directory(data, branch).join(RECORD).exists()
    }

    /// The one that was started for a branch of this name, by what is remembered here alone.
    ///
    /// # Errors
    /// If there are several, as of several tenants, or something can't be read.
    pub(crate) fn called(data: &Path, name: &str) -> Result<Option<(Self, Record)>, CliError> {
        let computes = data.join("computes");
        let entries = match fs::read_dir(&computes) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CliError::file(&computes)(error)),
        };
        let mut found = None;
        for entry in entries {
            let dir = entry.map_err(CliError::file(&computes))?.path();
            let Some(record) = read_record(&dir)? else {
                continue;
            };
            let own = record.name.split_once('/').map(|(_, branch)| branch);
            if record.name != name && own != Some(name) {
                continue;
            }
            if found.is_some() {
                return Err(CliError::Failed {
                    what: format!("several branches are called {name}"),
                    hint: Some("say of which tenant: TENANT/BRANCH".to_owned()),
                });
            }
            found = Some((Self::take(dir)?, record));
        }
        Ok(found)
    }

    /// A socket's path may not be longer than an address of the system.
    fn check_length(&self) -> Result<(), CliError> {
        let path = self.sockets();
        let most = LONGEST_SOCKET - SOCKET_NAME;
        match path.as_os_str().len() > most {
            false => Ok(()),
            true => Err(CliError::Failed {
                what: format!("{} is too long for a socket", path.display()),
                hint: Some("use a data directory with a shorter path (--data)".to_owned()),
            }),
        }
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where its socket is.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// What it says.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What is remembered; nothing if no data directory was completed.
    pub(crate) fn record(&self) -> Result<Option<Record>, CliError> {
        read_record(&self.dir)
    }

    /// Remembers it, once its data directory is complete.
    pub(crate) fn remember(&self, record: &Record) -> Result<(), CliError> {
        let (path, new) = (self.dir.join(RECORD), self.dir.join("compute.json.new"));
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from);
        let written = text.and_then(|text| {
            fs::write(&new, text)?;
            // With all that was written before it.
            rustix::fs::syncfs(File::open(&new)?)?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        });
        written.map_err(CliError::file(&path))
    }

    /// Forgets it, then removes its data: half of it is never taken for a whole one.
    pub(crate) fn clear(&self) -> Result<(), CliError> {
        let path = self.dir.join(RECORD);
        let missing = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        };
        let removed = fs::remove_file(&path).or_else(missing);
        removed.map_err(CliError::file(&path))?;
        for path in [self.data(), self.sockets()] {
            let removed = fs::remove_dir_all(&path).or_else(missing);
            removed.map_err(CliError::file(&path))?;
        }
        Ok(())
    }

    /// Removes all of it.
    pub(crate) fn remove(self) -> Result<(), CliError> {
        self.clear()?;
        let removed = fs::remove_dir_all(&self.dir);
        removed.map_err(CliError::file(&self.dir))
    }

    /// Makes the directory of the socket.
    pub(crate) fn make_sockets(&self) -> Result<(), CliError> {
        own_directory(&self.sockets())
    }

    /// Makes the data directory, with nothing in it.
    pub(crate) fn make_data(&self) -> Result<(), CliError> {
        own_directory(&self.data())
    }

    /// Gives what it has to the user as whom it runs.
    pub(crate) fn give_to(&self, user: RunAs) -> Result<(), CliError> {
        let log = self.log();
        let opened = File::options().create(true).append(true).open(&log);
        opened.map_err(CliError::file(&log))?;
        for path in [self.data(), self.sockets(), log] {
            give(&path, user).map_err(CliError::file(&path))?;
        }
        Ok(())
    }

    /// The first directory on the way that a user can't pass through.
    pub(crate) fn barred_to(&self, user: RunAs) -> Option<PathBuf> {
        use std::os::unix::fs::MetadataExt as _;
        let bars = |directory: &&Path| {
            let Ok(found) = directory.metadata() else {
                return true;
            };
            let bit = match () {
                () if found.uid() == user.uid => 0o100,
                () if found.gid() == user.gid => 0o010,
                () => 0o001,
            };
            found.mode() & bit == 0
        };
        self.dir.ancestors().find(bars).map(Path::to_owned)
    }
}

fn own_directory(path: &Path) -> Result<(), CliError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(CliError::file(path)(error))
        }
        _ => Ok(()),
    }
}

fn read_record(dir: &Path) -> Result<Option<Record>, CliError> {
    let path = dir.join(RECORD);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CliError::file(&path)(error)),
    };
    let record = serde_json::from_slice(&text);
    record.map_err(|error| CliError::file(&path)(error.into()))
}

fn directory(data: &Path, branch: TimelineRef) -> PathBuf {
    data.join("computes").join(branch.timeline.to_string())
}

/// Gives a file, or a directory with all that is in it. Links are given, not followed.
fn give(path: &Path, user: RunAs) -> io::Result<()> {
    let found = path.symlink_metadata()?;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    lchown(path, Some(user.uid), Some(user.gid))
}

impl Record {
    /// How the storage-broker is told of it.
    pub(crate) fn writer(&self) -> BranchWriter {
        BranchWriter {
            system_identifier: SystemIdentifier::new(self.system_identifier),
            pg_timeline: self.pg_timeline,
            begin: self.begin,
        }
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    const BRANCH: TimelineRef = TimelineRef {
        tenant: TenantId::from_bytes([1; 16]),
        timeline: TimelineId::from_bytes([2; 16]),
    };

    #[test]
    fn only_what_was_completed_is_remembered_and_only_by_one() {
        let data = tempfile::tempdir().unwrap();
        let place = ComputePlace::claim(data.path(), BRANCH).unwrap();
        assert!(ComputePlace::claim(data.path(), BRANCH).is_err());
        assert_eq!(place.record().unwrap(), None);
        let record = Record {
            name: "shop/a".to_owned(),
            port: 5433,
            superuser: "postgres".to_owned(),
            system_identifier: u64::MAX,
            pg_timeline: 7,
            begin: Lsn::new(8),
            is_attached: true,
            replaces: None,
        };
        fs::create_dir(place.data()).unwrap();
        place.remember(&record).unwrap();
        drop(place);
        for name in ["a", "shop/a"] {
            let (_, called) = ComputePlace::called(data.path(), name).unwrap().unwrap();
            assert_eq!(called, record);
        }
        for name in ["b", "other/a", "shop"] {
            assert!(ComputePlace::called(data.path(), name).unwrap().is_none());
        }
        let place = ComputePlace::claim(data.path(), BRANCH).unwrap();
        assert_eq!(place.record().unwrap(), Some(record));
        place.clear().unwrap();
        place.clear().unwrap();
        assert_eq!(place.record().unwrap(), None);
        assert!(!place.data().exists());
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_refused_at_once() {
        let data = tempfile::tempdir().unwrap();
        let long = data.path().join("a".repeat(80));
        let error = ComputePlace::claim(&long, BRANCH).unwrap_err();
        assert!(error.hint().unwrap().contains("--data"), "{error}");
    }
}
