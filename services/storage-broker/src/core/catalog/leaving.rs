//! What becomes of a tenant whose source is read no more.
//!
//! As after a promotion, what was read ends, is called after where it was left, and a branch that begins there has its name. Nobody
//! writes that, until a PostgreSQL is started on it.

use palimpsest_api::{TimelineRef, broker::Promotion};
use palimpsest_types::SystemIdentifier;

use super::{Catalog, CatalogError};
use crate::core::{
    branch::Branch,
    tenant::{LeavingSource, Name, TenantState},
};

impl Catalog {
    /// What stands in for what a tenant's source was read to, if it is read no more.
    ///
    /// # Errors
    /// If there is no such tenant, or somebody has deleted that.
    pub fn stand_in(&self, name: &Name) -> Result<Option<&Branch>, CatalogError> {
        let tenant = self.named(name);
        let tenant = tenant.ok_or_else(|| CatalogError::Unknown(name.clone()))?;
        if tenant.has_source() {
            return Ok(None);
        }
        let stands_in = tenant.stands_in.and_then(|id| tenant.find_branch(id));
        let stands_in = stands_in.filter(|branch| !branch.deleting);
        let none = || CatalogError::NoSource(name.clone());
        stands_in.map(Some).ok_or_else(none)
    }

    pub(super) fn leave_source(
        &mut self,
        left: TimelineRef,
        cluster: SystemIdentifier,
        forget_slot: bool,
        new: &Branch,
    ) -> Result<TimelineRef, CatalogError> {
        let tenant = self.tenant_mut(left)?;
        if let TenantState::Deleting { .. } = tenant.state {
            return Err(CatalogError::BeingDeleted(tenant.name.clone()));
        }
        let timeline = |timeline| TimelineRef { timeline, ..left };
        let name = tenant.name.clone();
        if let Some(done) = self.stand_in(&name)? {
            return Ok(timeline(done.id));
        }
        let tenant = self.tenant_mut(left)?;
        let lost = |branch: &&Branch| {
            branch.parent == left.timeline && branch.lsn > new.lsn && !branch.deleting
        };
        let lost = tenant.branches.iter().filter(lost);
        let children: Vec<_> = lost.map(|branch| branch.name.clone()).collect();
        if !children.is_empty() {
            let what = format!("what the object store does not have of {name}");
            return Err(CatalogError::HasBranches { what, children });
        }
        if tenant.main() != left {
            return Err(CatalogError::NotTheSource(left));
        }
        tenant.expect_room_on(timeline(new.parent))?;
        let end = Promotion {
            at: new.lsn,
            end: new.lsn,
            // Of a source that nobody reads it says nothing.
            pg_timeline: 0,
        };
        let was = tenant.leave(left, end, cluster)?;
        tenant.leaving = Some(LeavingSource {
            timeline: left.timeline,
            forget_slot,
        });
        tenant.stands_in = Some(new.id);
        tenant.branches.push(Branch {
            name: was.name,
            is_protected: true,
            ..new.clone()
        });
        Ok(timeline(new.id))
    }

    /// Nothing of ours is left at the source, nor with who read it.
    pub(super) fn has_left(&mut self, left: TimelineRef) {
        if let Ok(tenant) = self.tenant_mut(left) {
            let is_it = |leaving: &mut LeavingSource| leaving.timeline == left.timeline;
            tenant.leaving.take_if(is_it);
        }
    }
}
