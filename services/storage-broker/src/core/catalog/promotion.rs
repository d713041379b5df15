//! What becomes of a timeline when a server is promoted that lacks the end of it.
//!
//! The source's history goes on from before that end, so it is another timeline's, which begins there. That has the
//! name from then on, because it is what people mean by it. What was left stays, called after where it was left.

use palimpsest_api::{TimelineRef, broker::Promotion};
use palimpsest_types::{Lsn, SystemIdentifier};

use super::{Catalog, CatalogError};
use crate::core::{
    branch::{Branch, BranchSource},
    tenant::{Name, Tenant, TenantState},
};

impl Catalog {
    /// What a timeline is called.
    ///
    /// # Errors
    /// If there is none.
    pub fn name_of(&self, timeline: TimelineRef) -> Result<Name, CatalogError> {
        let tenant = self.tenant_of(timeline.tenant);
        let unknown = || CatalogError::UnknownTimeline(timeline);
        let tenant = tenant.ok_or_else(unknown)?;
        match tenant.find_branch(timeline.timeline) {
            Some(branch) => Ok(branch.name.clone()),
            None if tenant.timeline() == timeline => tenant.first_name(),
            None => Err(unknown()),
        }
    }

    /// The branch that goes on in place of a timeline, if that was left already.
    pub fn successor(&self, left: TimelineRef, promotion: Promotion) -> Option<&Branch> {
        let tenant = self.tenant_of(left.tenant)?;
        let is_left = match tenant.find_branch(left.timeline) {
            Some(branch) => branch.left.is_some(),
            None => tenant.left.is_some(),
        };
        let goes_on = |branch: &&Branch| {
            let source = branch.source.as_ref();
            let begins = source.map(|source| (source.begin, source.pg_timeline));
            begins == Some((promotion.at, promotion.pg_timeline))
        };
        tenant.branches.iter().filter(|_| is_left).find(goes_on)
    }

    pub(super) fn follow(
        &mut self,
        left: TimelineRef,
        promotion: Promotion,
        cluster: SystemIdentifier,
        new: &Branch,
    ) -> Result<TimelineRef, CatalogError> {
        let timeline = |timeline| TimelineRef { timeline, ..left };
        if let Some(branch) = self.successor(left, promotion) {
            return Ok(timeline(branch.id));
        }
        let tenant = self.tenant_mut(left)?;
        if let TenantState::Deleting { .. } = tenant.state {
            return Err(CatalogError::BeingDeleted(tenant.name.clone()));
        }
        tenant.expect_room_on(timeline(new.parent))?;
        let was = tenant.leave(left, promotion, cluster)?;
        tenant.branches.push(Branch {
            name: was.name,
            source: Some(was.source),
            is_protected: was.is_protected,
            expires_unix_ms: was.expires_unix_ms,
            ..new.clone()
        });
        Ok(timeline(new.id))
    }
}

impl Tenant {
    /// The name of its first timeline, as a branch would have it.
    fn first_name(&self) -> Result<Name, CatalogError> {
        let name = self.timeline_name.clone();
        Name::try_from(name.clone()).map_err(|_| CatalogError::NoBranch(name))
    }

    /// Nobody writes a timeline any more; what its successor has of it.
    pub(super) fn leave(
        &mut self,
        left: TimelineRef,
        promotion: Promotion,
        cluster: SystemIdentifier,
    ) -> Result<Was, CatalogError> {
        let Promotion {
            at,
            pg_timeline,
            end,
        } = promotion;
        let begins = |source: BranchSource| BranchSource {
            pg_timeline,
            begin: at,
            ..source
        };
        let not_written = || CatalogError::NotWritten(left);
        if left != self.timeline() {
            let name = self.branch_mut(left)?.name.clone();
            let kept = self.free_name(&name, at);
            let branch = self.branch_mut(left)?;
            if branch.deleting {
                return Err(CatalogError::BranchGoes(name));
            }
            // Another may be about to write it.
            let is_of = |source: &mut BranchSource| source.cluster == cluster;
            let source = branch.source.take_if(is_of).ok_or_else(not_written)?;
            branch.left = Some(end);
            branch.name = kept;
            // What is left stays for as long as its successor does.
            return Ok(Was {
                name,
                source: begins(source),
                is_protected: std::mem::take(&mut branch.is_protected),
                expires_unix_ms: branch.expires_unix_ms.take(),
            });
        }
        if self.left.is_some() {
            return Err(not_written());
        }
        let name = self.first_name()?;
        self.timeline_name = self.free_name(&name, at).into();
        self.left = Some(end);
        // One that was attached before clusters were claimed has none.
        self.cluster = Some(cluster);
        let source = begins(BranchSource {
            conninfo: self.source.clone(),
            slot: self.slot.clone(),
            cluster,
            pg_timeline,
            begin: at,
        });
        Ok(Was {
            name,
            source,
            is_protected: false,
            expires_unix_ms: None,
        })
    }

    /// A name for what is left at an LSN that no other timeline has.
    fn free_name(&self, name: &Name, at: Lsn) -> Name {
        let mut free = Name::left_at(name.as_str(), at);
        let is_taken = |name: &Name| {
            let mut branches = self.branches.iter();
            self.timeline_name == name.as_str() || branches.any(|branch| branch.name == *name)
        };
        while is_taken(&free) {
            free = Name::left_at(free.as_str(), at);
        }
        free
    }
}

/// What a timeline that was left had.
pub(super) struct Was {
    pub(super) name: Name,
    /// Who writes its successor.
    source: BranchSource,
    is_protected: bool,
    expires_unix_ms: Option<u64>,
}
