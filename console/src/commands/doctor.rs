//! `pal doctor`: looks at everything that has to be right on this machine, and says what to do about
//! what is not.
//!
//! What is found is gathered here; `verdict` judges it and touches nothing. The only command that
//! knows a store and an engine: it asks before there is a service that could be asked.

mod verdict;

use std::{
    fs,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::Args;
use palimpsest_redo_postgres::{EngineSettings, RunAs, Walls, probe};
use palimpsest_settings::{PortBase, SIDE_PORT_OFFSET};
use palimpsest_store::{ObjectStore, StoreLocation};
use palimpsest_types::ByteCount;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use tokio::{process::Command, time::timeout};

use self::verdict::{Check, Level};
use crate::{
    cli::Common,
    client::Client,
    error::CliError,
    output::Output,
    stack::ServiceSettings,
    told::{Flags, Told},
};

/// Looks for what is wrong with this machine.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Where the programs of PostgreSQL 15 are.
    #[arg(long, env = "PALIMPSEST_PG_BIN", value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
    /// Where the redo library is that `make redo` built.
    #[arg(long, env = "PALIMPSEST_REDO_BUILD", value_name = "DIR")]
    pub redo_build: Option<PathBuf>,
    /// The object store that `pal up` is to have.
    #[arg(long, value_name = "PLACE")]
    pub store: Option<StoreLocation>,
    /// The port base that `pal up` is to have.
    #[arg(long)]
    pub port_base: Option<PortBase>,
    /// The file of settings that `pal up` is to have.
    #[arg(long, env = "PALIMPSEST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    healthy: bool,
    checks: Vec<Check>,
}

/// A program or a service that says nothing for so long does not work.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn run(
    common: &Common,
    arguments: DoctorArgs,
    output: Output,
) -> Result<(), CliError> {
    let mut checks = match Told::gather(&common.data, arguments.flags()) {
        Ok(told) => settled(common, &told.services).await,
        // Nothing can be said about what no one knows where it is.
        Err(problems) => vec![verdict::settings(&problems)],
    };
    let limit = |resource| getrlimit(resource).current;
    checks.push(verdict::address_space(limit(Resource::As)));
    checks.push(verdict::open_files(limit(Resource::Nofile)));
    checks.push(verdict::clock(SystemTime::now()));
    let report = Report {
        healthy: checks.iter().all(|check| check.level != Level::Fail),
        checks,
    };
    tell(&report, output)?;
    match report.healthy {
        true => Ok(()),
        false => Err(CliError::Failed {
            what: "not everything is as it has to be".to_owned(),
            hint: None,
        }),
    }
}

/// What depends on settings, which are sound.
async fn settled(common: &Common, settings: &ServiceSettings) -> Vec<Check> {
    let (pg_bin, redo_build) = (settings.pg_bin(), settings.redo_build());
    let mut checks = vec![verdict::programs(pg_bin, version(pg_bin).await)];
    checks.extend(verdict::redo(
        redo_build,
        try_redo(pg_bin, redo_build).await,
    ));
    checks.extend(files(common, settings).await);
    checks.extend(services(common, settings).await);
    checks
}

impl DoctorArgs {
    /// As `pal up` would be told.
    fn flags(&self) -> Flags<'_> {
        let port_base = self.port_base.map(|base| base.to_string());
        let port_base = port_base.map(|base| ("port-base".to_owned(), base));
        Flags {
            config: self.config.as_deref(),
            process: port_base.into_iter().collect(),
            pg_bin: self.pg_bin.clone(),
            redo_build: self.redo_build.clone(),
            store: self.store.clone(),
        }
    }
}

fn tell(report: &Report, output: Output) -> Result<(), CliError> {
    if output.is_json() {
        return output.json(report);
    }
    for check in &report.checks {
        output.line(check)?;
    }
    Ok(())
}

/// What `postgres --version` says.
async fn version(pg_bin: &Path) -> Result<String, String> {
    let mut command = Command::new(pg_bin.join("postgres"));
    command
        .arg("--version")
        .env("LC_ALL", "C")
        .kill_on_drop(true);
    let said = timeout(PATIENCE, command.output()).await;
    let said = said.map_err(|_| "it does not end".to_owned())?;
    let said = said.map_err(|error| error.to_string())?;
    match said.status.success() {
        true => Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&said.stderr).trim().to_owned()),
    }
}

