//! Any one of the services as a process, so that a judge can kill it.
//!
//! It is what the services' own programs are, but for one thing: it does not outlive the judge that
//! started it, so that one which is interrupted leaves nothing behind.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use palimpsest_service_kit::{
    process,
    telemetry::{self, LogFormat},
};
use rustix::process::{Signal, set_parent_process_death_signal};

/// One service, for as long as the process that started it lives.
#[derive(Debug, Parser)]
#[command(name = "service")]
struct Cli {
    #[command(subcommand)]
    service: Service,
}

#[derive(Debug, Subcommand)]
enum Service {
    /// Reads WAL.
    WalIngest(palimpsest_wal_ingest::Settings),
    /// Serves pages.
    PageServe(palimpsest_page_serve::Settings),
    /// Replays records.
    RedoWorker(palimpsest_redo_worker::Settings),
    /// Knows who is there.
    StorageBroker(palimpsest_storage_broker::Settings),
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("service: can't be tied to the process that started it: {error}");
        return ExitCode::FAILURE;
    }
    let cli = match process::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    telemetry::init(LogFormat::Pretty);
    match cli.service {
        Service::WalIngest(settings) => {
            process::run(async |scope| palimpsest_wal_ingest::run(settings, &scope).await).await
        }
        Service::PageServe(settings) => {
            process::run(async |scope| palimpsest_page_serve::run(settings, &scope).await).await
        }
        Service::RedoWorker(settings) => {
            process::run(async |scope| palimpsest_redo_worker::run(settings, &scope).await).await
        }
        Service::StorageBroker(settings) => {
            process::run(async |scope| palimpsest_storage_broker::run(settings, &scope).await).await
        }
    }
}
