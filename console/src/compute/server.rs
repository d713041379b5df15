use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{
        fs::{OpenOptionsExt as _, fchown},
        process::CommandExt as _,
    },
    path::{self, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use clap::Args;
use palimpsest_postgres::ControlFile;
use palimpsest_redo_postgres::RunAs;
use palimpsest_types::Lsn;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{ComputePlace, Record, files::quoted};
use crate::{error::CliError, stack::default_pg_bin};

/// Where PostgreSQL's programs are.
#[derive(Debug, Clone, Args)]
pub struct Programs {
    /// Where PostgreSQL's programs are.
    #[arg(long, env = "PALIMPSEST_PG_BIN", value_name = "DIR", default_value_os_t = default_pg_bin())]
    pub pg_bin: PathBuf,
}

/// The server in a place, by PostgreSQL's own programs.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    programs: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    user: Option<RunAs>,
}

/// How long it may take to start or to stop; what it does goes on after that.
const PATIENCE_SECONDS: u32 = 120;
/// How long an initdb may take that nobody waits for any more.
const INITDB: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
/// Lines of its log that a person is shown.
const LAST_WORDS: usize = 5;
/// `pg_ctl status`: nothing runs there.
const NOT_RUNNING: i32 = 3;

impl Server {
    /// The one in a place, run by who may.
    pub(crate) fn new(programs: &Programs, place: &ComputePlace) -> Result<Self, CliError> {
        let user = RunAs::unprivileged().map_err(|error| CliError::Failed {
            what: error.to_string(),
            hint: None,
        })?;
        Ok(Self {
            // What is started runs elsewhere.
            programs: path::absolute(&programs.pg_bin).map_err(CliError::file(&programs.pg_bin))?,
            data: place.data(),
            sockets: place.sockets(),
            log: place.log(),
            user,
        })
    }

    /// As whom it runs, if that is not us.
    pub(crate) fn user(&self) -> Option<RunAs> {
        self.user
    }

    /// How a program reaches it: by the socket, as the superuser.
    pub(crate) fn conninfo(&self, record: &Record) -> String {
        self.conninfo_as(&record.superuser, record.port)
    }

    /// The same of one of which nothing is remembered.
    pub(crate) fn conninfo_as(&self, superuser: &str, port: u16) -> String {
        format!(
            "host={} port={port} user={} dbname=postgres",
            quoted(&self.sockets.display().to_string()),
            quoted(superuser),
        )
    }

    /// Whether a connection string leads to its socket.
    pub(crate) fn is_its(&self, conninfo: &str) -> bool {
        conninfo.contains(&self.sockets.display().to_string())
    }

    /// Makes the cluster, of which only who reaches the socket may be anybody.
    pub(crate) async fn init(&self, superuser: &str, arguments: &[String]) -> Result<(), CliError> {
        let mut command = self.command("initdb");
        command
            .args(["--auth=trust", "--no-sync", "--username", superuser])
            .args(arguments);
        let made = self.run(command).await?;
        match made.status.success() {
            true => Ok(()),
            false => Err(CliError::Failed {
                what: said("it can't be made", &made.stderr),
                hint: None,
            }),
        }
    }

