//! From command line, environment and file to the settings of a service.

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Args as _, Command, FromArgMatches as _};
use palimpsest_settings::{
    ConfigArgs, Effective, PortBase, Problems, Service, Settings, Sources, command, flags, merge,
};
use serde::{Deserialize, Serialize};

use crate::{
    address::loopback_address,
    process::BAD_SETTINGS,
    telemetry::{self, LogFormat, Telemetry},
};

/// What every process can be told.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProcessSettings {
    /// Port of the storage-broker, from which the ports of all are counted; 0 takes free ones
    #[arg(long)]
    pub port_base: PortBase,
    /// How events are written to standard error
    #[arg(long, value_enum)]
    pub log_format: LogFormat,
}

/// Of `--check-config`, if something is wrong.
const WRONG: u8 = 2;

impl Settings for ProcessSettings {
    const SERVICE: Option<Service> = None;

    fn defaults(_: PortBase) -> Self {
        Self::default()
    }
}

/// Reads the settings of a service from its command line, the environment and a file, and begins to
/// write events and traces. `about` is the first line of its help.
///
/// # Errors
/// The code to exit with. After a message: 64 if settings are wrong, 2 if that was the question.
/// Without: 0 after `--help`, `--version`, `--check-config` and `--print-config`.
pub async fn configure<S: Settings>(
    about: &'static str,
    arguments: impl Iterator<Item = OsString>,
) -> Result<(S, Telemetry), ExitCode> {
    let name = S::SERVICE.map_or("palimpsest", Service::name);
    let program = Command::new(name)
        .about(about)
        .version(env!("CARGO_PKG_VERSION"));
    let program = command(program, &S::default());
    let program = command(program, &ProcessSettings::default());
    let program = ConfigArgs::augment_args(program);
    let matches = program.try_get_matches_from(arguments).map_err(complain)?;
    let asked = ConfigArgs::from_arg_matches(&matches).map_err(complain)?;
    let effective = effective::<S>(&asked, &matches);
    let effective = match effective {
        Ok((process, service)) => match is_loopback(&service).await {
            Ok(()) => Ok((process, service)),
            Err(problems) => Err(problems),
        },
        Err(problems) => Err(problems),
    };
    let print = |(process, service): &(Effective<ProcessSettings>, Effective<S>)| {
        format!("{}\n{}", process.to_toml(), service.to_toml())
    };
    let (process, service) = answer(&asked, effective, print)?;
    let telemetry = telemetry::init(name, process.settings.log_format);
    Ok((service.settings, telemetry))
}

/// Does what was asked about settings.
///
/// # Errors
/// The code to exit with, if that was all or they are wrong; what they are has been written.
pub fn answer<T>(
    asked: &ConfigArgs,
    settings: Result<T, Problems>,
    print: impl FnOnce(&T) -> String,
) -> Result<T, ExitCode> {
    let settings = match settings {
        Ok(settings) => settings,
        Err(problems) => {
            let lines: Vec<_> = problems.0.iter().map(|problem| problem.in_full()).collect();
            // With standard error closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "{}", lines.join("\n"));
            return Err(ExitCode::from(match asked.check_config {
                true => WRONG,
                false => BAD_SETTINGS,
            }));
        }
    };
    if asked.print_config {
        let written = io::stdout().write_all(print(&settings).as_bytes());
        return Err(match written {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        });
    }
    match asked.check_config {
        true => Err(ExitCode::SUCCESS),
        false => Ok(settings),
    }
}

fn effective<S: Settings>(
    asked: &ConfigArgs,
    matches: &clap::ArgMatches,
) -> Result<(Effective<ProcessSettings>, Effective<S>), Problems> {
    let sources = Sources::gather(asked.config.as_deref(), env::vars_os())?;
    let own = sources
        .clone()
        .with_flags(flags::<ProcessSettings>(matches)?);
    let process = merge(&ProcessSettings::default(), &own);
    let ports = process.as_ref().map(|process| process.settings.port_base);
    let defaults = S::defaults(ports.unwrap_or_default());
    let own = sources.with_flags(flags::<S>(matches)?);
    let service = merge(&defaults, &own).and_then(Effective::checked);
    match (process, service) {
        (Ok(process), Ok(service)) => Ok((process, service)),
        (Err(mut all), Err(Problems(more))) => {
            all.0.extend(more);
            Err(all)
        }
        (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => Err(problems),
    }
}

/// Whether the address may be listened on; whether it is free shows when it is taken.
async fn is_loopback<S: Settings>(effective: &Effective<S>) -> Result<(), Problems> {
    let Some(listen) = effective.settings.listen() else {
        return Ok(());
    };
    let outcome = loopback_address(listen).await;
    let refused = |error: crate::BindError| effective.problem("listen", error.to_string());
    outcome.map(drop).map_err(|error| refused(error).into())
}

fn complain(error: clap::Error) -> ExitCode {
    // With standard error closed there is nobody to tell.
    let _ = error.print();
    match error.use_stderr() {
        true => ExitCode::from(BAD_SETTINGS),
        false => ExitCode::SUCCESS,
    }
}
