use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use palimpsest_redo_postgres::RunAs;
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::Lsn;
use tempfile::TempDir;

use super::backup::{data_dir_in, directory_for_server, run};
use crate::oracle::DataFiles;

/// What to recover from.
#[derive(Debug, Clone, Copy)]
pub struct Recovery<'a> {
    /// An extracted base backup; it stays as it is.
    pub base: &'a Path,
    /// A directory with all WAL segments from the backup's start on. The last record must begin at
    /// or after the LSN that is asked for: otherwise PostgreSQL cannot know that it got there.
    pub archive: &'a Path,
    /// How the source was set up. Whether it logs hint bits decides about some page LSNs.
    pub options: &'a ClusterOptions,
}

/// The files of a PostgreSQL that recovered to an LSN and was stopped. They disappear with it.
#[derive(Debug)]
pub struct RecoveredInstance {
    files: DataFiles,
    directory: TempDir,
}

/// What the server logs when it has reached its target, and not otherwise.
const STOPPED_BEFORE_TARGET: &str = "recovery stopping before WAL location";

impl Recovery<'_> {
    /// Recovers a fresh copy to `lsn`, a record boundary at or after the backup's end.
    pub fn to(&self, lsn: Lsn) -> Result<RecoveredInstance> {
        let directory = directory_for_server()?;
        copy_for_server(self.base, &data_dir_in(directory.path()))?;
        let mut server = Cluster::open(directory.path(), self.settings(lsn))?;
        // Without a hot standby the server is ready only when it has been promoted.
        server.start()?;
        server.stop()?;
        let log = fs::read_to_string(server.log_path())?;
        ensure!(
            log.contains(STOPPED_BEFORE_TARGET),
            "the reference did not stop at {lsn}: {log}"
        );
        Ok(RecoveredInstance {
            files: DataFiles::read(server.data_dir())?,
            directory,
        })
    }

    /// Promotion, because a server that shuts down at its target leaves pages of its buffers
    /// unwritten. Everything off that could write a page after it.
    fn settings(&self, lsn: Lsn) -> ClusterOptions {
        let archive = self.archive.display();
        let options = ClusterOptions {
            autovacuum: false,
            durable: false,
            port: None,
            ..self.options.clone()
        };
        options
            .with("autovacuum", "off")
            .with("restore_command", &format!("cp \"{archive}/%f\" \"%p\""))
            .with("recovery_target_lsn", &lsn.to_string())
            .with("recovery_target_inclusive", "off")
            .with("recovery_target_action", "promote")
            .with("hot_standby", "off")
            .with("checkpoint_timeout", "1d")
            .with("max_logical_replication_workers", "0")
            // Otherwise recovery takes tablespaces without links for damage.
            .with("allow_in_place_tablespaces", "on")
            // The copy is read once; its WAL need not stay.
            .with("wal_keep_size", "0")
    }
}

impl RecoveredInstance {
    /// Its relation files.
    pub fn files(&self) -> &DataFiles {
        &self.files
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        data_dir_in(self.directory.path())
    }
}

/// A copy that belongs to the server's user and recovers when it is started.
fn copy_for_server(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp")
        .args(["-a", "--reflink=auto", "--"])
        .arg(from)
        .arg(to))?;
    fs::write(to.join("recovery.signal"), "")?;
    if let Some(RunAs { uid, gid }) = RunAs::unprivileged()? {
        let owner = format!("{uid}:{gid}");
        run(Command::new("chown").args(["-R", &owner, "--"]).arg(to))?;
    }
    Ok(())
}
