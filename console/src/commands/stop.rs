//! `pal stop` and `pal psql`.

use std::time::Duration;

use clap::Args;
use palimpsest_api::TimelineRef;
use tokio::time::timeout;

use crate::{
    cli::Common,
    client::{Client, find, full_name},
    compute::{ComputePlace, Programs, Record, Server},
    error::CliError,
    output::Output,
};

/// Ends a PostgreSQL that `pal start` has started.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// BRANCH or TENANT/BRANCH.
    pub name: String,
    /// Where PostgreSQL's programs are.
    #[command(flatten)]
    pub programs: Programs,
}

/// Opens a session with it.
#[derive(Debug, Args)]
pub struct PsqlArgs {
    /// BRANCH or TENANT/BRANCH.
    pub name: String,
    /// Where PostgreSQL's programs are.
    #[command(flatten)]
    pub programs: Programs,
    /// For psql, as after `--`.
    #[arg(last = true)]
    pub arguments: Vec<String>,
}

/// How long the end of its WAL may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(30);

pub(crate) async fn stop(
    common: &Common,
    arguments: StopArgs,
    output: Output,
) -> Result<(), CliError> {
    let Started {
        name,
        place,
        record,
        told,
    } = started(common, &arguments.name).await?;
    let server = Server::new(&arguments.programs, &place)?;
    if !server.is_running().await? {
        return output.line(format!("the PostgreSQL of {name} does not run"));
    }
    server.stop().await?;
    let has_arrived = match (record.is_attached, told) {
        (false, _) => true,
        (true, Some((client, timeline))) => {
            // The record of the shutdown begins there, and is the last one.
            let end = server.last_checkpoint()?;
            let mut watch = client.watch()?;
            let arrived = watch.until(|view| {
                let status = &view.timeline(timeline)?.status;
                (status.last_record > end).then_some(())
            });
            // Cancel-safe: it only waits.
            timeout(ARRIVAL, arrived).await.ok().flatten().is_some()
        }
        (true, None) => false,
    };
    if !has_arrived {
        return Err(CliError::Failed {
            what: format!("{name} is stopped, but the end of its WAL may not have arrived"),
            hint: Some(format!(
                "it is kept in {}: start it again when `pal status` is well",
                place.data().display()
            )),
        });
    }
    output.line(format!("stopped the PostgreSQL of {name}"))
}

pub(crate) async fn psql(common: &Common, arguments: PsqlArgs) -> Result<(), CliError> {
    let Started { place, record, .. } = started(common, &arguments.name).await?;
    let server = Server::new(&arguments.programs, &place)?;
    // Not held while a person is in it.
    drop(place);
    Err(server.psql(&record, &arguments.arguments))
}

/// What was started for a branch.
struct Started {
    name: String,
    place: ComputePlace,
    record: Record,
    /// The services, if they are there, and the branch.
    told: Option<(Client, TimelineRef)>,
}

/// By the name that the branch has now; with the services away, by the one that it had when it was started.
async fn started(common: &Common, name: &str) -> Result<Started, CliError> {
    let none = |name: &str| CliError::Failed {
        what: format!("no PostgreSQL was started for {name} in this data directory"),
        hint: Some(format!("`pal start {name}` starts one")),
    };
    let mut client = Client::new(common)?;
    let view = match client.cluster().await {
        Ok(view) => view,
        Err(unreachable @ CliError::Unreachable { .. }) => {
            let called = ComputePlace::called(&common.data, name)?;
            let (place, record) = called.ok_or(unreachable)?;
            return Ok(Started {
                name: record.name.clone(),
                place,
                record,
                told: None,
            });
        }
        Err(error) => return Err(error),
    };
    let branch = find(&view, name)?;
    let (name, timeline) = (full_name(branch), branch.timeline);
    let place = ComputePlace::existing(&common.data, timeline)?;
    let place = place.ok_or_else(|| none(&name))?;
    let record = place.record()?.ok_or_else(|| none(&name))?;
    Ok(Started {
        name,
        place,
        record,
        told: Some((client, timeline)),
    })
}
