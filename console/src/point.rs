//! Which LSN of a timeline a person means.

use std::{
    io::{self, Write as _},
    path::Path,
    time::{Duration, SystemTime},
};

use palimpsest_api::{
    broker::{ClusterView, TimelineState, TimelineView},
    page::LsnAtTime,
};
use palimpsest_postgres::{ConnInfo, Connection};
use palimpsest_types::Lsn;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    client::{Client, full_name},
    compute::ComputePlace,
    error::CliError,
    moment::{Moment, system_time},
};

/// How long a server of this machine may take to say how far it is, and then page-serve to come there.
const PATIENCE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);

/// The LSN of a timeline at a moment, or the newest.
pub(crate) async fn point(
    client: &Client,
    view: &ClusterView,
    view_of: &TimelineView,
    at: Option<Moment>,
) -> Result<Lsn, CliError> {
    let timeline = view_of.timeline;
    match at {
        Some(Moment::Lsn(lsn)) => Ok(lsn),
        Some(Moment::Time(time)) => {
            let pages = client.pages(view).await?;
            let answer = pages.lsn_at_time(timeline, system_time(time)).await;
            let what = format!("asking which LSN of {} that time means", full_name(view_of));
            let answer = answer.map_err(CliError::remote(what))?;
            lsn_of(answer, system_time(time), view_of)
        }
        // The storage-broker hears of it a little later.
        None => {
            let pages = client.pages(view).await?;
            // What was committed a moment ago is meant, too, as far as it can be known.
            let committed = committed_here(client.data(), view_of).await;
            let begun = Instant::now();
            loop {
                let readable = pages.readable(timeline).await;
                let what = format!("asking how far {} is", full_name(view_of));
                let (_, newest) = readable.map_err(CliError::remote(what))?;
                // It may be within a record, or not be read at all.
                let is_all = committed.is_none_or(|committed| newest >= committed);
                if is_all {
                    return Ok(newest);
                }
                if begun.elapsed() > PATIENCE {
                    // With standard error closed there is nobody to tell.
                    let _ = writeln!(
                        io::stderr(),
                        "what {} has written last has not arrived after {PATIENCE:?}; what has goes to {newest}",
                        full_name(view_of)
                    );
                    return Ok(newest);
                }
                sleep(LOOK).await;
            }
        }
    }
}

/// How far the PostgreSQL has written that was started here for a timeline, if that answers. Of others only their owners
/// know the password.
async fn committed_here(data: &Path, view_of: &TimelineView) -> Option<Lsn> {
    if !ComputePlace::is_here(data, view_of.timeline) {
        return None;
    }
    let source: ConnInfo = view_of.source.parse().ok()?;
    let asked = async {
        let mut connection = Connection::connect(&source).await.ok()?;
        let identity = connection.identify_system().await.ok();
        connection.close().await;
        identity
    };
    let identity = timeout(PATIENCE, asked).await.ok()??;
    (view_of.source_cluster == Some(identity.system_id)).then_some(identity.xlogpos)
}

/// The LSN that a time means, if there is one.
fn lsn_of(answer: LsnAtTime, time: SystemTime, view_of: &TimelineView) -> Result<Lsn, CliError> {
    let failed = |what: String, hint: &str| CliError::Failed {
        what,
        hint: Some(hint.to_owned()),
    };
    let name = full_name(view_of);
    match answer {
        LsnAtTime::Exact(lsn) => Ok(lsn),
        LsnAtTime::Newest(_) if time > SystemTime::now() => Err(failed(
            format!("that time is in the future of {name}"),
            "leave out --at for the newest",
        )),
        // Nothing comes after it.
        LsnAtTime::Newest(lsn) if view_of.status.state == TimelineState::Idle => Ok(lsn),
        // As recovery_target_time: what ended before that time may still be on its way.
        LsnAtTime::Newest(_) => Err(failed(
            format!("no transaction of {name} that has arrived ended after that time"),
            "leave out --at for the newest; `pal status` shows how far it is",
        )),
        LsnAtTime::BeforeOldest => Err(failed(
            format!("that time is before what is kept of {name}"),
            "a later one, or an LSN, can be had",
        )),
    }
}
