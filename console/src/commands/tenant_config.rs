//! `pal tenant config`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use palimpsest_api::tenant_settings::{EffectiveSetting, SettingOrigin, TenantSettings};
use serde::Serialize;

use crate::{
    client::Client,
    error::CliError,
    output::{Column, Output},
};

/// Commands about settings of tenants.
#[derive(Debug, Subcommand)]
pub enum TenantConfigCommand {
    /// Show each setting, what holds, and who says so.
    Show {
        /// The tenant.
        name: String,
    },
    /// Set settings, or take them back; services go by them within seconds.
    #[command(after_help = settings_help())]
    Set(SetArgs),
}

/// Changes settings: all that are named or, if anything can't be, none.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The tenant.
    pub name: String,
    /// What is to be set, as layer-size=64MiB layer-age=1m.
    #[arg(value_name = "SETTING=VALUE", value_parser = pair, required_unless_present = "unset")]
    pub set: Vec<(String, String)>,
    /// A setting that is to be as the services have it; can be given several times.
    #[arg(long, value_name = "SETTING")]
    pub unset: Vec<String>,
}

/// A setting, for programs.
#[derive(Debug, Serialize)]
struct SettingLine {
    name: String,
    value: Option<String>,
    origin: &'static str,
    description: String,
    defaults: BTreeMap<String, Vec<String>>,
}

const COLUMNS: [Column; 4] = [
    Column::Left("SETTING"),
    Column::Left("VALUE"),
    Column::Left("FROM"),
    Column::Left("WHAT IT IS"),
];

pub(crate) async fn run(
    client: &mut Client,
    command: TenantConfigCommand,
    output: Output,
) -> Result<(), CliError> {
    let (what, settings) = match command {
        TenantConfigCommand::Show { name } => {
            let told = client.broker().tenant_settings(&name).await;
            (format!("asking for the settings of {name}"), told)
        }
        TenantConfigCommand::Set(SetArgs { name, set, unset }) => {
            let told = client.broker().set_tenant_settings(&name, set, unset).await;
            (format!("changing the settings of {name}"), told)
        }
    };
    tell(
        settings.map_err(|source| client.refused(what, source))?,
        output,
    )
}

fn tell(settings: Vec<EffectiveSetting>, output: Output) -> Result<(), CliError> {
    if output.is_json() {
        let lines: Vec<_> = settings.into_iter().map(SettingLine::from).collect();
        return output.json(&lines);
    }
    let rows = settings.into_iter().map(|setting| {
        let (value, from) = (value(&setting), origin(setting.origin));
        vec![setting.name, value, from.to_owned(), setting.description]
    });
    output.table(&COLUMNS, rows.collect())
}

/// What holds; all there is, with where, if services differ.
fn value(setting: &EffectiveSetting) -> String {
    match (&setting.value, setting.defaults.as_slice()) {
        (Some(value), _) => value.clone(),
        (None, []) => "-".to_owned(),
        (None, defaults) => {
            let each = |(value, services): &(String, Vec<String>)| {
                format!("{value} ({})", services.join(", "))
            };
            defaults.iter().map(each).collect::<Vec<_>>().join("; ")
        }
    }
}

const fn origin(origin: SettingOrigin) -> &'static str {
    match origin {
        SettingOrigin::Tenant => "tenant",
        SettingOrigin::Service => "services",
        SettingOrigin::Nobody => "-",
    }
}

impl From<EffectiveSetting> for SettingLine {
    fn from(setting: EffectiveSetting) -> Self {
        Self {
            origin: match setting.origin {
                SettingOrigin::Nobody => "nobody",
                other => origin(other),
            },
            name: setting.name,
            value: setting.value,
            description: setting.description,
            defaults: setting.defaults.into_iter().collect(),
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=');
    let pair = pair.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
    pair.ok_or_else(|| {
        "write SETTING=VALUE, for example layer-size=64MiB; --unset SETTING takes one back"
            .to_owned()
    })
}

fn settings_help() -> String {
    let line = |setting: palimpsest_api::tenant_settings::Setting| {
        format!("  {:<22}{}\n", setting.key, setting.help)
    };
    let settings = TenantSettings::all().into_iter().map(line);
    format!("Settings:\n{}", settings.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_written_with_its_value() {
        let expected = ("layer-size".to_owned(), "64MiB".to_owned());
        assert_eq!(pair("layer-size=64MiB"), Ok(expected));
        assert!(pair("layer-size").unwrap_err().contains("SETTING=VALUE"));
    }

    #[test]
    fn where_services_differ_each_is_told() {
        let default = |value: &str, who: &str| (value.to_owned(), vec![who.to_owned()]);
        let setting = EffectiveSetting {
            name: "layer-size".to_owned(),
            description: String::new(),
            value: None,
            origin: SettingOrigin::Service,
            defaults: vec![default("64MiB", "a"), default("4MiB", "b")],
        };
        assert_eq!(value(&setting), "64MiB (a); 4MiB (b)");
    }
}
