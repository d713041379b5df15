//! The wal-ingest's process.

use std::process::ExitCode;

use clap::Parser;
use palimpsest_service_kit::{
    process,
    telemetry::{self, LogFormat},
};
use palimpsest_wal_ingest::{Settings, run};

/// Reads the WAL of attached PostgreSQL clusters and turns it into changes.
#[derive(Parser)]
#[command(name = "wal-ingest", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    /// How events are written to standard error
    #[arg(long, env = "PALIMPSEST_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match process::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    telemetry::init(cli.log_format);
    process::run(async |scope| run(cli.settings, &scope).await).await
}
