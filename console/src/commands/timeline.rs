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
    let view = Client::new(common)?.cluster().await?;
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
            let line = TimelineLine::from(find(&view, &name)?);
            if output.is_json() {
                return output.json(&line);
            }
            for (name, value) in line.details() {
                output.line(format!("{name:<16}  {value}"))?;
            }
            Ok(())
        }
    }
}
