//! Where the processes really come from.

use std::error::Error;

use palimpsest_api::redo::{RedoTenant, Urgency};
use palimpsest_redo_postgres::{Engine, EngineSettings, StartError};
use palimpsest_types::ErrorKind;

use super::engines::{ProcessSource, RedoProcess, StartFailure};

/// Sandboxed `postgres` processes.
#[derive(Debug)]
pub struct PostgresSource {
    settings: EngineSettings,
}

/// The only major version whose redo library there is.
const PG_VERSION: u32 = 15;

impl PostgresSource {
    /// Processes with these settings; `wal_log_hints` is each tenant's own, and the priority
    /// that of the jobs.
    pub fn new(settings: EngineSettings) -> Self {
        Self { settings }
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
        let settings = EngineSettings {
            wal_log_hints: tenant.wal_log_hints,
            in_background: urgency == Urgency::Background,
            ..self.settings.clone()
        };
        Engine::start(settings).await.map_err(failure)
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
