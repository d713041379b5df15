//! What becomes of a tenant whose source is read no more.
//!
//! As after a promotion, what was read ends, is called after where it was left, and a branch that begins there has its name. Nobody
//! writes that, until a PostgreSQL is started on it.

use palimpsest_api::{
    TimelineRef,
    broker::{MAIN, Promotion},
};
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
    /// If there is no such tenant, or somebody has renamed or deleted that.
    pub fn left(&self, name: &Name) -> Result<Option<&Branch>, CatalogError> {
        let tenant = self.named(name);
        let tenant = tenant.ok_or_else(|| CatalogError::Unknown(name.clone()))?;
        if tenant.has_source() {
            return Ok(None);
        }
        let mut branches = tenant.branches.iter();
        let stands_in = branches.find(|branch| branch.name.as_str() == MAIN);
        let none = || CatalogError::NotWritten(tenant.timeline());
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
        if let Some(done) = self.left(&name)? {
            return Ok(timeline(done.id));
        }
        let tenant = self.tenant_mut(left)?;
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
