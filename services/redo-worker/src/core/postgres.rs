//! Where the processes really come from.

use std::{error::Error, sync::Arc};

use palimpsest_api::redo::{RedoTenant, Urgency};
use palimpsest_redo_postgres::{Engine, EngineSettings, StartError};
use palimpsest_runtime::BackgroundThreads;
use palimpsest_types::ErrorKind;
use tokio::runtime::Handle;

use super::engines::{ProcessSource, RedoProcess, StartFailure};

/// Sandboxed `postgres` processes.
#[derive(Debug)]
pub struct PostgresSource {
    settings: EngineSettings,
    /// Where messages with the processes are packed and unpacked.
    awaited: Handle,
    background: Arc<BackgroundThreads>,
}

/// The only major version whose redo library there is.
const PG_VERSION: u32 = 15;
/// Requests that a process in the background has at a time. It sleeps after each so, and who reads waits for the records of one page
/// at most: a process that had a whole batch went on until the next tick of the kernel, however low its priority.
const IN_BACKGROUND: usize = 1;

impl PostgresSource {
    /// Processes with these settings; `wal_log_hints` is each tenant's own, and the priority
    /// that of the jobs. What somebody waits for is talked about with them on the threads this is called on, else
    /// on those given.
    pub fn new(settings: EngineSettings, background: Arc<BackgroundThreads>) -> Self {
        Self {
            settings,
            awaited: Handle::current(),
            background,
        }
    }
}

impl ProcessSource for PostgresSource {
    type Process = Engine;

    fn check(&self, tenant: &RedoTenant) -> Result<(), StartFailure> {
        if tenant.pg_version == PG_VERSION {
            return Ok(());
        }
        let message = format!(
            "this redo-worker replays WAL of PostgreSQL {PG_VERSION} only, not {}",
            tenant.pg_version
        );
        Err(StartFailure {
            kind: ErrorKind::Invalid,
            message,
        })
    }

    async fn start(&self, tenant: &RedoTenant, urgency: Urgency) -> Result<Engine, StartFailure> {
        let in_background = urgency == Urgency::Background;
        let settings = EngineSettings {
            wal_log_hints: tenant.wal_log_hints,
            in_background,
            max_in_flight: match in_background {
                true => IN_BACKGROUND,
                false => self.settings.max_in_flight,
            },
            ..self.settings.clone()
        };
        // Who talks with a process is a task of its own, and stays on the threads that start it, whichever job
        // was the first to need it.
        let started = match urgency {
            Urgency::Awaited => self.awaited.spawn(Engine::start(settings)).await,
            Urgency::Background => Ok(self.background.run(Engine::start(settings)).await),
        };
        let started = started.map_err(|error| StartFailure {
            kind: ErrorKind::Internal,
            message: format!("starting a redo process: {error}"),
        })?;
        started.map_err(failure)
    }
}

impl RedoProcess for Engine {
    fn deaths(&self) -> u64 {
        Self::deaths(self)
    }

    async fn stop(self) {
        Self::stop(self).await;
    }
}

fn failure(error: StartError) -> StartFailure {
    let cause = error.source().map(|cause| format!(": {cause}"));
    StartFailure {
        kind: error.kind(),
        message: format!("{error}{}", cause.unwrap_or_default()),
    }
}