/// One redo in a process as the redo-worker starts them.
async fn try_redo(pg_bin: &Path, redo_build: &Path) -> Result<Walls, String> {
    let settings = EngineSettings::discover(pg_bin, redo_build).map_err(in_words)?;
    let run_as = RunAs::unprivileged().map_err(in_words)?;
    probe(EngineSettings { run_as, ..settings })
        .await
        .map_err(in_words)
}

/// An error with its causes.
fn in_words(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The data directory, what is local, and the store.
async fn files(common: &Common, settings: &ServiceSettings) -> Vec<Check> {
    let (data, local) = (&common.data, settings.local());
    // One that runs says itself which store it has.
    let running = crate::place::look(data).ok().flatten();
    let store = running.map_or_else(|| settings.store().to_owned(), |running| running.store);
    let mut checks = vec![
        verdict::writable(data, write_something(data)),
        verdict::free_disk(local, available(local)),
    ];
    // Looking must not make a store where there is none.
    let is_there = store.directory().is_none_or(Path::is_dir);
    let probed = match is_there {
        true => Some(ObjectStore::open(&store).await.map(drop).map_err(in_words)),
        false => None,
    };
    checks.push(verdict::store(&store, probed));
    let disks = |directory| device(local).zip(device(directory));
    checks.push(match store.directory() {
        Some(directory) => verdict::same_disk(disks(directory)),
        None => verdict::no_disk(),
    });
    checks
}

/// The directory, or the one in which it would be made.
fn existing(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    let there = absolute.ancestors().find(|above| above.exists());
    there.map(Path::to_owned)
}

fn write_something(path: &Path) -> io::Result<()> {
    let place = existing(path).ok_or(io::ErrorKind::NotFound)?;
    let file = place.join(format!(".pal-doctor-{}", std::process::id()));
    // New, so that a link of this name, which somebody may have put there, is not followed.
    let mut new = fs::File::create_new(&file)?;
    let written = new.write_all(&[0; 4096]);
    // Whatever became of it.
    let _ = fs::remove_file(&file);
    written
}

fn available(path: &Path) -> Option<ByteCount> {
    let system = rustix::fs::statvfs(&existing(path)?).ok()?;
    Some(ByteCount::new(
        system.f_bavail.saturating_mul(system.f_frsize),
    ))
}

fn device(path: &Path) -> Option<u64> {
    Some(fs::metadata(existing(path)?).ok()?.dev())
}

/// The services if they run, or else the ports they would have.
async fn services(common: &Common, settings: &ServiceSettings) -> Vec<Check> {
    let mut client = match Client::new(common) {
        Ok(client) => client,
        Err(error) => return vec![Check::fail("services", error.in_full(), "see `pal --help`")],
    };
    let expected = common.endpoint.is_some() || client.local().is_some();
    let asked = timeout(PATIENCE, client.cluster()).await;
    let asked = asked.map_err(|_| "it does not answer".to_owned());
    match asked.and_then(|asked| asked.map_err(|error| error.in_full())) {
        Ok(view) => {
            let mut checks = vec![verdict::broker(client.endpoint())];
            checks.extend(verdict::members(&view));
            checks.push(verdict::versions(&view, env!("CARGO_PKG_VERSION")));
            checks.extend(verdict::sources(&view));
            checks
        }
        Err(error) if expected => vec![Check::fail(
            "services",
            error,
            "look at the messages of `pal up`, and start it again",
        )],
        Err(_) => ports(settings),
    }
}

fn ports(settings: &ServiceSettings) -> Vec<Check> {
    let mut checks = Vec::new();
    for (service, address) in settings.listens() {
        let bound = TcpListener::bind(address);
        let taken = bound.as_ref().ok().and_then(|it| it.local_addr().ok());
        checks.push(verdict::port(service.name(), address, bound.map(drop)));
        let side = taken.and_then(|taken| {
            let port = taken.port().checked_add(SIDE_PORT_OFFSET)?;
            Some(SocketAddr::new(taken.ip(), port))
        });
        // Any free port beside any free one.
        if let Some(side) = side.filter(|_| !address.ends_with(":0")) {
            let what = format!("{} (metrics)", service.name());
            let bound = TcpListener::bind(side).map(drop);
            checks.push(verdict::port(&what, &side.to_string(), bound));
        }
    }
    checks
}
