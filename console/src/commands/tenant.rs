//! `pal tenant`.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::{Args, Subcommand};
use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, TimelineState, TimelineView},
};
use palimpsest_types::Reason;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::tenant_config::{self, TenantConfigCommand};
use crate::{
    cli::Common,
    client::{Client, Watch},
    error::CliError,
    output::{Column, Output},
    progress::{Progress, Step},
};

/// Commands about tenants.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// List the attached clusters.
    List,
    /// Show or change the settings of a tenant.
    #[command(subcommand)]
    Config(TenantConfigCommand),
    /// Stop reading a cluster's WAL, drop the slot there, and remove every page stored of it.
    Delete(DeleteArgs),
}

/// Deletes a tenant.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The tenant.
    pub name: String,
    /// The source is gone for good: don't insist on dropping the replication slot there.
    #[arg(long)]
    pub forget_slot: bool,
    /// Don't ask.
    #[arg(long, short)]
    pub yes: bool,
}

/// A tenant, for people and programs.
#[derive(Debug, Serialize)]
struct TenantLine {
    name: String,
    id: String,
    timelines: Vec<String>,
    state: &'static str,
    source: String,
    slot: String,
}

const COLUMNS: [Column; 5] = [
    Column::Left("TENANT"),
    Column::Left("STATE"),
    Column::Left("TIMELINES"),
    Column::Left("SLOT"),
    Column::Left("SOURCE"),
];

/// How long a deletion is watched. It goes on without us.
const DELETION_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take until a source has been left that is read no more.
const LEAVING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);

pub(crate) async fn run(
    common: &Common,
    command: TenantCommand,
    output: Output,
) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    match command {
        TenantCommand::Config(command) => tenant_config::run(&mut client, command, output).await,
        TenantCommand::List => list(&client.cluster().await?, output),
        TenantCommand::Delete(arguments) => {
            let view = client.cluster().await?;
            delete(&mut client, &view, arguments, output).await
        }
    }
}

fn list(view: &ClusterView, output: Output) -> Result<(), CliError> {
    let tenants = tenants(view);
    if output.is_json() {
        return output.json(&tenants);
    }
    let rows = tenants.into_iter().map(|tenant| {
        vec![
            tenant.name,
            tenant.state.to_owned(),
            tenant.timelines.join(", "),
            tenant.slot,
            tenant.source,
        ]
    });
    output.table(&COLUMNS, rows.collect())
}

fn tenants(view: &ClusterView) -> Vec<TenantLine> {
    let mut tenants: BTreeMap<&str, TenantLine> = BTreeMap::new();
    for timeline in &view.timelines {
        let tenant = tenants
            .entry(&timeline.tenant_name)
            .or_insert_with(|| TenantLine {
                name: timeline.tenant_name.clone(),
                id: timeline.timeline.tenant.to_string(),
                timelines: Vec::new(),
                state: timeline.status.state.name(),
                source: timeline.source.clone(),
                slot: timeline.slot.clone(),
            });
        if timeline.is_main() {
            tenant.state = timeline.status.state.name();
            tenant.source.clone_from(&timeline.source);
            tenant.slot.clone_from(&timeline.slot);
        }
        tenant.timelines.push(timeline.timeline_name.clone());
    }
    tenants.into_values().collect()
}

async fn delete(
    client: &mut Client,
    view: &ClusterView,
    arguments: DeleteArgs,
    output: Output,
) -> Result<(), CliError> {
    let name = &arguments.name;
    let of_tenant = view.timelines.iter().filter(|of| of.tenant_name == *name);
    let Some(timeline) = of_tenant.max_by_key(|of| of.is_main()) else {
        return Err(CliError::UnknownTenant {
            name: name.clone(),
            known: tenants(view).into_iter().map(|line| line.name).collect(),
        });
    };
    if !arguments.yes && !confirmed(timeline)? {
        return output.line("nothing was deleted");
    }
    delete_and_wait(client, name, arguments.forget_slot).await?;
    output.line(format!("tenant {name} is deleted"))
}

fn confirmed(timeline: &TimelineView) -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Failed {
            what: "this deletes every page stored of the tenant, and nobody can be asked".into(),
            hint: Some("add --yes if that is meant".into()),
        });
    }
    let TimelineView {
        tenant_name,
        source,
        slot,
        ..
    } = timeline;
    let mut stderr = std::io::stderr();
    let slot = match source.is_empty() {
        true => String::new(),
        false => format!(", and slot {slot} at {source}"),
    };
    let question = format!("delete tenant {tenant_name}, every page stored of it{slot}? [y/N] ");
    let asked = write!(stderr, "{question}").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let answered = asked.and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    answered.map_err(CliError::Output)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Deletes a tenant and waits until nothing is left of it.
pub(crate) async fn delete_and_wait(
    client: &mut Client,
    name: &str,
    forget_slot: bool,
) -> Result<(), CliError> {
    let begun = Instant::now();
    let timeline = loop {
        match client.broker().delete_tenant(name, forget_slot).await {
            Ok(timeline) => break timeline,
            // Its source is just being left.
            Err(error) if error.reason == Some(Reason::InUse) && begun.elapsed() < LEAVING => {
                sleep(LOOK).await;
            }
            Err(error) => return Err(client.refused(format!("deleting tenant {name}"), error)),
        }
    };
    let mut watch = client.watch()?;
    let mut progress = Progress::start();
    let mut obstacle = String::new();
    let gone = wait_until_gone(&mut watch, timeline, &mut progress, &mut obstacle);
    let in_time = tokio::time::timeout(DELETION_LIMIT, gone).await;
    progress.end();
    in_time.map_err(|_| unfinished(name, &obstacle))
}

async fn wait_until_gone(
    watch: &mut Watch,
    timeline: TimelineRef,
    progress: &mut Progress,
    obstacle: &mut String,
) {
    let look = |view: &ClusterView| {
        let status = view.timeline(timeline).map(|view| &view.status);
        let gone = status.is_none_or(|status| status.state == TimelineState::Deleted);
        // Before the deletion begins, the reason is that of another state.
        let deleting = status.filter(|status| status.state == TimelineState::Deleting);
        if let Some(status) = deleting {
            obstacle.clone_from(&status.reason);
            progress.show(&Step::new(match status.reason.as_str() {
                "" => "deleting".to_owned(),
                reason => format!("deleting: {reason}"),
            }));
        }
        gone.then_some(())
    };
    watch.until(look).await;
}

fn unfinished(name: &str, obstacle: &str) -> CliError {
    let why = match obstacle {
        "" => "wal-ingest has not said why; does it run?",
        reason => reason,
    };
    CliError::Failed {
        what: format!("tenant {name} is still being deleted: {why}"),
        hint: Some(
            "it goes on by itself; if the source is gone for good, add --forget-slot".into(),
        ),
    }
}
