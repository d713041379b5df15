//! `pal up`.

use std::path::PathBuf;

use clap::Args;
use palimpsest_service_kit::{
    shutdown::signal_token,
    telemetry::{self, LogFormat},
};

use crate::{
    cli::Common,
    error::CliError,
    output::Output,
    place::Place,
    stack::{Stack, StackSettings, default_pg_bin, default_redo_build},
};

/// Runs all services.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Port of the storage-broker; the other services take the next ones. 0 takes free ports.
    #[arg(long, default_value_t = PORT_BASE)]
    pub port_base: u16,
    /// Where the programs of PostgreSQL 15 are.
    #[arg(long, env = "PALIMPSEST_PG_BIN", value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
    /// Where the redo library is that `make redo` built.
    #[arg(long, env = "PALIMPSEST_REDO_BUILD", value_name = "DIR")]
    pub redo_build: Option<PathBuf>,
    /// How events are written to standard error.
    #[arg(long, env = "PALIMPSEST_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// The first of the ports that Palimpsest uses if it is not told others.
pub const PORT_BASE: u16 = 7700;

pub(crate) async fn run(
    common: &Common,
    arguments: UpArgs,
    output: Output,
) -> Result<(), CliError> {
    telemetry::init(arguments.log_format);
    let signals = signal_token().map_err(|error| CliError::Failed {
        what: format!("can't listen for signals: {error}"),
        hint: None,
    })?;
    let place = Place::claim_patiently(&common.data).await?;
    let stack = Stack::start(&arguments.settings(), &place).await?;
    let told = tell(&stack, &place, output);
    let ended = match &told {
        Ok(()) => stack.wait(&signals).await,
        Err(_) => None,
    };
    stack.stop().await;
    drop(place);
    told?;
    match ended {
        None => Ok(()),
        Some(name) => Err(CliError::Failed {
            what: format!("{name} ended by itself; its last messages say why"),
            hint: None,
        }),
    }
}

fn tell(stack: &Stack, place: &Place, output: Output) -> Result<(), CliError> {
    place.announce(&stack.announcement())?;
    if output.is_json() {
        return output.json(&stack.announcement());
    }
    output.line(format!("Palimpsest runs in {}", place.dir().display()))?;
    for (name, address) in stack.addresses() {
        output.line(format!("  {name:<14}  {address}"))?;
    }
    output.line("try, in another terminal:")?;
    output.line("  pal attach mine --source 'host=localhost user=postgres'")?;
    output.line("  pal status")?;
    output.line("  pal rel list mine")?;
    output.line("Ctrl-C stops everything")
}

impl UpArgs {
    fn settings(self) -> StackSettings {
        StackSettings {
            port_base: self.port_base,
            pg_bin: self.pg_bin.unwrap_or_else(default_pg_bin),
            redo_build: self.redo_build.unwrap_or_else(default_redo_build),
        }
    }
}
