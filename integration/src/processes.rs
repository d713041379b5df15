//! The services as processes of their own, which a judge can kill, halt, and start again.

mod history;
mod launch;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Child,
};

use anyhow::{Context as _, Result, bail, ensure};
use palimpsest_api::{
    TimelineRef,
    broker::{BrokerClient, ClusterView, Role, TimelineView, watch_cluster},
    channel::connect_lazily,
    page::PageClient,
};
use palimpsest_runtime::TaskScope;
use palimpsest_testkit::BucketServer;
use palimpsest_types::Lsn;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

pub(crate) use history::layer_names;
pub use history::{ManifestHistory, TakeOver};
pub use launch::Layers;

use crate::{
    embedded::ServedTimeline,
    waiting::{LOOK, PATIENCE, is_readable, wait_for},
};
use launch::Launch;

/// Which process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// The storage-broker.
    StorageBroker,
    /// The redo-worker.
    RedoWorker,
    /// Another redo-worker, for those who ask for it.
    SecondRedoWorker,
    /// The page-serve.
    PageServe,
    /// Another page-serve, for those who ask for it.
    SecondPageServe,
    /// The wal-ingest.
    WalIngest,
    /// Another wal-ingest, with a local directory of its own, for those who ask for it.
    SecondWalIngest,
    /// A compactor that makes small layers often, for those who ask for it.
    Compactor,
    /// Another one.
    SecondCompactor,
}

/// The services, with their files and logs below one directory. Dropping it kills them all, and
/// shows how their logs end: a judge that has found nothing wrong calls [`Processes::stop`] instead.
#[derive(Debug)]
pub struct Processes {
    launch: Launch,
    running: BTreeMap<Process, Child>,
    scope: TaskScope,
    cluster: watch::Receiver<ClusterView>,
    /// Nobody needs the logs.
    done: bool,
}

/// What has become of a process that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs.
    Running,
    /// It was halted by a signal.
    Halted,
    /// It was killed by a signal, and can be started again.
    Killed,
}

/// Lines of each log that a failed judge shows.
const SHOWN: usize = 40;

impl Process {
    /// All there can be.
    pub(crate) const ALL: [Self; 9] = [
        Self::StorageBroker,
        Self::RedoWorker,
        Self::SecondRedoWorker,
        Self::PageServe,
        Self::SecondPageServe,
        Self::WalIngest,
        Self::SecondWalIngest,
        Self::Compactor,
        Self::SecondCompactor,
    ];

    /// What runs unless more is asked for.
    pub const USUAL: [Self; 4] = [
        Self::StorageBroker,
        Self::RedoWorker,
        Self::PageServe,
        Self::WalIngest,
    ];

    /// Its name, also that of its directory and log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StorageBroker => "storage-broker",
            Self::RedoWorker => "redo-worker",
            Self::SecondRedoWorker => "redo-worker-2",
            Self::PageServe => "page-serve",
            Self::SecondPageServe => "page-serve-2",
            Self::WalIngest => "wal-ingest",
            Self::SecondWalIngest => "wal-ingest-2",
            Self::Compactor => "compactor",
            Self::SecondCompactor => "compactor-2",
        }
    }
}

impl Processes {
    /// Starts the usual ones from `program`, the binary `service`.
    ///
    /// They end with the *thread* that starts them, so this and [`Processes::start`] are for the
    /// test's own thread, not for a task.
    ///
    /// # Errors
    /// If a program can't be executed or has ended at once.
    pub async fn launch(program: &Path, directory: &Path, layers: Layers) -> Result<Self> {
        Self::launch_with(program, directory, layers, &[]).await
    }

    /// The same with further variables in the environment of each.
    ///
    /// # Errors
    /// If a program can't be executed or has ended at once.
    pub async fn launch_with(
        program: &Path,
        directory: &Path,
        layers: Layers,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let mut launch = Launch::new(program, directory, layers)?;
        for (name, value) in variables {
            launch.set_variable(name, value);
        }
        Self::launch_all(launch).await
    }

