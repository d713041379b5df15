//! The demo: Palimpsest beside a PostgreSQL of its own, to play with or to check itself once.

use std::{num::NonZeroU32, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use palimpsest_integration::demo::{self, UpSettings};
use palimpsest_service_kit::{shutdown::signal_token, threads};
use palimpsest_settings::PortBase;

/// Palimpsest with a PostgreSQL to play with.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything until Ctrl-C; started again, it goes on where it was.
    Up {
        /// Where everything is kept.
        #[arg(long, env = "PALIMPSEST_DATA", default_value = "./data")]
        data: PathBuf,
        /// Port of the storage-broker; the other services take the next ones. 0 takes free ports.
        #[arg(long, default_value_t)]
        port_base: PortBase,
        /// Port of the demo's PostgreSQL, on loopback.
        #[arg(long, default_value_t = demo::POSTGRES_PORT)]
        postgres_port: u16,
    },
    /// Attach a PostgreSQL, undo an accident on a branch, make it write, and compare every page with PostgreSQL's own; then
    /// end.
    Check {
        /// How much it writes; 1 is some 100 MB of WAL.
        #[arg(long, default_value_t = NonZeroU32::MIN)]
        scale: NonZeroU32,
        /// At how many LSNs before the last one to compare.
        #[arg(long, default_value_t = 5)]
        lsns: usize,
    },
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let outcome = threads::block_on(run(command)).context("starting threads");
    match outcome.flatten() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    let signals = signal_token().context("listening for signals")?;
    match command {
        Command::Up {
            data,
            port_base,
            postgres_port,
        } => {
            let settings = UpSettings {
                data,
                port_base,
                postgres_port,
            };
            demo::up(settings, &signals).await
        }
        Command::Check { scale, lsns } => {
            // Cancel-safe: everything is in temporary directories, and ends when it is dropped.
            tokio::select! {
                checked = demo::check(scale, lsns) => checked,
                () = signals.cancelled() => anyhow::bail!("interrupted"),
            }
        }
    }
}
