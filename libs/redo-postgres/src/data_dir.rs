//! The private directory of a redo process: just what `postgres` checks before it is taken over.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::{process::Command, task::spawn_blocking};

use crate::{EngineSettings, RunAs, StartError, scratch};

/// Removed when dropped; by the next one that is made, if this process has no time for it.
#[derive(Debug)]
pub(crate) struct DataDir {
    directory: TempDir,
    /// Says that the directory is in use; dropped after it is gone.
    _lock: File,
}

/// Directories that `postgres` opens or writes at start.
const DIRECTORIES: [&str; 3] = ["global", "pg_dynshmem", "pg_notify"];

/// `postgres` refuses a data directory that others can look into.
const MODE: u32 = 0o700;

impl DataDir {
    /// Makes one that belongs to the user the process will run as. Those that killed processes left
    /// go away.
    pub(crate) async fn create(settings: &EngineSettings) -> Result<Self, StartError> {
        let (place, run_as) = (settings.scratch.clone(), settings.run_as);
        // What stays behind is in nobody's way, so neither its failure nor its end matters.
        spawn_blocking(move || scratch::remove_abandoned(&place, run_as));
        let directory = tempfile::Builder::new()
            .prefix(scratch::PREFIX)
            .permissions(fs::Permissions::from_mode(MODE))
            .tempdir_in(&settings.scratch)
            .map_err(failed_at(&settings.scratch))?;
        let root = directory.path();
        let lock = scratch::claim(root).map_err(failed_at(root))?;
        give(root, settings.run_as).map_err(failed_at(root))?;
        for name in DIRECTORIES {
            let path = root.join(name);
            fs::create_dir(&path)
                .and_then(|()| give(&path, settings.run_as))
                .map_err(failed_at(&path))?;
        }
        let version = make_control_file(settings, &root.join("global/pg_control")).await?;
        let path = root.join("PG_VERSION");
        fs::write(&path, version)
            .and_then(|()| give(&path, settings.run_as))
            .map_err(failed_at(&path))?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Forgets a process that was killed at start, before it removed its lock file: its number may
    /// belong to another process by now, and `postgres` would refuse to start.
    pub(crate) fn unlock(&self) -> Result<(), StartError> {
        let path = self.path().join("postmaster.pid");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed_at(&path)(error)),
            _ => Ok(()),
        }
    }
}

/// Runs `mkcontrol`; gives what it prints, the contents of `PG_VERSION`.
async fn make_control_file(settings: &EngineSettings, path: &Path) -> Result<Vec<u8>, StartError> {
    let program = &settings.mkcontrol;
    let mut command = Command::new(program);
    command
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(RunAs { uid, gid }) = settings.run_as {
        command.uid(uid).gid(gid);
    }
    let output = command.output().await.map_err(|source| StartError::Spawn {
        program: program.clone(),
        source,
    })?;
    if !output.status.success() {
        return Err(StartError::ControlFile {
            program: program.clone(),
            status: output.status.to_string(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(output.stdout)
}

fn give(path: &Path, owner: Option<RunAs>) -> io::Result<()> {
    owner.map_or(Ok(()), |RunAs { uid, gid }| {
        chown(path, Some(uid), Some(gid))
    })
}

fn failed_at(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = PathBuf::from(path);
    |source| StartError::DataDir { path, source }
}
