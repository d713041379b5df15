//! Flags of a program, made from its settings.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, parser::ValueSource};

use crate::{Problem, Problems, Settings, inventory, inventory::key, sources::Origin};

/// What every program with settings can be asked about them.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// A TOML file with settings, in a section for each service
    #[arg(long, env = "PALIMPSEST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say what is wrong with the settings, and end: 0 if nothing is, 2 otherwise
    #[arg(long, conflicts_with = "print_config")]
    pub check_config: bool,
    /// Print the settings that hold, each with where it comes from, and end
    #[arg(long)]
    pub print_config: bool,
}

/// Adds the flags of these settings to a command.
pub fn command<S: Settings>(command: Command, defaults: &S) -> Command {
    // A program's own defaults can be written; without them a flag has its own help.
    let inventory = inventory(defaults).unwrap_or_default();
    let described = |argument: Arg| {
        let setting = inventory
            .iter()
            .find(|setting| setting.key == key(&argument));
        let Some(setting) = setting else {
            return argument;
        };
        let help = format!(
            "{} [default: {}] [env: {}]",
            setting.help, setting.default, setting.variable
        );
        // Their values are merged with those from elsewhere, so clap may not insist on any.
        argument.required(false).help(help)
    };
    let flags = S::augment_args(Command::new("settings")).mut_args(described);
    command.args(flags.get_arguments())
}

/// Keys and values of the flags of these settings that were given.
///
/// # Errors
/// If a value is not text.
pub fn flags<S: Settings>(matches: &ArgMatches) -> Result<Vec<(String, String)>, Problems> {
    let mut given = Vec::new();
    for argument in S::augment_args(Command::new("settings")).get_arguments() {
        let (id, key) = (argument.get_id().as_str(), key(argument).to_owned());
        if matches.value_source(id) != Some(ValueSource::CommandLine) {
            continue;
        }
        for value in matches.get_raw(id).into_iter().flatten() {
            let value = value.to_str().ok_or_else(|| Problem::NotText {
                origin: Origin::Flag(key.clone()),
            })?;
            given.push((key.clone(), value.to_owned()));
        }
    }
    Ok(given)
}
