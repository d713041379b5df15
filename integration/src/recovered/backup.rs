use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use palimpsest_postgres::BackupLabel;
use palimpsest_redo_postgres::RunAs;
use palimpsest_testkit::{Cluster, cluster::SUPERUSER};
use palimpsest_types::{Lsn, Oid};
use tempfile::TempDir;

/// A base backup of a running cluster, extracted, without WAL.
///
/// Its pages are fuzzy: each is from some moment between start and end.
#[derive(Debug)]
pub struct BaseBackup {
    directory: TempDir,
    start: Lsn,
    end: Lsn,
    outside: Vec<OutsideTablespace>,
}

/// A tablespace whose files are not in the data directory but where a link there points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutsideTablespace {
    /// Its number, which is the name of the link in `pg_tblspc`.
    pub oid: Oid,
    /// Where the source has its files, and where the link points.
    pub location: PathBuf,
}

impl BaseBackup {
    /// Takes one by `pg_basebackup`, at this speed at most, so that the cluster can change
    /// meanwhile.
    pub fn take(cluster: &Cluster, kib_per_second: u32) -> Result<Self> {
        let rate = format!("--max-rate={kib_per_second}");
        Self::take_by(cluster, &["--no-sync", "--wal-method=none", &rate])
    }

    /// Takes one that has all the WAL that it needs, as fast as it goes; it is on disk then.
    pub fn take_with_wal(cluster: &Cluster) -> Result<Self> {
        Self::take_by(cluster, &["--wal-method=stream"])
    }

    fn take_by(cluster: &Cluster, options: &[&str]) -> Result<Self> {
        let directory = directory_for_server()?;
        let data = data_dir_in(directory.path());
        let mut command = Command::new(palimpsest_testkit::cluster::pg_bin().join("pg_basebackup"));
        command
            .args(options)
            .args(["--checkpoint=fast", "--dbname"])
            .arg(cluster.conninfo(SUPERUSER))
            .arg("--pgdata")
            .arg(&data)
            .env("LC_ALL", "C");
        if let Some(RunAs { uid, gid }) = RunAs::unprivileged()? {
            command.uid(uid).gid(gid).current_dir(directory.path());
        }
        run(&mut command)?;
        let label = BackupLabel::parse(&fs::read(data.join("backup_label"))?)?;
        let end = end_in_manifest(&data.join("backup_manifest"))?;
        Ok(Self {
            directory,
            start: label.start,
            end,
            outside: Vec::new(),
        })
    }

    /// One that was received and extracted in `directory`.
    pub(super) fn received(
        directory: TempDir,
        end: Lsn,
        outside: Vec<OutsideTablespace>,
    ) -> Result<Self> {
        let data = data_dir_in(directory.path());
        let label = BackupLabel::parse(&fs::read(data.join("backup_label"))?)?;
        Ok(Self {
            directory,
            start: label.start,
            end,
            outside,
        })
    }

    /// The extracted data directory.
    pub fn data_dir(&self) -> PathBuf {
        data_dir_in(self.directory.path())
    }

    /// The tablespaces outside the data directory, each with its files as extracted.
    pub fn outside(&self) -> impl Iterator<Item = (&OutsideTablespace, PathBuf)> {
        let files = |tablespace: &OutsideTablespace| tablespace.files_in(self.directory.path());
        self.outside
            .iter()
            .map(move |tablespace| (tablespace, files(tablespace)))
    }

    /// Where replay begins.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// The first LSN at which replay has made the pages consistent with each other.
    pub fn end(&self) -> Lsn {
        self.end
    }
}

impl OutsideTablespace {
    /// Where its files are in the directory of an extracted backup.
    pub(super) fn files_in(&self, directory: &Path) -> PathBuf {
        directory.join("tablespaces").join(self.oid.to_string())
    }
}

/// Extracts a tar archive, with its links as they are, to a new directory that nobody else enters:
/// PostgreSQL insists on that.
pub(super) fn extract(archive: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, Permissions::from_mode(0o700))?;
    run(Command::new("tar")
        .args(["--extract", "--absolute-names", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(to))
}

/// Where a cluster's data directory is within the directory that is the cluster's own.
pub(super) fn data_dir_in(directory: &Path) -> PathBuf {
    directory.join("data")
}

/// A new directory that the server's user can write to.
pub(super) fn directory_for_server() -> Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("pal-").tempdir()?;
    if let Some(RunAs { uid, gid }) = RunAs::unprivileged()? {
        chown(directory.path(), Some(uid), Some(gid))?;
    }
    Ok(directory)
}

/// Runs a program to its end; an error carries its complaints.
pub(super) fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("executing {command:?}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    ensure!(
        status.success(),
        "{command:?} ended with {status}: {complaint}"
    );
    Ok(())
}

/// The backup needs one range of WAL; a second one would belong to another timeline.
fn end_in_manifest(path: &Path) -> Result<Lsn> {
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(path)?)?;
    let end = manifest["WAL-Ranges"][0]["End-LSN"].as_str();
    let end = end.with_context(|| format!("{} names no range of WAL", path.display()))?;
    Ok(end.parse()?)
}