    /// The same with the object store in a bucket.
    ///
    /// # Errors
    /// If a program can't be executed or has ended at once.
    pub async fn launch_on(
        bucket: &BucketServer,
        program: &Path,
        directory: &Path,
        layers: Layers,
    ) -> Result<Self> {
        let mut launch = Launch::new(program, directory, layers)?;
        launch.set_bucket(&bucket.url("store"));
        for (name, value) in bucket.variables() {
            launch.set_variable(name, &value);
        }
        Self::launch_all(launch).await
    }

    async fn launch_all(launch: Launch) -> Result<Self> {
        let scope = TaskScope::default();
        let cluster = watch_cluster(&launch.address(Process::StorageBroker), &scope)?;
        let mut processes = Self {
            launch,
            running: BTreeMap::new(),
            scope,
            cluster,
            done: false,
        };
        for process in Process::USUAL {
            processes.start(process)?;
        }
        let all = |view: &ClusterView| {
            let roles = [Role::RedoWorker, Role::PageServe, Role::WalIngest];
            roles.iter().all(|role| !view.addresses(*role).is_empty())
        };
        let mut cluster = processes.cluster.clone();
        let registered = tokio::time::timeout(PATIENCE, cluster.wait_for(all)).await;
        registered.context("a service has not registered")??;
        Ok(processes)
    }

    /// Starts one that does not run.
    ///
    /// # Errors
    /// If it runs already or can't be executed.
    pub fn start(&mut self, process: Process) -> Result<()> {
        self.start_with(process, &[])
    }

    /// The same with further variables in its environment.
    ///
    /// # Errors
    /// If it runs already or can't be executed.
    pub fn start_with(&mut self, process: Process, variables: &[(&str, &str)]) -> Result<()> {
        ensure!(
            !self.running.contains_key(&process),
            "{} runs already",
            process.name()
        );
        let mut command = self.launch.command(process)?;
        let child = command.envs(variables.iter().copied()).spawn();
        let child = child.with_context(|| format!("executing {}", process.name()))?;
        self.running.insert(process, child);
        Ok(())
    }

    /// Its process, while it runs.
    pub fn pid(&self, process: Process) -> Option<u32> {
        self.running.get(&process).map(Child::id)
    }

    /// What has become of one that was started. One that was killed does not run any more.
    ///
    /// # Errors
    /// If it does not run, or has ended by itself.
    pub fn state(&mut self, process: Process) -> Result<ProcessState> {
        let child = self.running.get_mut(&process);
        let child = child.with_context(|| format!("{} does not run", process.name()))?;
        if let Some(status) = child.try_wait()? {
            self.running.remove(&process);
            return match status.signal() {
                Some(_) => Ok(ProcessState::Killed),
                None => bail!("{} has ended by itself: {status}", process.name()),
            };
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
        // The name before it is in brackets, and may itself have some.
        let state = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.trim_start().chars().next());
        match state.flatten() {
            Some('T') => Ok(ProcessState::Halted),
            _ => Ok(ProcessState::Running),
        }
    }

