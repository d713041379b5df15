//! Having a timeline go on from a base backup, because WAL was lost at its source.

use palimpsest_api::{
    TimelineRef,
    broker::{Reattach, TimelineState},
};
use palimpsest_manifest::ManifestError;
use palimpsest_types::{ErrorKind, Fault, Reason, RequestId};

use super::{broker::Broker, catalog::Change, catalog_writer::ChangeError};

/// A timeline is not to go on from a base backup.
#[derive(Debug, thiserror::Error)]
pub enum ReattachError {
    /// The catalog does not allow it, or could not be changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// There is no such timeline.
    #[error("there is no timeline {0}")]
    Unknown(TimelineRef),
    /// Nothing was lost.
    #[error("{name} has not stopped (it is {}), so nothing says that its WAL is lost; what is not lost is not to be given up", .state.name())]
    GoesOn {
        /// What it is called.
        name: String,
        /// What happens to it.
        state: TimelineState,
    },
    /// There is nothing to go on from.
    #[error("the first base backup of {0} is not complete; delete the tenant and attach again")]
    NotAttached(String),
    /// Its manifest could not be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl Broker {
    /// Has a timeline that has stopped go on from a base backup of its source: durably, when this returns. Asked again, it
    /// is tried anew, unless it was by the same id.
    ///
    /// # Errors
    /// If it has not stopped, is not what the tenant's source is read to, or the catalog can't be changed.
    pub async fn reattach(
        &self,
        timeline: TimelineRef,
        id: Option<RequestId>,
    ) -> Result<Reattach, ReattachError> {
        if let Some(asked) = id.and_then(|id| self.catalog().reattach_asked_by(timeline, id)) {
            return Ok(asked);
        }
        let (name, state) = {
            let view = self.watch();
            let view = view.borrow();
            let view = view.timeline(timeline);
            let view = view.ok_or(ReattachError::Unknown(timeline))?;
            let name = format!("{}/{}", view.tenant_name, view.timeline_name);
            (name, view.status.state)
        };
        if state != TimelineState::Stopped {
            return Err(ReattachError::GoesOn { name, state });
        }
        let newest = self.manifests(timeline).newest().await?;
        let newest = newest.ok_or(ReattachError::NotAttached(name))?;
        let after = newest.state.lsn;
        let change = Change::Reattach {
            timeline,
            after,
            id,
        };
        self.change(change).await?;
        let catalog = self.catalog();
        let asked = catalog.reattach(timeline);
        asked.ok_or(ReattachError::Unknown(timeline))
    }
}

impl ReattachError {
    /// What the caller may do, and what is so, for programs.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Change(error) => error.fault(),
            Self::Unknown(_) => Fault::new(ErrorKind::NotFound, Reason::UnknownTimeline),
            Self::GoesOn { .. } => Fault::new(ErrorKind::Conflict, Reason::NotStopped),
            Self::NotAttached(_) => Fault::new(ErrorKind::Conflict, Reason::NotOpen),
            Self::Manifest(error) => error.kind().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        catalog::CatalogError,
        fixture::{Site, lsn},
    };

    #[tokio::test]
    async fn only_a_timeline_that_has_stopped_is_to_go_on_from_a_base_backup() {
        let site = Site::new().await;
        let refused = site.broker.reattach(site.main, None).await.unwrap_err();
        assert!(
            matches!(refused, ReattachError::GoesOn { .. }),
            "{refused:?}"
        );
        site.tell(site.main, TimelineState::Stopped).await;
        let id = Some(RequestId::from_bytes([7; 16]));
        let asked = site.broker.reattach(site.main, id).await.unwrap();
        let end = site.manifest(site.main).await.unwrap().lsn;
        assert_eq!(
            asked,
            Reattach {
                after: end,
                request: 1
            }
        );
        let repeated = site.broker.reattach(site.main, id).await.unwrap();
        assert_eq!(repeated, asked, "its answer was lost");
        let again = site.broker.reattach(site.main, None).await.unwrap();
        assert_eq!(again.request, 2, "tried anew");
        let again = site.broker.reattach(site.main, None).await.unwrap();
        assert_eq!(again.request, 3, "without an id each time");
        site.tell(site.main, TimelineState::Streaming).await;
        let id = Some(RequestId::from_bytes([8; 16]));
        assert!(site.broker.reattach(site.main, id).await.is_err());
    }

    #[tokio::test]
    async fn a_branch_of_a_computes_has_its_own_ways() {
        let site = Site::new().await;
        let branch = site.branch(site.main, "a", Some(165)).await.unwrap();
        let mut catalog = site.broker.newest_catalog().await.unwrap();
        let change = Change::Reattach {
            timeline: branch.timeline,
            after: lsn(160),
            id: None,
        };
        let refused = catalog.apply(&change).unwrap_err();
        assert_eq!(refused, CatalogError::NotTheSource(branch.timeline));
    }
}
