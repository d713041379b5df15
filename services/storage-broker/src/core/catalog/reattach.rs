//! What somebody has asked for of a timeline whose source has lost WAL.

use palimpsest_api::{TimelineRef, broker::Reattach};
use palimpsest_types::{Lsn, RequestId};

use super::{Catalog, CatalogError};
use crate::core::tenant::{AskedReattach, TenantState};

impl Catalog {
    /// What was asked for of a timeline.
    pub fn reattach(&self, timeline: TimelineRef) -> Option<Reattach> {
        let tenant = self.tenant_of(timeline.tenant)?;
        let asked = tenant.reattach?;
        (asked.timeline == timeline.timeline).then_some(Reattach {
            after: asked.after,
            request: asked.request,
        })
    }

    /// The same, if it was asked for by this id.
    pub fn reattach_asked_by(&self, timeline: TimelineRef, id: RequestId) -> Option<Reattach> {
        let tenant = self.tenant_of(timeline.tenant)?;
        let same = tenant.reattach?.id == Some(id) && tenant.state == TenantState::Attached;
        self.reattach(timeline).filter(|_| same)
    }

    pub(super) fn ask_to_reattach(
        &mut self,
        timeline: TimelineRef,
        after: Lsn,
        id: Option<RequestId>,
    ) -> Result<TimelineRef, CatalogError> {
        let tenant = self.tenant_mut(timeline)?;
        if let TenantState::Deleting { .. } = tenant.state {
            return Err(CatalogError::BeingDeleted(tenant.name.clone()));
        }
        if tenant.main() != timeline {
            return Err(CatalogError::NotTheSource(timeline));
        }
        if id.is_some() && tenant.reattach.is_some_and(|asked| asked.id == id) {
            return Ok(timeline);
        }
        let before = tenant.reattach.map_or(0, |asked| asked.request);
        tenant.reattach = Some(AskedReattach {
            timeline: timeline.timeline,
            after,
            request: before.saturating_add(1),
            id,
        });
        Ok(timeline)
    }
}
