//! `pal reattach`.

use clap::Args;
use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, Lost, TimelineState, TimelineView},
};
use palimpsest_types::{ByteCount, Lsn, RequestId, WriterEpoch};
use serde::Serialize;
use tokio::signal::ctrl_c;

use crate::{
    cli::Common,
    client::{Client, Watch, find, full_name},
    error::CliError,
    output::Output,
    progress::{Progress, Step},
};

/// Goes on from a new base backup.
#[derive(Debug, Args)]
pub struct ReattachArgs {
    /// TENANT, TENANT/TIMELINE or TIMELINE.
    pub name: String,
}

/// What was lost, and from where on it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Reattached {
    lost_after: Lsn,
    readable_from: Lsn,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Working(Step),
    Ready(Lost),
    Stopped { reason: String },
    Gone,
}

pub(crate) async fn run(
    common: &Common,
    arguments: ReattachArgs,
    output: Output,
) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    let timeline = find(&view, &arguments.name)?;
    let before = timeline.status.epoch;
    let (name, timeline) = (full_name(timeline), timeline.timeline);
    let id = RequestId::from_bytes(rand::random());
    let asked = client.broker().reattach(timeline, id).await;
    let after = asked
        .map_err(|error| client.refused(format!("going on from a base backup of {name}"), error))?;
    let mut watch = client.watch()?;
    // Both are cancel-safe; it goes on in wal-ingest either way.
    let end = tokio::select! {
        end = follow(&mut watch, timeline, (before, after)) => end,
        _ = ctrl_c() => return Err(CliError::Interrupted { what: goes_on(&name) }),
    };
    match end {
        Phase::Ready(Lost { after, up_to }) => report(&name, after, up_to, output),
        Phase::Stopped { reason } => Err(CliError::Failed {
            what: format!("{name} can't go on: {reason}"),
            hint: Some(format!(
                "nothing of what was there is lost; when that is mended, `pal reattach {name}` tries again"
            )),
        }),
        Phase::Working(_) | Phase::Gone => Err(CliError::Failed {
            what: format!("{name} was deleted meanwhile"),
            hint: None,
        }),
    }
}

fn report(name: &str, after: Lsn, up_to: Lsn, output: Output) -> Result<(), CliError> {
    if output.is_json() {
        return output.json(&Reattached {
            lost_after: after,
            readable_from: up_to,
        });
    }
    output.line(format!(
        "{name} goes on: its pages can be read from {up_to} on"
    ))?;
    output.line(format!(
        "what came before {after} can be read as before; what was between the two is lost"
    ))
}

/// Shows what happens until it ends in one way or another.
async fn follow(
    watch: &mut Watch,
    timeline: TimelineRef,
    (before, after): (WriterEpoch, Lsn),
) -> Phase {
    let mut progress = Progress::start();
    progress.show(&Step::new("waiting for wal-ingest"));
    let mut has_begun = false;
    let look = |view: &ClusterView| {
        let view = view.timeline(timeline)?;
        match phase(view, after) {
            Phase::Working(step) => {
                has_begun = true;
                progress.show(&step);
                None
            }
            // What was said before it was asked: with each try the timeline is taken over.
            Phase::Stopped { .. } if !has_begun && view.status.epoch == before => {
                let waiting = match view.writer {
                    Some(_) => "waiting for wal-ingest",
                    None => "there is no wal-ingest; waiting for one",
                };
                progress.show(&Step::new(waiting));
                None
            }
            end => Some(end),
        }
    };
    let end = watch.until(look).await.unwrap_or(Phase::Gone);
    progress.end();
    end
}

fn phase(view: &TimelineView, after: Lsn) -> Phase {
    let status = &view.status;
    let because = |what: &str| match status.reason.as_str() {
        "" => Phase::Working(Step::new(what)),
        reason => Phase::Working(Step::new(format!("{what}: {reason}"))),
    };
    let lost = status.lost.iter().rfind(|lost| lost.after >= after);
    match (status.state, lost) {
        (TimelineState::Stopped, _) => Phase::Stopped {
            reason: status.reason.clone(),
        },
        (TimelineState::Deleting | TimelineState::Deleted | TimelineState::Idle, _) => Phase::Gone,
        (TimelineState::Streaming, Some(lost)) if status.last_record >= lost.up_to => {
            Phase::Ready(*lost)
        }
        (TimelineState::Streaming, Some(lost)) => {
            because(&format!("reading WAL up to {}", lost.up_to))
        }
        (TimelineState::Attaching, _) if status.backup_total == ByteCount::ZERO => {
            because("the source begins a base backup with a checkpoint")
        }
        (TimelineState::Attaching, _) => Phase::Working(Step {
            what: "base backup".to_owned(),
            share: Some((status.backup_done, status.backup_total)),
        }),
        (TimelineState::Disconnected, _) => because("the source can't be reached"),
        (TimelineState::Paused, _) => because("paused"),
        (TimelineState::Unknown, _) => because("waiting for wal-ingest"),
        (TimelineState::Resuming | TimelineState::Streaming, _) => {
            because("storing what is here of the WAL before")
        }
    }
}

fn goes_on(name: &str) -> String {
    format!("it goes on: `pal status` shows how far {name} is")
}
