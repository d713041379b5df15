//! Which settings there are, as their struct says.

use clap::{Arg, Command};
use toml::Table;

use crate::{Problem, Settings, environment::variable};

/// A setting and what there is to know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its key in a file; with `--` before it the flag.
    pub key: String,
    /// What it is.
    pub help: String,
    /// The variable that sets it.
    pub variable: String,
    /// Its default, as TOML.
    pub default: String,
}

/// The settings in the order in which the struct has them.
///
/// # Errors
/// If a default can't be written as TOML.
pub fn inventory<S: Settings>(defaults: &S) -> Result<Vec<Setting>, Problem> {
    let values = table(defaults)?;
    let command = S::augment_args(Command::new("settings"));
    let settings = command
        .get_arguments()
        .map(|argument| {
            let key = key(argument).to_owned();
            let help = argument.get_help().map(ToString::to_string);
            Setting {
                variable: variable(S::SERVICE, &key),
                default: values
                    .get(&key)
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                help: help.unwrap_or_default(),
                key,
            }
        })
        .collect();
    Ok(settings)
}

/// Keys and values of settings, as a person writes them; without those that have no value.
///
/// # Errors
/// If a value can't be written.
pub fn written<S: Settings>(settings: &S) -> Result<Vec<(String, String)>, Problem> {
    let text = |value: toml::Value| match value {
        toml::Value::String(text) => text,
        other => other.to_string(),
    };
    let values = table(settings)?;
    Ok((values.into_iter().map(|(key, value)| (key, text(value)))).collect())
}

/// A setting's key: the long name of its flag.
pub(crate) fn key(argument: &Arg) -> &str {
    argument
        .get_long()
        .unwrap_or_else(|| argument.get_id().as_str())
}

/// Settings as TOML has them.
///
/// # Errors
/// If a path is not text, or a number is larger than TOML has.
pub(crate) fn table<S: Settings>(settings: &S) -> Result<Table, Problem> {
    Table::try_from(settings).map_err(|error| Problem::Unwritable {
        whose: S::SERVICE.map_or("this program", |service| service.name()),
        message: error.to_string(),
    })
}
