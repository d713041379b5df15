//! Any one of the services, or `pal`, as a process, so that a judge can kill it.
//!
//! It is what their own programs are, but for two things: it does not outlive the judge that
//! started it, so that one which is interrupted leaves nothing behind; and a compactor or wal-ingest
//! strikes itself at a step of its work if its environment says so.

use std::{env, ffi::OsString, process::ExitCode, sync::Arc};

use clap::Parser as _;
use palimpsest_console::{Cli, commands};
use palimpsest_disk::OsDisk;
use palimpsest_integration::strikes::Orders;
use palimpsest_runtime::TaskScope;
use palimpsest_service_kit::{Failure, configure, process};
use palimpsest_settings::Service;
use palimpsest_store::{ObjectStore, StoreLocation};
use palimpsest_types::ErrorKind;
use rustix::process::{Signal, set_parent_process_death_signal};

fn main() -> ExitCode {
    process::block_on(serve())
}

async fn serve() -> ExitCode {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("service: can't be tied to the process that started it: {error}");
        return ExitCode::FAILURE;
    }
    let name = env::args().nth(1).unwrap_or_default();
    if name == "pal" {
        return pal(env::args_os().skip(1)).await;
    }
    let service = Service::ALL
        .into_iter()
        .find(|service| service.name() == name);
    let Some(service) = service else {
        eprintln!("service: {name:?} is no service");
        return ExitCode::FAILURE;
    };
    match run(service, env::args_os().skip(1)).await {
        Ok(code) | Err(code) => code,
    }
}

/// What a person types.
async fn pal(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match commands::run(Cli::parse_from(arguments)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pal: {}", error.in_full());
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(
    service: Service,
    arguments: impl Iterator<Item = OsString>,
) -> Result<ExitCode, ExitCode> {
    let (code, telemetry) = match service {
        Service::WalIngest => {
            let (settings, telemetry) = configure(palimpsest_wal_ingest::ABOUT, arguments).await?;
            let start = async |scope| wal_ingest(settings, &scope).await;
            (process::run(start).await, telemetry)
        }
        Service::PageServe => {
            let (settings, telemetry) = configure(palimpsest_page_serve::ABOUT, arguments).await?;
            let start = async |scope| palimpsest_page_serve::run(settings, &scope).await;
            (process::run(start).await, telemetry)
        }
        Service::RedoWorker => {
            let (settings, telemetry) = configure(palimpsest_redo_worker::ABOUT, arguments).await?;
            let start = async |scope| palimpsest_redo_worker::run(settings, &scope).await;
            (process::run(start).await, telemetry)
        }
        Service::Compactor => {
            let (settings, telemetry) = configure(palimpsest_compactor::ABOUT, arguments).await?;
            let start = async |scope| compactor(settings, &scope).await;
            (process::run(start).await, telemetry)
        }
        Service::StorageBroker => {
            let (settings, telemetry) =
                configure(palimpsest_storage_broker::ABOUT, arguments).await?;
            let start = async |scope| palimpsest_storage_broker::run(settings, &scope).await;
            (process::run(start).await, telemetry)
        }
    };
    telemetry.finish().await;
    Ok(code)
}

async fn compactor(
    settings: palimpsest_compactor::Settings,
    scope: &TaskScope,
) -> Result<palimpsest_compactor::Running, Failure> {
    Ok(match struck(&settings.store).await? {
        Some(store) => palimpsest_compactor::run_on(store, settings, scope).await?,
        None => palimpsest_compactor::run(settings, scope).await?,
    })
}

async fn wal_ingest(
    settings: palimpsest_wal_ingest::Settings,
    scope: &TaskScope,
) -> Result<palimpsest_wal_ingest::Running, Failure> {
    Ok(match struck(&settings.store).await? {
        Some(store) => {
            let disk = Arc::new(OsDisk);
            let backing = palimpsest_wal_ingest::Backing { disk, store };
            palimpsest_wal_ingest::run_on(backing, settings, scope).await?
        }
        None => palimpsest_wal_ingest::run(settings, scope).await?,
    })
}

/// The object store of a process that has orders to strike itself.
async fn struck(location: &StoreLocation) -> Result<Option<ObjectStore>, Failure> {
    let refused = |error: anyhow::Error| Failure::new(ErrorKind::Invalid, error.as_ref());
    match Orders::from_env().map_err(refused)? {
        Some(orders) => orders.open(location).await.map(Some).map_err(refused),
        None => Ok(None),
    }
}
