//! How each process is started: program, options, port, log.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use palimpsest_settings::SIDE_PORT_OFFSET;

use super::Process;
use crate::embedded::REDO_BUILD;

/// What there is to know about the processes while none of them runs.
#[derive(Debug)]
pub(super) struct Launch {
    program: PathBuf,
    directory: PathBuf,
    layers: Layers,
    ports: BTreeMap<Process, u16>,
    variables: Vec<(String, String)>,
    /// The object store, if it is not the directory beside the rest.
    bucket: Option<String>,
}

/// When changes become layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layers {
    /// All the time: at any moment one is written, uploaded or published.
    Often,
    /// Not while a judge is looking: what is served comes through the feed.
    Rarely,
    /// So many MiB of changes each, and compactors make layers half as large of them: with 256, as
    /// services do unless they are told otherwise.
    Of(u64),
}

/// Below the ports that the system gives to outgoing connections: one of those could otherwise sit
/// on the port of a service that is down for the moment.
const PORTS: std::ops::Range<u16> = 15_000..30_000;
const PORT_ATTEMPTS: usize = 100;
/// A reader that asks for what is not there hears so soon.
const LSN_PATIENCE: &str = "3s";
/// Compaction begins with the second layer, and makes many small ones.
const COMPACTION_THRESHOLD: &str = "2";
const IMAGE_THRESHOLD: &str = "2";
const COMPACTION_TARGET: &str = "256KiB";
/// What a dead compactor has claimed another has so soon.
const CLAIM: &str = "1s";
/// So long that only their size counts.
const NEVER_BY_AGE: &str = "1h";

impl Layers {
    /// Their size and age.
    fn limits(self) -> (String, &'static str) {
        match self {
            Self::Often => ("2MiB".to_owned(), "2s"),
            Self::Rarely => ("256MiB".to_owned(), NEVER_BY_AGE),
            Self::Of(mebibytes) => (format!("{mebibytes}MiB"), NEVER_BY_AGE),
        }
    }

    /// What a compactor is told.
    fn compaction(self) -> Vec<(&'static str, String)> {
        match self {
            Self::Often | Self::Rarely => vec![
                ("--compaction-threshold", COMPACTION_THRESHOLD.to_owned()),
                ("--image-threshold", IMAGE_THRESHOLD.to_owned()),
                ("--target-size", COMPACTION_TARGET.to_owned()),
                ("--claim", CLAIM.to_owned()),
            ],
            Self::Of(mebibytes) => {
                vec![("--target-size", format!("{}KiB", mebibytes * 512))]
            }
        }
    }
}

impl Launch {
    pub(super) fn new(program: &Path, directory: &Path, layers: Layers) -> Result<Self> {
        let mut launch = Self {
            program: program.to_owned(),
            directory: directory.to_owned(),
            layers,
            ports: BTreeMap::new(),
            variables: Vec::new(),
            bucket: None,
        };
        for process in Process::ALL {
            launch.relocate(process)?;
        }
        Ok(launch)
    }

    /// Has all processes started with a variable in their environment, too.
    pub(super) fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Has all processes started with an object store elsewhere.
    pub(super) fn set_bucket(&mut self, url: &str) {
        self.bucket = Some(url.to_owned());
    }

    /// Gives a process a port that it did not have before. It stays its own through restarts, so
    /// that the others find it again.
    pub(super) fn relocate(&mut self, process: Process) -> Result<()> {
        let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        // The side port has to be free, too, and nobody else's.
        let free = |port: &u16| is_free(*port) && is_free(*port + SIDE_PORT_OFFSET);
        let port = (0..PORT_ATTEMPTS)
            .map(|_| rand::random_range(PORTS))
            .filter(|port| {
                let near = |taken: &u16| taken.abs_diff(*port) <= SIDE_PORT_OFFSET;
                !self.ports.values().any(near)
            })
            .find(free);
        self.ports.insert(process, port.context("no port is free")?);
        Ok(())
    }

    pub(super) fn address(&self, process: Process) -> String {
        let port = self.ports.get(&process).copied().unwrap_or_default();
        format!("{}:{port}", Ipv4Addr::LOCALHOST)
    }

    pub(super) fn side_address(&self, process: Process) -> String {
        let port = self.ports.get(&process).copied().unwrap_or_default();
        format!("{}:{}", Ipv4Addr::LOCALHOST, port + SIDE_PORT_OFFSET)
    }

    pub(super) fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    /// Where the object store is, as processes are told.
    fn store_argument(&self) -> OsString {
        match &self.bucket {
            Some(url) => url.into(),
            None => self.store().into(),
        }
    }

    /// Its local directory.
    pub(super) fn data(&self, process: Process) -> PathBuf {
        self.directory.join(process.name())
    }

    fn log(&self, process: Process) -> PathBuf {
        self.directory.join(process.name()).with_extension("log")
    }

    /// What each process has written to its log, if it was ever started.
    pub(super) fn logs(&self) -> impl Iterator<Item = (&'static str, String)> {
        let read = |process: &Process| {
            let log = fs::read_to_string(self.log(*process)).ok()?;
            Some((process.name(), log))
        };
        self.ports.keys().filter_map(read)
    }

    /// The command that starts a process. Its log goes on where the one before ended.
    pub(super) fn command(&self, process: Process) -> Result<Command> {
        let path = self.log(process);
        let log = fs::File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening {}", path.display()))?;
        let mut command = Command::new(&self.program);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.arg(match process {
            Process::SecondWalIngest => Process::WalIngest.name(),
            Process::SecondPageServe => Process::PageServe.name(),
            Process::SecondRedoWorker => Process::RedoWorker.name(),
            Process::SecondCompactor => Process::Compactor.name(),
            other => other.name(),
        });
        command.args(["--listen", &self.address(process)]);
        if process != Process::StorageBroker {
            command.args(["--broker", &self.address(Process::StorageBroker)]);
        }
        match process {
            Process::StorageBroker => {
                command.arg("--store").arg(self.store_argument());
            }
            Process::RedoWorker | Process::SecondRedoWorker => {
                let bin = palimpsest_testkit::cluster::pg_bin();
                command.arg("--pg-bin").arg(bin);
                command.args(["--redo-build", REDO_BUILD]);
            }
            Process::PageServe | Process::SecondPageServe => {
                command.arg("--store").arg(self.store_argument());
                command.args(["--lsn-patience", LSN_PATIENCE]);
            }
            Process::Compactor | Process::SecondCompactor => {
                command.arg("--store").arg(self.store_argument());
                for (option, value) in self.layers.compaction() {
                    command.arg(option).arg(value);
                }
            }
            Process::WalIngest | Process::SecondWalIngest => {
                command.arg("--store").arg(self.store_argument());
                command.arg("--data").arg(self.data(process));
                let (size, age) = self.layers.limits();
                command.args(["--layer-size", &size]);
                command.args(["--layer-age", age]);
            }
        }
        Ok(command)
    }
}