    /// Ends it at once, if it runs: nothing that it has is needed any more.
    pub(crate) async fn kill(&self) -> Result<(), CliError> {
        let begun = Instant::now();
        while self.is_running().await? {
            let ended = self.pg_ctl(&["stop", "-m", "immediate", "-w"]).await?;
            // An initdb that was left alone has servers that take no orders, each for a moment.
            if !ended.status.success() && begun.elapsed() > INITDB {
                return Err(self.failed("it does not stop", &ended.stderr));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Writes a file of its own anew, with something at its end; while the directory is still ours, as it is read for that.
    pub(crate) fn append(&self, name: &str, text: &str) -> Result<(), CliError> {
        let path = self.data.join(name);
        let before = fs::read_to_string(&path).map_err(CliError::file(&path))?;
        self.write(name, &format!("{before}{text}"))
    }

    /// Whether it runs.
    pub(crate) async fn is_running(&self) -> Result<bool, CliError> {
        if !self.data.join("postmaster.pid").exists() {
            return Ok(false);
        }
        let status = self.pg_ctl(&["status"]).await?;
        match status.status.code() {
            Some(0) => Ok(true),
            Some(NOT_RUNNING) => Ok(false),
            _ => Err(self.failed("can't tell whether it runs", &status.stderr)),
        }
    }

    /// Starts it and waits until it is up, be it for nobody yet.
    pub(crate) async fn start(&self) -> Result<(), CliError> {
        let log = self.log.display().to_string();
        let seconds = PATIENCE_SECONDS.to_string();
        let started = self
            .pg_ctl(&["start", "-w", "-t", &seconds, "-l", &log])
            .await?;
        match started.status.success() {
            true => Ok(()),
            false => Err(self.failed("it does not start", self.last_words().as_bytes())),
        }
    }

    /// Ends it in good order: who reads its WAL has got all of it then.
    pub(crate) async fn stop(&self) -> Result<(), CliError> {
        let seconds = PATIENCE_SECONDS.to_string();
        let arguments = ["stop", "-m", "fast", "-w", "-t", &seconds];
        let stopped = self.pg_ctl(&arguments).await?;
        match stopped.status.success() {
            true => Ok(()),
            false => Err(self.failed("it does not stop", &stopped.stderr)),
        }
    }

    /// Has it read who is let in again.
    pub(crate) async fn reload(&self) -> Result<(), CliError> {
        let reloaded = self.pg_ctl(&["reload"]).await?;
        match reloaded.status.success() {
            true => Ok(()),
            false => Err(self.failed("can't let anybody in", &reloaded.stderr)),
        }
    }

    /// Where its last checkpoint record begins. After a shutdown nothing else follows.
    pub(crate) fn last_checkpoint(&self) -> Result<Lsn, CliError> {
        let path = self.data.join("global/pg_control");
        let bytes = fs::read(&path).map_err(CliError::file(&path))?;
        let control = ControlFile::parse(&bytes.into()).map_err(|error| CliError::Failed {
            what: format!("{}: {error}", path.display()),
            hint: None,
        })?;
        Ok(control.checkpoint)
    }

    /// Writes a file of its own, in the place of the one that there is. The directory is another user's, so
    /// no link in it is followed.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), CliError> {
        let path = self.data.join(name);
        let new = self.data.join(format!("{name}.pal"));
        let written = || {
            // Left over.
            let _ = fs::remove_file(&new);
            let mut options = File::options();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            if let Some(RunAs { uid, gid }) = self.user {
                fchown(&file, Some(uid), Some(gid))?;
            }
            fs::rename(&new, &path)
        };
        written().map_err(CliError::file(&path))
    }

    /// A person's own session with it. Comes back only with an error.
    pub(crate) fn psql(&self, record: &Record, arguments: &[String]) -> CliError {
        let path = self.programs.join("psql");
        // As what it takes where its arguments don't say otherwise.
        let error = Command::new(&path)
            .env("PGHOST", &self.sockets)
            .env("PGPORT", record.port.to_string())
            .env("PGUSER", &record.superuser)
            .env("PGDATABASE", "postgres")
            .args(arguments)
            .exec();
        CliError::file(&path)(error)
    }

    /// What psql answers as the superuser, fields and rows each ended by a zero byte.
    pub(super) async fn ask(
        &self,
        record: &Record,
        sql: &str,
    ) -> Result<std::process::Output, CliError> {
        let mut command = Command::new(self.programs.join("psql"));
        command
            .args(["-X", "-A", "-t", "-q", "-z", "-0", "-w", "-c", sql])
            .env("PGHOST", &self.sockets)
            .env("PGPORT", record.port.to_string())
            .env("PGUSER", &record.superuser)
            // There may be no other.
            .env("PGDATABASE", "template1")
            .env("PGCONNECT_TIMEOUT", "10")
            .stdin(Stdio::null());
        self.run(command).await
    }

    async fn pg_ctl(&self, arguments: &[&str]) -> Result<std::process::Output, CliError> {
        let mut command = self.command("pg_ctl");
        command.args(arguments);
        self.run(command).await
    }

    /// A program of PostgreSQL's that works on the data directory, as its owner.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("-D").arg(&self.data);
        // The server keeps what it is given for its life: nothing of ours.
        command.current_dir("/").stdin(Stdio::null());
        if let Some(RunAs { uid, gid }) = self.user {
            command.uid(uid).gid(gid).env("HOME", "/");
        }
        command
    }

    async fn run(&self, mut command: Command) -> Result<std::process::Output, CliError> {
        let path = PathBuf::from(command.get_program());
        let ended = spawn_blocking(move || command.output()).await;
        let ended = ended.unwrap_or_else(|error| Err(io::Error::other(error)));
        ended.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CliError::Failed {
                what: format!("there is no {}", path.display()),
                hint: Some(
                    "install PostgreSQL 15, or say where its programs are (--pg-bin)".to_owned(),
                ),
            },
            _ => CliError::file(&path)(source),
        })
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let from = lines.len().saturating_sub(LAST_WORDS);
        lines.get(from..).unwrap_or_default().join("\n")
    }

    fn failed(&self, what: &str, stderr: &[u8]) -> CliError {
        CliError::Failed {
            what: said(what, stderr),
            hint: Some(format!("its log: {}", self.log.display())),
        }
    }
}

/// What a program has said of what happened, in one line.
fn said(what: &str, stderr: &[u8]) -> String {
    let said = String::from_utf8_lossy(stderr);
    format!("{what}: {}", said.trim().replace('\n', "; "))
}
