//! Starts redo processes.

use std::{
    ffi::{OsStr, OsString},
    process::Stdio,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::AsyncReadExt,
    process::Command,
    time::{sleep, timeout},
};

use crate::{
    EngineSettings, RunAs, StartError,
    data_dir::DataDir,
    nursery::Nursery,
    process::Process,
    wire::{self, Answer},
};

/// Everything a process is started from.
#[derive(Debug)]
pub(crate) struct Launcher {
    settings: EngineSettings,
    data_dir: DataDir,
    nursery: Nursery,
}

/// Server settings that do not depend on ours: no configuration files, the least shared memory, no
/// auxiliary processes (a stand-alone backend has none) and no chatter.
const SERVER_SETTINGS: [&str; 24] = [
    "config_file=/dev/null",
    "hba_file=/dev/null",
    "ident_file=/dev/null",
    // Pages that one record may touch, several times over; scratch pages are never evicted.
    "shared_buffers=128",
    "max_connections=1",
    "superuser_reserved_connections=0",
    "max_worker_processes=0",
    "max_wal_senders=0",
    "autovacuum_max_workers=1",
    "max_prepared_transactions=0",
    "max_replication_slots=0",
    "wal_level=minimal",
    "max_locks_per_transaction=10",
    "max_pred_locks_per_transaction=10",
    "wal_buffers=4",
    "fsync=off",
    "huge_pages=off",
    "shared_memory_type=mmap",
    // A file in the data directory, which goes with it; others would outlive a killed process.
    "dynamic_shared_memory_type=mmap",
    "track_activity_query_size=100",
    "restart_after_crash=off",
    "log_destination=stderr",
    "log_min_messages=fatal",
    "log_line_prefix=",
];

impl Launcher {
    pub(crate) async fn new(settings: EngineSettings) -> Result<Self, StartError> {
        if settings.run_as.is_none() && rustix::process::geteuid().is_root() {
            return Err(StartError::Root);
        }
        let data_dir = DataDir::create(&settings).await?;
        let nursery = Nursery::start().map_err(|source| StartError::Spawn {
            program: settings.postgres.clone(),
            source,
        })?;
        Ok(Self {
            settings,
            data_dir,
            nursery,
        })
    }

    pub(crate) fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// Starts a process after `delay` and waits until it is ready.
    pub(crate) async fn launch(&self, delay: Duration) -> Result<Process, StartError> {
        sleep(delay).await;
        self.data_dir.unlock()?;
        let program = self.settings.postgres.clone();
        let failed = |source| StartError::Spawn { program, source };
        let child = match self.nursery.spawn(self.command()).await {
            Ok(child) => child,
            Err(source) => return Err(failed(source)),
        };
        let Some(mut process) = Process::new(child) else {
            return Err(failed(std::io::Error::other("its streams are not pipes")));
        };

        let limit = self.settings.start_timeout;
        match timeout(limit, is_ready(&mut process)).await {
            Ok(true) => Ok(process),
            Ok(false) => Err(StartError::NotReady {
                obituary: process.bury().await,
            }),
            Err(_) => Err(StartError::Overdue {
                limit,
                obituary: process.bury().await,
            }),
        }
    }

    fn command(&self) -> Command {
        let settings = &self.settings;
        let mut command = Command::new(&settings.postgres);
        command.arg("--single").arg("-D").arg(self.data_dir.path());
        for setting in SERVER_SETTINGS {
            command.arg("-c").arg(setting);
        }
        let hints = if settings.wal_log_hints { "on" } else { "off" };
        command.arg("-c").arg(format!("wal_log_hints={hints}"));
        command
            .arg("-c")
            .arg(preload_setting(settings.library.as_os_str()));
        // The database's name, which is never looked up.
        command.arg("palimpsest");

        // The C locale: messages in any other would be loaded from files, which is forbidden by
        // then. The limit is also what makes the library act.
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env(
                "PALIMPSEST_REDO_ADDRESS_SPACE",
                settings.memory_limit.get().to_string(),
            )
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if settings.in_background {
            command.env("PALIMPSEST_REDO_BACKGROUND", "on");
        }
        if let Some(RunAs { uid, gid }) = settings.run_as {
            command.uid(uid).gid(gid);
        }
        command
    }
}

/// Quoted: the setting is a list, and the path may contain a comma.
fn preload_setting(library: &OsStr) -> OsString {
    let mut setting = OsString::from("shared_preload_libraries=\"");
    setting.push(library);
    setting.push("\"");
    setting
}

/// Waits for the empty answer that says so.
async fn is_ready(process: &mut Process) -> bool {
    let mut input = BytesMut::new();
    loop {
        match wire::decode_answer(&mut input) {
            Ok(Some(answer)) => return answer == Answer::Done(bytes::Bytes::new()),
            Ok(None) => {}
            Err(_) => return false,
        }
        if !matches!(process.stdout.read_buf(&mut input).await, Ok(1..)) {
            return false;
        }
    }
}
