//! A stock PostgreSQL in a directory of its own: made, started, stopped, crashed and looked into.
//!
//! The server is a direct child of this process, in a process group of its own so that Ctrl-C in
//! a terminal does not reach it before its owner decides. It listens on a unix socket below
//! `/tmp` that only its user can enter, and on loopback only if a port was asked for. PostgreSQL
//! refuses to run as root; then everything it touches belongs to the user `postgres`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

mod account;
mod counters;
mod options;
mod place;
mod private_mount;
mod process;
mod query;
mod session;

pub use counters::Counters;
pub use options::{ClusterOptions, SUPERUSER, pg_bin};
pub use private_mount::PrivateMount;
pub use session::Session;

use account::Account;
use place::Place;

/// How long a start may take; recovery of a crashed test cluster is part of it.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long a stop may take before it is an error.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A PostgreSQL cluster that belongs to this value and is stopped when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    account: Account,
    place: Place,
    /// Holds the socket; short, because a socket's path is limited to about 100 bytes.
    sockets: TempDir,
    server: Option<Child>,
    /// Removed last, after the server has let go of it.
    _temporary: Option<TempDir>,
}

impl Cluster {
    /// Makes a new cluster in `dir`, which must be empty or missing. It is not started.
    ///
    /// When the server's user cannot reach `dir`, the files go to a directory of their own below
    /// `/var/tmp` and `dir/data` is a link to it; [`Cluster::moved_to`] says so.
    pub fn init(dir: &Path, options: ClusterOptions) -> Result<Self> {
        let account = Account::for_server()?;
        let place = Place::create(dir, &account)?;
        let cluster = Self::at(place, account, options)?;
        cluster.initdb()?;
        cluster.configure()?;
        Ok(cluster)
    }

    /// Makes a new cluster in a temporary directory that disappears with the returned value.
    pub fn temporary(options: ClusterOptions) -> Result<Self> {
        let dir = short_temp_dir()?;
        let mut cluster = Self::init(dir.path(), options)?;
        cluster._temporary = Some(dir);
        Ok(cluster)
    }

    /// Takes over a stopped cluster that [`Cluster::init`] made in `dir`, or a data directory that
    /// was copied or restored to `dir/data`. The settings of `options` replace the earlier ones.
    pub fn open(dir: &Path, options: ClusterOptions) -> Result<Self> {
        let account = Account::for_server()?;
        let place = Place::existing(dir, &account)?;
        let cluster = Self::at(place, account, options)?;
        cluster.configure()?;
        Ok(cluster)
    }

    fn at(place: Place, account: Account, options: ClusterOptions) -> Result<Self> {
        let sockets = short_temp_dir()?;
        account.own(sockets.path())?;
        Ok(Self {
            options,
            account,
            place,
            sockets,
            server: None,
            _temporary: None,
        })
    }

    fn initdb(&self) -> Result<()> {
        let mut command = self.as_server("initdb");
        command
            .args([
                "--no-sync",
                "--no-instructions",
                "--auth=trust",
                "--encoding=UTF8",
            ])
            .args(["--locale=C", "--username", SUPERUSER])
            .arg(format!(
                "--wal-segsize={}",
                self.options.wal_segment_size_mib
            ))
            .arg("--pgdata")
            .arg(self.data_dir());
        if self.options.data_checksums {
            command.arg("--data-checksums");
        }
        process::output(&mut command)
            .map(drop)
            .context("initdb failed")
    }

    /// Writes the settings to a file of their own, included last, so that opening again with other
    /// options replaces them.
    fn configure(&self) -> Result<()> {
        const INCLUDE: &str = "include_if_exists = 'testkit.conf'";
        let main = self.data_dir().join("postgresql.conf");
        let own = self.data_dir().join("testkit.conf");
        let text = fs::read_to_string(&main)
            .with_context(|| format!("reading the settings in {}", main.display()))?;
        if !text.lines().any(|line| line == INCLUDE) {
            fs::write(&main, format!("{text}\n{INCLUDE}\n"))?;
        }
        fs::write(&own, self.options.configuration(self.sockets.path()))?;
        self.account.own(&own)
    }

    /// Starts the server and waits until it accepts connections.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "the server is running already");
        ensure!(
            self.options.private_mount.is_none() || self.account != Account::Caller,
            "a private mount takes root"
        );
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut child = self
            .server()
            .arg("-D")
            .arg(self.data_dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("postgres could not be executed")?;
        let ready = process::wait_until_ready(&mut child, self.data_dir(), START_LIMIT);
        if let Err(error) = ready {
            process::kill_with_children(&mut child);
            return Err(error.context(format!("postgres did not start; {}", self.log_tail())));
        }
        self.server = Some(child);
        Ok(())
    }

