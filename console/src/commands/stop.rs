//! `pal stop` and `pal psql`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use palimpsest_api::broker::TimelineView;
use tokio::time::timeout;

use crate::{
    cli::Common,
    client::{Client, find, full_name},
    compute::{ComputePlace, Record, Server},
    error::CliError,
    output::Output,
    stack::default_pg_bin,
};

/// Ends a PostgreSQL that `pal start` has started.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// BRANCH or TENANT/BRANCH.
    pub name: String,
    /// Where PostgreSQL's programs are.
    #[arg(long, env = "PALIMPSEST_PG_BIN", value_name = "DIR", default_value_os_t = default_pg_bin())]
    pub pg_bin: PathBuf,
}

/// Opens a session with it.
#[derive(Debug, Args)]
pub struct PsqlArgs {
    /// BRANCH or TENANT/BRANCH.
    pub name: String,
    /// Where PostgreSQL's programs are.
    #[arg(long, env = "PALIMPSEST_PG_BIN", value_name = "DIR", default_value_os_t = default_pg_bin())]
    pub pg_bin: PathBuf,
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
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    let branch = find(&view, &arguments.name)?;
    let name = full_name(branch);
    let (place, record) = started(common, branch)?;
    let server = Server::new(&arguments.pg_bin, &place)?;
    if !server.is_running().await? {
        return output.line(format!("the PostgreSQL of {name} does not run"));
    }
    server.stop().await?;
    if record.is_attached {
        // The record of the shutdown begins there, and is the last one.
        let end = server.last_checkpoint()?;
        let mut watch = client.watch()?;
        let arrived = watch.until(|view| {
            let status = &view.timeline(branch.timeline)?.status;
            (status.last_record > end).then_some(())
        });
        // Cancel-safe: it only waits.
        if timeout(ARRIVAL, arrived).await.ok().flatten().is_none() {
            return Err(CliError::Failed {
                what: format!("{name} is stopped, but the end of its WAL has not arrived here"),
                hint: Some(format!(
                    "it is kept in {}: start it again when `pal status` is well",
                    place.data().display()
                )),
            });
        }
    }
    output.line(format!("stopped the PostgreSQL of {name}"))
}

pub(crate) async fn psql(common: &Common, arguments: PsqlArgs) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    let (place, record) = started(common, find(&view, &arguments.name)?)?;
    let server = Server::new(&arguments.pg_bin, &place)?;
    // Not held while a person is in it.
    drop(place);
    Err(server.psql(&record, &arguments.arguments))
}

/// What was started for a branch.
fn started(common: &Common, branch: &TimelineView) -> Result<(ComputePlace, Record), CliError> {
    let name = full_name(branch);
    let none = || CliError::Failed {
        what: format!("no PostgreSQL was started for {name} in this data directory"),
        hint: Some(format!("`pal start {name}` starts one")),
    };
    let place = ComputePlace::existing(&common.data, branch.timeline)?.ok_or_else(none)?;
    let record = place.record()?.ok_or_else(none)?;
    Ok((place, record))
}
