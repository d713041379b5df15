//! A throw-away PostgreSQL cluster.

use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::PathBuf,
    process::Command,
};

use palimpsest_redo_postgres::RunAs;
use tempfile::TempDir;

use crate::BIN_DIR;

/// Stopped when dropped.
pub(crate) struct Cluster {
    directory: TempDir,
}

const SETTINGS: &str = "
listen_addresses = ''
fsync = off
autovacuum = off
checkpoint_timeout = '1h'
max_wal_size = '4GB'
wal_keep_size = '4GB'
wal_level = replica
wal_compression = lz4
wal_consistency_checking = 'all'
";

/// Whom servers run as if the tests run as root.
pub(crate) fn unprivileged_user() -> Option<RunAs> {
    RunAs::unprivileged().expect("root needs a user named postgres")
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        if let Some(RunAs { uid, gid }) = unprivileged_user() {
            chown(directory.path(), Some(uid), Some(gid)).unwrap();
        }
        let cluster = Self { directory };
        cluster.run(
            "initdb",
            &["-D", &cluster.data(), "-A", "trust", "-N", "-U", "postgres"],
        );
        let config = cluster.data_dir().join("postgresql.auto.conf");
        let sockets = format!("unix_socket_directories = '{}'", cluster.socket_dir());
        std::fs::write(config, format!("{SETTINGS}{sockets}\n")).unwrap();
        let log = format!("{}/log", cluster.socket_dir());
        cluster.run(
            "pg_ctl",
            &["-D", &cluster.data(), "-l", &log, "-w", "start"],
        );
        cluster
    }

    /// Runs SQL; gives what it selects, unaligned.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let args = [
            "-h",
            &self.socket_dir(),
            "-U",
            "postgres",
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
        ];
        self.run("psql", &[&args[..], &["-c", sql]].concat())
            .trim()
            .to_owned()
    }

    /// Stops it so that all pages are in its files.
    pub(crate) fn shut_down(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", "fast", "-w", "stop"]);
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn data(&self) -> String {
        self.data_dir().to_str().unwrap().to_owned()
    }

    fn socket_dir(&self) -> String {
        self.directory.path().to_str().unwrap().to_owned()
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program, args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(PathBuf::from(BIN_DIR).join(program));
        command
            .args(args)
            .env("LC_ALL", "C")
            .current_dir(self.directory.path());
        if let Some(RunAs { uid, gid }) = unprivileged_user() {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.data_dir().join("postmaster.pid").exists() {
            let args = ["-D", &self.data(), "-m", "immediate", "stop"];
            let _ = self.command("pg_ctl", &args).output();
        }
    }
}
