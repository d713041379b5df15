//! `pal timeline`.

use clap::Subcommand;

use crate::{
    cli::Common,
    client::{Client, find},
    error::CliError,
    output::Output,
    views::{TIMELINE_COLUMNS, TimelineLine},
};

/// Commands about timelines.
#[derive(Debug, Subcommand)]
pub enum TimelineCommand {
    /// List all timelines.
    List,
    /// Show everything about one.
    Show {
        /// TENANT or TENANT/TIMELINE.
        name: String,
    },
}

pub(crate) async fn run(
    common: &Common,
    command: TimelineCommand,
    output: Output,
) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    match command {
        TimelineCommand::List => {
            let lines = TimelineLine::all(&view);
            if output.is_json() {
                return output.json(&lines);
            }
            let rows = lines.iter().map(TimelineLine::cells).collect();
            output.table(&TIMELINE_COLUMNS, rows)
        }
        TimelineCommand::Show { name } => {
            let admin = client.admin()?;
            let told = admin.timeline(find(&view, &name)?.timeline).await;
            let details =
                told.map_err(|error| client.refused(format!("asking for {name}"), error))?;
            let line = TimelineLine::from(&details.view).with_stored(details);
            if output.is_json() {
                return output.json(&line);
            }
            for (name, value) in line.details() {
                output.line(format!("{name:<17}  {value}"))?;
            }
            Ok(())
        }
    }
}
