use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_redo_postgres::RunAs;
use palimpsest_testkit::{Cluster, ClusterOptions, cluster::PrivateMount};
use palimpsest_types::Lsn;
use tempfile::TempDir;

use super::{
    BaseBackup,
    backup::{data_dir_in, directory_for_server, run},
};
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
        self.run(lsn, directory, None)
    }

    /// Recovers a fresh copy of a backup whose source has tablespaces below `place`, outside its data
    /// directory.
    ///
    /// Links in the backup and records in the log name the source's own directories. The server sees
    /// copies in their place, so it never shares a path with the source.
    pub fn apart_from(
        &self,
        place: &Path,
        backup: &BaseBackup,
        lsn: Lsn,
    ) -> Result<RecoveredInstance> {
        let directory = directory_for_server()?;
        let own = directory.path().join("outside");
        fs::create_dir(&own)?;
        // Replay makes tablespaces only in directories that exist.
        for entry in fs::read_dir(place)? {
            fs::create_dir(own.join(entry?.file_name()))?;
        }
        for (tablespace, files) in backup.outside() {
            let below = tablespace.location.strip_prefix(place);
            let below = below.with_context(|| format!("{tablespace:?} lies elsewhere"))?;
            run(Command::new("cp")
                .args(["-a", "--no-target-directory", "--"])
                .arg(files)
                .arg(own.join(below)))?;
        }
        own_for_server(&own)?;
        let at = place.to_owned();
        self.run(lsn, directory, Some(PrivateMount { own, at }))
    }

    fn run(
        &self,
        lsn: Lsn,
        directory: TempDir,
        mount: Option<PrivateMount>,
    ) -> Result<RecoveredInstance> {
        copy_for_server(self.base, &data_dir_in(directory.path()))?;
        let options = ClusterOptions {
            private_mount: mount.clone(),
            ..self.settings(lsn)
        };
        let mut server = Cluster::open(directory.path(), options)?;
        // Without a hot standby the server is ready only when it has been promoted.
        server.start()?;
        server.stop()?;
        let log = fs::read_to_string(server.log_path())?;
        ensure!(
            log.contains(STOPPED_BEFORE_TARGET),
            "the reference did not stop at {lsn}: {log}"
        );
        let files = match mount {
            None => DataFiles::read(server.data_dir())?,
            Some(PrivateMount { own, at }) => {
                DataFiles::read_with_links(server.data_dir(), |target| {
                    let below = target.strip_prefix(&at);
                    let below = below.with_context(|| format!("a link to {}", target.display()))?;
                    Ok(own.join(below))
                })?
            }
        };
        Ok(RecoveredInstance { files, directory })
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
    own_for_server(to)
}

/// Gives all below a directory to the server's user.
fn own_for_server(directory: &Path) -> Result<()> {
    if let Some(RunAs { uid, gid }) = RunAs::unprivileged()? {
        let owner = format!("{uid}:{gid}");
        run(Command::new("chown")
            .args(["-R", "--no-dereference", &owner, "--"])
            .arg(directory))?;
    }
    Ok(())
}
