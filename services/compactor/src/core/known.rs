//! Which timelines there are, by what the storage-broker tells.

use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, TimelineState, TimelineView},
    tenant_settings::TenantSettings,
};
use palimpsest_types::{Lsn, TenantId};
use tokio::sync::watch;

use super::error::CompactError;

/// The timelines of the cluster. Of none at all until the storage-broker was heard.
#[derive(Debug, Clone)]
pub(super) struct Known(watch::Receiver<ClusterView>);

impl Known {
    pub(super) fn new(cluster: watch::Receiver<ClusterView>) -> Self {
        Self(cluster)
    }

    /// The timelines that stay and are written to, and up to where their layers reach.
    pub(super) fn timelines(&self) -> Vec<(TimelineRef, Lsn)> {
        let view = self.0.borrow();
        let written = |view: &&TimelineView| view.is_written();
        let staying = view.timelines.iter().filter(|view| !is_going(view));
        let staying = staying.filter(written);
        staying
            .map(|view| (view.timeline, view.status.remote_consistent))
            .collect()
    }

    /// What a tenant has set for itself.
    pub(super) fn settings(&self, tenant: TenantId) -> TenantSettings {
        self.0.borrow().settings(tenant)
    }

    /// Whether a timeline stays. Asked before anything is put into the store: what is put there after a
    /// deletion nobody would remove.
    ///
    /// # Errors
    /// If it is being deleted, or the storage-broker does not tell of it.
    pub(super) fn check(&self, timeline: TimelineRef) -> Result<(), CompactError> {
        match self.0.borrow().timeline(timeline) {
            None => Err(CompactError::NotKnown(timeline)),
            Some(view) if is_going(view) => Err(CompactError::Deleted),
            Some(_) => Ok(()),
        }
    }
}

/// Whether a timeline is on its way out.
fn is_going(view: &TimelineView) -> bool {
    matches!(
        view.status.state,
        TimelineState::Deleting | TimelineState::Deleted
    )
}
