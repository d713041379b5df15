//! Which LSN of a timeline a person means.

use std::time::SystemTime;

use palimpsest_api::{
    broker::{ClusterView, TimelineState, TimelineView},
    page::LsnAtTime,
};
use palimpsest_types::Lsn;

use crate::{
    client::{Client, full_name},
    error::CliError,
    moment::{Moment, system_time},
};

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
            let readable = pages.readable(timeline).await;
            let what = format!("asking how far {} is", full_name(view_of));
            Ok(readable.map_err(CliError::remote(what))?.1)
        }
    }
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
