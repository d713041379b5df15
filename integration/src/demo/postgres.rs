use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use palimpsest_testkit::{Cluster, ClusterOptions, cluster::SUPERUSER};
use palimpsest_types::Lsn;
use rustix::process::{Pid, Signal, kill_process};

/// Where the demo's PostgreSQL listens if it is not told another port.
pub const POSTGRES_PORT: u16 = 54320;

/// The database with pgbench's tables.
pub(super) const DATABASE: &str = "demo";
/// How long a server that an earlier demo left behind may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The demo's PostgreSQL, running.
#[derive(Debug)]
pub(super) struct DemoPostgres {
    cluster: Cluster,
    port: u16,
}

/// A page that changed, and two LSNs between which it did.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// As `pal` takes it.
    pub(super) name: String,
    pub(super) before: Lsn,
    pub(super) after: Lsn,
}

impl DemoPostgres {
    /// Starts the cluster in `dir`; makes it first if there is none.
    pub(super) async fn start(dir: &Path, port: u16) -> Result<Self> {
        stop_left_over(dir).await?;
        tokio::task::block_in_place(|| {
            let options = options(port);
            let mut cluster = match dir.join("data").exists() {
                true => Cluster::open(dir, options)?,
                false => Cluster::init(dir, options)?,
            };
            cluster
                .start()
                .with_context(|| format!("starting the demo's PostgreSQL on port {port}"))?;
            let demo = Self { cluster, port };
            demo.fill()?;
            Ok(demo)
        })
    }

    /// Makes the database, unless an earlier start did.
    fn fill(&self) -> Result<()> {
        let query = format!("SELECT count(*) FROM pg_database WHERE datname = '{DATABASE}'");
        if self.cluster.psql(SUPERUSER, &query)? != "0" {
            return Ok(());
        }
        // Under another name until it is complete, so that an interruption leaves no half of it.
        let making = format!("{DATABASE}_new");
        self.cluster.psql(
            SUPERUSER,
            &format!("DROP DATABASE IF EXISTS {making}; CREATE DATABASE {making}"),
        )?;
        self.cluster
            .pgbench(&["--initialize", "--quiet", "--fillfactor=90", &making])?;
        let rename = format!("ALTER DATABASE {making} RENAME TO {DATABASE}");
        self.cluster.psql(SUPERUSER, &rename).map(drop)
    }

    /// How Palimpsest reaches it, at every start alike.
    pub(super) fn source(&self) -> String {
        format!("host=127.0.0.1 port={} user={SUPERUSER}", self.port)
    }

    /// What a person types to connect.
    pub(super) fn psql(&self) -> String {
        format!(
            "psql -h 127.0.0.1 -p {} -U {SUPERUSER} {DATABASE}",
            self.port
        )
    }

    /// Where its files went if its user can't reach the data directory.
    pub(super) fn moved_to(&self) -> Option<&Path> {
        self.cluster.moved_to()
    }

    /// Changes the first row of a table.
    pub(super) fn change_something(&self) -> Result<Sample> {
        let before = self.cluster.lsn()?;
        let update = "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 1";
        self.cluster.psql(DATABASE, update)?;
        let after = self.cluster.lsn()?;
        let name = format!("{DATABASE}.public.pgbench_accounts");
        Ok(Sample {
            name,
            before,
            after,
        })
    }

    /// Stops it as `pg_ctl stop -m fast` does.
    pub(super) fn stop(mut self) -> Result<()> {
        tokio::task::block_in_place(|| self.cluster.stop())
    }
}

/// Durable, and with the limits that a real server should have; tests keep all WAL instead.
fn options(port: u16) -> ClusterOptions {
    ClusterOptions {
        durable: true,
        port: Some(port),
        ..ClusterOptions::default()
    }
    .with("wal_keep_size", "0")
    .with("max_wal_size", "1GB")
    .with("checkpoint_timeout", "5min")
    .with("max_slot_wal_keep_size", "4GB")
}

/// A demo that was killed leaves its server running. The caller holds the lock on the directory
/// above, so nobody else looks after that server any more.
async fn stop_left_over(dir: &Path) -> Result<()> {
    let lock = dir.join("data/postmaster.pid");
    let Ok(text) = fs::read_to_string(&lock) else {
        return Ok(());
    };
    let mut lines = text.lines();
    let pid = lines
        .next()
        .and_then(|line| line.trim().parse::<i32>().ok());
    let Some(pid) = pid.filter(|pid| is_postgres(*pid)).and_then(Pid::from_raw) else {
        return Ok(());
    };
    let data = dir.join("data").canonicalize()?;
    ensure!(
        lines.next().is_some_and(|line| Path::new(line) == data),
        "{} does not belong to {}",
        lock.display(),
        data.display()
    );
    eprintln!("stopping the PostgreSQL that an earlier demo left behind");
    kill_process(pid, Signal::INT)?;
    let gone = async {
        while lock.exists() && is_postgres(pid.as_raw_nonzero().get()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(STOP_LIMIT, gone)
        .await
        .with_context(|| format!("process {} does not stop", pid.as_raw_nonzero()))
}

fn is_postgres(pid: i32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.trim() == "postgres")
}
