//! `pal attach`.

use clap::Args;
use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, TimelineState, TimelineView},
};
use palimpsest_types::{ByteCount, Lsn};
use serde::Serialize;
use tokio::signal::ctrl_c;

use super::tenant::delete_and_wait;
use crate::{
    cli::Common,
    client::{Client, Watch},
    error::CliError,
    output::Output,
    progress::{Progress, Step},
};

/// Attaches a PostgreSQL.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Name of the new tenant: a letter, then letters, digits, '-' and '_'.
    pub name: String,
    /// How to reach the PostgreSQL, as libpq understands it: "host=db user=replicator" or a
    /// postgresql:// URL. The user needs only the right to replicate.
    #[arg(long, value_name = "CONNINFO")]
    pub source: String,
    /// The replication slot to make there; palimpsest_NAME without it.
    #[arg(long)]
    pub slot: Option<String>,
    /// Only look whether it could be attached; change nothing.
    #[arg(long)]
    pub check: bool,
}

/// A PostgreSQL whose pages can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// The oldest LSN that can be read.
    pub oldest: Lsn,
    /// What needs attention.
    pub warnings: Vec<String>,
}

/// How far an attach is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Something is under way.
    Working(Step),
    /// Pages can be read.
    Ready(Attached),
    /// It can't go on.
    Stopped { reason: String },
    /// Somebody deletes it.
    Gone,
}

pub(crate) async fn run(
    common: &Common,
    arguments: AttachArgs,
    output: Output,
) -> Result<(), CliError> {
    if arguments.check {
        return check(&arguments.source, output).await;
    }
    let AttachArgs {
        name, source, slot, ..
    } = arguments;
    let attached = attach(common, &name, &source, slot.as_deref()).await?;
    report(&name, &attached, output)
}

/// Attaches a PostgreSQL and waits until its pages can be read. One that is attached already under
/// the same name is only waited for.
///
/// # Errors
/// If it can't be attached, which is then undone, or if Ctrl-C ends the waiting.
pub async fn attach(
    common: &Common,
    name: &str,
    source: &str,
    slot: Option<&str>,
) -> Result<Attached, CliError> {
    let mut client = Client::new(common)?;
    let known = client.cluster().await?;
    let timeline = client
        .broker()
        .attach_tenant(name, source, slot)
        .await
        .map_err(|error| client.refused(format!("attaching {name}"), error))?;
    let is_new = known.timeline(timeline).is_none();
    let mut watch = client.watch()?;
    // Both are cancel-safe; the attach goes on in wal-ingest either way.
    let end = tokio::select! {
        end = follow(&mut watch, timeline) => end,
        _ = ctrl_c() => return Err(CliError::Interrupted { what: goes_on(name) }),
    };
    match end {
        Phase::Ready(attached) => Ok(attached),
        Phase::Stopped { reason } if is_new => Err(give_up(&mut client, name, reason).await),
        Phase::Stopped { reason } => Err(CliError::Failed {
            what: format!("{name} was attached before and has stopped: {reason}"),
            hint: Some(format!(
                "`pal tenant delete {name}` makes room for a new attach"
            )),
        }),
        Phase::Working(_) | Phase::Gone => Err(CliError::Failed {
            what: format!("{name} was deleted while it was being attached"),
            hint: None,
        }),
    }
}

async fn check(source: &str, output: Output) -> Result<(), CliError> {
    let report = palimpsest_wal_ingest::check_source(source)
        .await
        .map_err(|error| CliError::NotAttachable(Box::new(error)))?;
    output.line(format!(
        "PostgreSQL {}, system identifier {}, timeline {}, WAL segments of {}",
        report.pg_version,
        report.system_identifier,
        report.pg_timeline,
        ByteCount::new(report.wal_segment_size.bytes()),
    ))?;
    for warning in report.warnings {
        output.line(format!("! {warning}"))?;
    }
    output.line("it can be attached")
}

/// Shows what happens until it ends in one way or another.
async fn follow(watch: &mut Watch, timeline: TimelineRef) -> Phase {
    let mut progress = Progress::start();
    progress.show(&Step::new("waiting for wal-ingest"));
    let look = |view: &ClusterView| match phase(view.timeline(timeline)?) {
        Phase::Working(step) => {
            progress.show(&step);
            None
        }
        end => Some(end),
    };
    let end = watch.until(look).await.unwrap_or(Phase::Gone);
    progress.end();
    end
}

