//! `pal up`.

use std::path::PathBuf;

use clap::Args;
use palimpsest_service_kit::{
    shutdown::signal_token,
    telemetry::{self, LogFormat},
};
use palimpsest_settings::{ConfigArgs, PortBase};
use palimpsest_store::StoreLocation;

use crate::{
    cli::Common,
    error::CliError,
    output::Output,
    place::Place,
    stack::Stack,
    told::{Flags, Told},
};

/// Runs all services.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Port of the storage-broker, 7700 unless told; the other services take the next ones. 0 takes
    /// free ports.
    #[arg(long)]
    pub port_base: Option<PortBase>,
    /// Where the programs of PostgreSQL 15 are.
    #[arg(long, env = "PALIMPSEST_PG_BIN", value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
    /// Where the redo library is that `make redo` built.
    #[arg(long, env = "PALIMPSEST_REDO_BUILD", value_name = "DIR")]
    pub redo_build: Option<PathBuf>,
    /// The object store of all services: a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or
    /// az://CONTAINER/PREFIX. Who asks is said by the provider's variables, as AWS_ACCESS_KEY_ID;
    /// `store` below the data directory unless told.
    #[arg(long, value_name = "PLACE")]
    pub store: Option<StoreLocation>,
    /// How events are written to standard error; pretty unless told.
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
    /// What to know about settings.
    #[command(flatten)]
    pub asked: ConfigArgs,
}

pub(crate) async fn run(
    common: &Common,
    arguments: UpArgs,
    output: Output,
) -> Result<(), CliError> {
    let asked = &arguments.asked;
    let flags = Flags {
        config: asked.config.as_deref(),
        process: arguments.process_flags(),
        pg_bin: arguments.pg_bin.clone(),
        redo_build: arguments.redo_build.clone(),
        store: arguments.store.clone(),
    };
    // Everything that can be wrong is found before the data directory is touched.
    let settings = match Told::gather(&common.data, flags) {
        Ok(settings) => settings,
        Err(problems) if asked.check_config => return Err(CliError::Unsound(problems)),
        Err(problems) => return Err(CliError::Settings(problems)),
    };
    if asked.print_config {
        let all = [settings.process.to_toml(), settings.services.to_toml()];
        return output.line(all.join("\n").trim_end());
    }
    if asked.check_config {
        return Ok(());
    }
    let telemetry = telemetry::init("pal", settings.process.settings.log_format);
    let signals = signal_token().map_err(|error| CliError::Failed {
        what: format!("can't listen for signals: {error}"),
        hint: None,
    })?;
    let place = Place::claim_patiently(&common.data).await?;
    let stack = Stack::start(&settings.stack, &place).await?;
    let told = tell(&stack, &place, output);
    let ended = match &told {
        Ok(()) => stack.wait(&signals).await,
        Err(_) => None,
    };
    stack.stop().await;
    telemetry.finish().await;
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
    let metrics: Vec<_> = stack
        .side_addresses()
        .map(|(name, address)| format!("{address} ({name})"))
        .collect();
    output.line(format!("metrics and probes: {}", metrics.join(", ")))?;
    output.line(format!("object store: {}", stack.announcement().store))?;
    output.line("try, in another terminal:")?;
    output.line("  pal attach mine --source 'host=localhost user=postgres'")?;
    output.line("  pal status")?;
    output.line("  pal rel list mine")?;
    output.line("Ctrl-C stops everything")
}

impl UpArgs {
    fn process_flags(&self) -> Vec<(String, String)> {
        let port_base = self.port_base.map(|base| base.to_string());
        let log_format = self.log_format.and_then(|format| {
            let value = clap::ValueEnum::to_possible_value(&format)?;
            Some(value.get_name().to_owned())
        });
        let flags = [("port-base", port_base), ("log-format", log_format)];
        let given = |(key, value): (&str, Option<String>)| Some((key.to_owned(), value?));
        flags.into_iter().filter_map(given).collect()
    }
}
