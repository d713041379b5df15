//! Waiting until the services have come as far as a judge needs them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, TimelineState, TimelineView},
};
use tokio::sync::watch;

/// Nothing that judges wait for takes longer, even on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Between looks at what tells of no change by itself.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// Waits until a timeline is as `arrived` wants it.
///
/// # Errors
/// If the timeline stops, or it takes too long.
pub(crate) async fn wait_for(
    mut cluster: watch::Receiver<ClusterView>,
    timeline: TimelineRef,
    mut arrived: impl FnMut(&TimelineView) -> bool,
) -> Result<TimelineView> {
    let last = cluster.clone();
    let waiting = async {
        loop {
            let view = cluster.borrow_and_update().timeline(timeline).cloned();
            match view {
                Some(view) if arrived(&view) => return Ok(view),
                Some(view) if view.status.state == TimelineState::Stopped => {
                    bail!("the timeline stopped: {}", view.status.reason)
                }
                Some(_) | None => cluster.changed().await?,
            }
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, waiting).await;
    outcome.with_context(|| {
        let view = last.borrow();
        format!("still waiting for {:?}", view.timeline(timeline))
    })?
}

/// Whether a timeline streams, and has come to where its pages can be read.
pub(crate) fn is_readable(view: &TimelineView) -> bool {
    let status = &view.status;
    status.state == TimelineState::Streaming
        && status.oldest_readable.get() > 0
        && status.last_record >= status.oldest_readable
}