    /// Stops the server as `pg_ctl stop -m fast`: sessions are ended, a checkpoint is written.
    pub fn stop(&mut self) -> Result<()> {
        self.stop_by(rustix::process::Signal::INT)
    }

    /// Stops the server as `pg_ctl stop -m immediate`: no checkpoint, the next start recovers.
    pub fn stop_immediate(&mut self) -> Result<()> {
        self.stop_by(rustix::process::Signal::QUIT)
    }

    fn stop_by(&mut self, signal: rustix::process::Signal) -> Result<()> {
        let Some(mut child) = self.server.take() else {
            bail!("the server is not running")
        };
        if let Err(error) = process::stop(&mut child, signal, STOP_LIMIT) {
            process::kill_with_children(&mut child);
            return Err(error.context(self.log_tail()));
        }
        Ok(())
    }

    /// Kills the server and every process of it with SIGKILL, as the machine's death would.
    pub fn kill9(&mut self) -> Result<()> {
        let Some(mut child) = self.server.take() else {
            bail!("the server is not running")
        };
        process::kill_with_children(&mut child);
        Ok(())
    }

    /// Whether the server was started and has not been stopped since.
    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    /// Copies the data directory of the stopped server to `to`, which must not exist.
    ///
    /// Refuses absolute tablespace links: the copy would share their files with the original.
    pub fn copy_data_dir(&self, to: &Path) -> Result<()> {
        ensure!(
            self.server.is_none(),
            "stop the server before its files are copied"
        );
        ensure!(!to.exists(), "{} exists already", to.display());
        for entry in fs::read_dir(self.data_dir().join("pg_tblspc"))? {
            let entry = entry?;
            let linked = entry.file_type()?.is_symlink();
            ensure!(
                !linked,
                "tablespace {} lies elsewhere",
                entry.path().display()
            );
        }
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto", "--"])
            .arg(self.data_dir())
            .arg(to);
        process::output(&mut copy).map(drop)
    }

    /// The data directory (`PGDATA`), free of links.
    pub fn data_dir(&self) -> &Path {
        self.place.data()
    }

    /// Where the files went if the server's user could not reach the directory asked for.
    pub fn moved_to(&self) -> Option<&Path> {
        self.place.moved_to()
    }

    /// The directory of the unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.sockets.path()
    }

    /// The port number: of the unix socket, and of loopback if one was asked for.
    pub fn port(&self) -> u16 {
        self.options.port_number()
    }

    /// A libpq connection string for `user`, over the unix socket, without a database.
    pub fn conninfo(&self, user: &str) -> String {
        format!(
            "host={} port={} user={user}",
            self.socket_dir().display(),
            self.port()
        )
    }

    /// The file that the server writes its log to.
    pub fn log_path(&self) -> PathBuf {
        self.place.root().join("server.log")
    }

    /// The end of the server's log, to be put into an error.
    pub fn log_tail(&self) -> String {
        const TAIL_LINES: usize = 25;
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!(
            "its log {} ends with:\n{}",
            self.log_path().display(),
            tail.join("\n")
        )
    }

    /// The server itself, with what only it sees.
    fn server(&self) -> Command {
        match (&self.options.private_mount, self.account) {
            (Some(mount), Account::Other { uid, gid }) => {
                mount.command(&self.options.pg_bin.join("postgres"), uid, gid)
            }
            _ => self.as_server("postgres"),
        }
    }

    /// A PostgreSQL program to be run as the server's user.
    fn as_server(&self, program: &str) -> Command {
        let mut command = self.tool(program);
        self.account.apply(&mut command);
        command.current_dir(self.place.root());
        command
    }

    /// A PostgreSQL program to be run as the calling user, free of the caller's `PG*` variables.
    fn tool(&self, program: &str) -> Command {
        process::isolated(&self.options.pg_bin.join(program))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut child) = self.server.take() {
            let stopped = process::stop(&mut child, rustix::process::Signal::QUIT, STOP_LIMIT);
            if stopped.is_err() {
                process::kill_with_children(&mut child);
            }
        }
    }
}

fn short_temp_dir() -> Result<TempDir> {
    // Not `$TMPDIR`: that may be long, or closed to the server's user.
    tempfile::Builder::new()
        .prefix("pal-")
        .tempdir_in("/tmp")
        .context("making a directory below /tmp")
}
