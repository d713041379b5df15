//! Where events go: standard error, for people or for machines.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, util::SubscriberInitExt as _};

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Pretty,
    /// One JSON object per line.
    Json,
}

/// Begins to write events to standard error: those that `RUST_LOG` selects, else `info` and up.
///
/// Only the first call in a process has an effect, so that services can share one.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let events = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter);
    let outcome = match format {
        LogFormat::Pretty => events.finish().try_init(),
        LogFormat::Json => events.json().finish().try_init(),
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "telemetry is set up already");
    }
}