fn phase(view: &TimelineView) -> Phase {
    let status = &view.status;
    let because = |what: &str| match status.reason.as_str() {
        "" => Phase::Working(Step::new(what)),
        reason => Phase::Working(Step::new(format!("{what}: {reason}"))),
    };
    let oldest = status.oldest_readable;
    match status.state {
        TimelineState::Unknown => because("waiting for wal-ingest"),
        TimelineState::Attaching if status.backup_total == ByteCount::ZERO => {
            because("the source begins a base backup with a checkpoint")
        }
        TimelineState::Attaching => Phase::Working(Step {
            what: "base backup".to_owned(),
            share: Some((status.backup_done, status.backup_total)),
        }),
        TimelineState::Disconnected => because("the source can't be reached"),
        TimelineState::Resuming => because("decoding local WAL"),
        TimelineState::Paused => because("paused"),
        TimelineState::Streaming if oldest > Lsn::ZERO && status.last_record >= oldest => {
            Phase::Ready(Attached {
                oldest,
                warnings: status.warnings.clone(),
            })
        }
        TimelineState::Streaming => because(&format!("reading WAL up to {oldest}")),
        TimelineState::Stopped => Phase::Stopped {
            reason: status.reason.clone(),
        },
        // A branch is another timeline than the one that is attached.
        TimelineState::Deleting | TimelineState::Deleted | TimelineState::Idle => Phase::Gone,
    }
}

fn report(name: &str, attached: &Attached, output: Output) -> Result<(), CliError> {
    if output.is_json() {
        return output.json(attached);
    }
    output.line(format!(
        "{name} is attached: its pages can be read at any LSN from {} on",
        attached.oldest
    ))?;
    for warning in &attached.warnings {
        output.line(format!("! {warning}"))?;
    }
    output.line(format!("next: pal rel list {name}"))?;
    output.line(format!(
        "      pal page get {name} postgres.pg_catalog.pg_database 0"
    ))
}

/// An attach that stopped is undone, so that it can be tried again under the same name.
async fn give_up(client: &mut Client, name: &str, reason: String) -> CliError {
    let hint = match delete_and_wait(client, name, false).await {
        Ok(()) => "nothing is left of it, here or at the source".to_owned(),
        Err(error) => format!(
            "undoing it has not succeeded ({}); `pal tenant delete {name}` tries again",
            error.in_full()
        ),
    };
    CliError::Failed {
        what: format!("{name} can't be attached: {reason}"),
        hint: Some(hint),
    }
}

fn goes_on(name: &str) -> String {
    format!(
        "the attach goes on: `pal status` shows how far it is, `pal tenant delete {name}` undoes it"
    )
}

#[cfg(test)]
mod tests {
    use palimpsest_api::broker::TimelineStatus;
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    fn view(status: TimelineStatus) -> TimelineView {
        TimelineView {
            timeline: TimelineRef {
                tenant: TenantId::from_bytes([1; 16]),
                timeline: TimelineId::from_bytes([2; 16]),
            },
            tenant_name: "demo".into(),
            timeline_name: "main".into(),
            status,
            writer: None,
            source: String::new(),
            slot: String::new(),
            branch: None,
            source_cluster: None,
        }
    }

    #[test]
    fn it_is_ready_only_when_the_end_of_the_backup_is_readable() {
        let mut status = TimelineStatus {
            state: TimelineState::Streaming,
            oldest_readable: Lsn::new(100),
            last_record: Lsn::new(99),
            ..TimelineStatus::default()
        };
        assert!(matches!(phase(&view(status.clone())), Phase::Working(_)));
        status.last_record = Lsn::new(100);
        assert!(matches!(phase(&view(status)), Phase::Ready(_)));
        let nothing_known = TimelineStatus {
            state: TimelineState::Streaming,
            ..TimelineStatus::default()
        };
        assert!(matches!(phase(&view(nothing_known)), Phase::Working(_)));
    }

    #[test]
    fn a_backup_shows_its_share_and_a_stop_its_reason() {
        let status = TimelineStatus {
            state: TimelineState::Attaching,
            backup_done: ByteCount::mib(1),
            backup_total: ByteCount::mib(4),
            ..TimelineStatus::default()
        };
        let Phase::Working(step) = phase(&view(status)) else {
            panic!("not working");
        };
        assert_eq!(step.share, Some((ByteCount::mib(1), ByteCount::mib(4))));
        let status = TimelineStatus {
            state: TimelineState::Stopped,
            reason: "no slot".into(),
            ..TimelineStatus::default()
        };
        let stopped = Phase::Stopped {
            reason: "no slot".into(),
        };
        assert_eq!(phase(&view(status)), stopped);
    }
}
