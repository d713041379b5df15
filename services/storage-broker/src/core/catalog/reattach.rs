//! What somebody has asked for of a timeline whose source has lost WAL.

use palimpsest_api::{TimelineRef, broker::Reattach};
use palimpsest_types::Lsn;

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

    pub(super) fn ask_to_reattach(
        &mut self,
        timeline: TimelineRef,
        after: Lsn,
    ) -> Result<TimelineRef, CatalogError> {
        let tenant = self.tenant_mut(timeline)?;
        if let TenantState::Deleting { .. } = tenant.state {
            return Err(CatalogError::BeingDeleted(tenant.name.clone()));
        }
        if tenant.main() != timeline {
            return Err(CatalogError::NotTheSource(timeline));
        }
        let before = tenant.reattach.map_or(0, |asked| asked.request);
        tenant.reattach = Some(AskedReattach {
            timeline: timeline.timeline,
            after,
            request: before.saturating_add(1),
        });
        Ok(timeline)
    }
}