    /// How many processes it has started that still run.
    ///
    /// # Errors
    /// If it does not run.
    pub fn children(&self, process: Process) -> Result<usize> {
        let pid = self.pid(process);
        let pid = pid.with_context(|| format!("{} does not run", process.name()))?;
        let mut children = 0;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end meanwhile.
            let of_thread = fs::read_to_string(thread?.path().join("children"));
            children += of_thread.unwrap_or_default().split_whitespace().count();
        }
        Ok(children)
    }

    /// Kills it with SIGKILL, running or halted, and waits until nothing of it is left.
    ///
    /// # Errors
    /// If it does not run, or had ended by itself.
    pub fn kill9(&mut self, process: Process) -> Result<()> {
        let child = self.running.remove(&process);
        let mut child = child.with_context(|| format!("{} does not run", process.name()))?;
        let before = child.try_wait()?;
        child.kill()?;
        child.wait()?;
        match before {
            Some(status) => bail!("{} had ended by itself: {status}", process.name()),
            None => Ok(()),
        }
    }

    /// Halts it: its connections stay open and nobody answers.
    ///
    /// # Errors
    /// If it does not run.
    pub fn sigstop(&self, process: Process) -> Result<()> {
        self.signal(process, Signal::STOP)
    }

    /// Lets a halted one go on, as if no time had passed for it.
    ///
    /// # Errors
    /// If it does not run.
    pub fn sigcont(&self, process: Process) -> Result<()> {
        self.signal(process, Signal::CONT)
    }

    fn signal(&self, process: Process, signal: Signal) -> Result<()> {
        let child = self.running.get(&process);
        let child = child.with_context(|| format!("{} does not run", process.name()))?;
        kill_process(Pid::from_child(child), signal)?;
        Ok(())
    }

    /// From its next start on it listens on another port, as on another machine: then nobody takes
    /// it for the instance before, whose lease has to run out.
    ///
    /// # Errors
    /// If there is no free port.
    pub fn relocate(&mut self, process: Process) -> Result<()> {
        self.launch.relocate(process)
    }

    /// Removes the local directory of one that does not run, as the loss of its disk would.
    ///
    /// # Errors
    /// If it runs, or the files can't be removed.
    pub fn lose_disk(&self, process: Process) -> Result<()> {
        ensure!(
            !self.running.contains_key(&process),
            "{} runs",
            process.name()
        );
        match fs::remove_dir_all(self.launch.data(process)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Where a process listens, `host:port`.
    pub fn address(&self, process: Process) -> String {
        self.launch.address(process)
    }

    /// Where a process tells its metrics, `host:port`.
    pub fn side_address(&self, process: Process) -> String {
        self.launch.side_address(process)
    }

    /// The directory of the object store.
    pub fn store(&self) -> PathBuf {
        self.launch.store()
    }

    /// The view of the cluster, as it changes.
    pub fn cluster(&self) -> &watch::Receiver<ClusterView> {
        &self.cluster
    }

    /// Attaches a cluster and waits until it can be read.
    ///
    /// # Errors
    /// What the services say, or that it takes too long.
    pub async fn attach(&self, name: &str, conninfo: &str) -> Result<TimelineRef> {
        let mut broker = BrokerClient::new(&self.address(Process::StorageBroker))?;
        let timeline = broker.attach_tenant(name, conninfo, None).await?;
        self.attached(timeline).await?;
        Ok(timeline)
    }

    /// Waits until a timeline that is being attached can be read.
    ///
    /// # Errors
    /// If it stops, or it takes too long.
    pub async fn attached(&self, timeline: TimelineRef) -> Result<TimelineView> {
        self.wait_for(timeline, is_readable).await
    }

    /// Waits until a timeline is as `arrived` wants it.
    ///
    /// # Errors
    /// If the timeline stops, or it takes too long.
    pub async fn wait_for(
        &self,
        timeline: TimelineRef,
        arrived: impl FnMut(&TimelineView) -> bool,
    ) -> Result<TimelineView> {
        wait_for(self.cluster.clone(), timeline, arrived).await
    }

    /// A timeline as page-serve serves it, once that has everything up to `lsn`.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn served_up_to(&self, timeline: TimelineRef, lsn: Lsn) -> Result<ServedTimeline> {
        self.served_by(Process::PageServe, timeline, lsn).await
    }

    /// The same of any page-serve.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn served_by(
        &self,
        page_serve: Process,
        timeline: TimelineRef,
        lsn: Lsn,
    ) -> Result<ServedTimeline> {
        let waiting = async {
            loop {
                // A client of its own each time: the page-serve may be another process by now.
                let channel = connect_lazily(&self.address(page_serve))?;
                if let Ok(client) = PageClient::connect(channel).await
                    && let Ok((_, newest)) = client.readable(timeline).await
                    && newest >= lsn
                {
                    return Ok(ServedTimeline::new(client, timeline));
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let served = tokio::time::timeout(PATIENCE, waiting).await;
        served.with_context(|| format!("{} does not come to {lsn}", page_serve.name()))?
    }

    /// Ends them all, quietly.
    pub fn stop(mut self) {
        self.done = true;
    }

    /// The ends of the logs, for the report of a failure.
    fn logs(&self) -> String {
        let mut text = String::new();
        for (name, log) in self.launch.logs() {
            let lines: Vec<_> = log.lines().collect();
            let end = lines.get(lines.len().saturating_sub(SHOWN)..);
            text.push_str(&format!(
                "--- {name}\n{}\n",
                end.unwrap_or_default().join("\n")
            ));
        }
        text
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.scope.token().cancel();
        for child in self.running.values_mut() {
            // An error means that it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        if !self.done {
            eprintln!("{}", self.logs());
        }
    }
}
