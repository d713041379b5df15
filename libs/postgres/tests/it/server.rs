//! A stock PostgreSQL of this test's own: made by `initdb`, gone when dropped.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use palimpsest_postgres::{ClientError, ConnInfo, Connection};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// How to log in, by role; the first line that matches counts.
const HBA: &str = "\
local     all         postgres             trust
local     replication all                  trust
host      replication trusted 127.0.0.1/32 trust
host      replication plain   127.0.0.1/32 password
host      replication old     127.0.0.1/32 md5
hostssl   replication secure  127.0.0.1/32 scram-sha-256
hostnossl replication clear   127.0.0.1/32 trust
host      replication scram   127.0.0.1/32 scram-sha-256
";

/// Roles for [`HBA`]; the password of all is `it's secret`.
const ROLES: &str = "
CREATE ROLE trusted LOGIN REPLICATION;
CREATE ROLE clear LOGIN REPLICATION;
CREATE ROLE plain LOGIN REPLICATION PASSWORD 'it''s secret';
CREATE ROLE scram LOGIN REPLICATION PASSWORD 'it''s secret';
CREATE ROLE secure LOGIN REPLICATION PASSWORD 'it''s secret';
CREATE ROLE stranger LOGIN REPLICATION PASSWORD 'it''s secret';
SET password_encryption = 'md5';
CREATE ROLE old LOGIN REPLICATION PASSWORD 'it''s secret';
";

/// A running server.
pub(crate) struct Server {
    process: Child,
    directory: TempDir,
    pub(crate) port: u16,
}

/// A cluster that is not running yet.
pub(crate) struct Cluster {
    directory: TempDir,
    settings: Vec<String>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        own(directory.path());
        let data = directory.path().join("data");
        let mut initdb = command("initdb");
        initdb.args([
            "--no-sync",
            "--no-instructions",
            "-U",
            "postgres",
            "-A",
            "trust",
        ]);
        initdb
            .args(["--locale=C", "--encoding=UTF8", "-k", "-D"])
            .arg(&data);
        run(&mut initdb);
        fs::write(data.join("pg_hba.conf"), HBA).unwrap();
        let settings = [
            "fsync=off",
            "autovacuum=off",
            "shared_buffers=16MB",
            "listen_addresses=127.0.0.1",
        ];
        Self {
            directory,
            settings: settings.map(str::to_owned).to_vec(),
        }
    }

    pub(crate) fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// Puts a file that the server owns beside its data directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts it and waits until it accepts connections.
    pub(crate) async fn start(self) -> Server {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let log = File::create(self.path("log")).unwrap();
        let mut postgres = command("postgres");
        postgres
            .arg("-D")
            .arg(self.path("data"))
            .arg("-k")
            .arg(self.directory.path());
        postgres.args(["-p", &port.to_string()]);
        postgres.args(self.settings.iter().flat_map(|setting| ["-c", setting]));
        let process = postgres
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Server {
            process,
            directory: self.directory,
            port,
        };
        server.wait_until_ready().await;
        server
    }
}

impl Server {
    /// A new cluster with the roles of the tests.
    pub(crate) async fn start() -> Self {
        let server = Cluster::new().start().await;
        server.sql(ROLES);
        server
    }

    /// One that offers TLS with the certificate and key in `server.crt` and `server.key`.
    pub(crate) async fn start_with_tls(make: impl FnOnce(&Cluster)) -> Self {
        let cluster = Cluster::new();
        make(&cluster);
        let [certificate, key] = ["server.crt", "server.key"].map(|name| cluster.path(name));
        own(&key);
        let settings = [
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", certificate.display()),
            format!("ssl_key_file={}", key.display()),
        ];
        let server = settings
            .iter()
            .fold(cluster, |cluster, setting| cluster.set(setting))
            .start()
            .await;
        server.sql(ROLES);
        server
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes a directory that the server owns.
    pub(crate) fn make_directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        own(&path);
        path
    }

    /// A connection string for TCP.
    pub(crate) fn tcp(&self, rest: &str) -> ConnInfo {
        format!(
            "host=localhost hostaddr=127.0.0.1 port={} {rest}",
            self.port
        )
        .parse()
        .unwrap()
    }

    /// A connection string for the unix socket.
    pub(crate) fn unix(&self, rest: &str) -> ConnInfo {
        let directory = self.directory.path().display();
        format!("host={directory} port={} {rest}", self.port)
            .parse()
            .unwrap()
    }

    /// Connects as superuser.
    pub(crate) async fn connect(&self) -> Connection {
        Connection::connect(&self.unix("user=postgres"))
            .await
            .unwrap()
    }

    /// Runs SQL as superuser and returns what it prints, unadorned.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let mut psql = command("psql");
        psql.args([
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            "postgres",
        ]);
        psql.arg("-h")
            .arg(self.directory.path())
            .args(["-p", &self.port.to_string(), "-c", sql]);
        run(&mut psql)
    }

    /// Asks the server to stop.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw)
            .unwrap();
        kill_process(pid, signal).unwrap();
    }

    async fn wait_until_ready(&self) {
        for _ in 0..1000 {
            match Connection::connect(&self.unix("user=postgres")).await {
                Ok(connection) => return connection.close().await,
                Err(ClientError::Connect { .. }) => {}
                Err(error) if error.server_error().is_some_and(|e| e.code() == "57P03") => {}
                Err(error) => panic!("{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "not started: {}",
            fs::read_to_string(self.path("log")).unwrap()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            self.signal(Signal::QUIT);
        }
        let _ = self.process.wait();
    }
}

/// A program of PostgreSQL, as a user it agrees to run as.
fn command(program: &str) -> Command {
    let mut command = Command::new(Path::new(BIN).join(program));
    command.env_clear().current_dir("/").stdin(Stdio::null());
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid).gid(gid);
    }
    command
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// `pg_controldata`'s value for a field of a data directory.
pub(crate) fn control_data(data: &Path, field: &str) -> String {
    let report = run(command("pg_controldata").arg("-D").arg(data));
    let line = report
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}"))
        .trim()
        .to_owned()
}

fn own(path: &Path) {
    if let Some((uid, gid)) = unprivileged() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// The ids of user `postgres` if this test runs as root, which the server refuses.
fn unprivileged() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users
        .lines()
        .find_map(|line| line.strip_prefix("postgres:"))
        .unwrap();
    let mut ids = line.split(':').skip(1).map(|id| id.parse().unwrap());
    Some((ids.next().unwrap(), ids.next().unwrap()))
}
