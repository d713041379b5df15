//! The tenants that exist, and how the list of them may change.

mod branches;
mod configuring;
mod leaving;
mod promotion;
mod reattach;
#[cfg(test)]
mod tests;

use palimpsest_api::{TimelineRef, broker::Promotion, tenant_settings::InvalidTenantSettingsError};
use palimpsest_types::{ErrorKind, Fault, Lsn, Reason, RequestId, SystemIdentifier, TenantId};
use serde::{Deserialize, Serialize};

use super::{
    branch::{Branch, BranchSource},
    tenant::{Name, NewTenant, Source, Tenant, TenantState},
};

pub use configuring::SettingsChange;

/// All tenants. The only durable state of the storage-broker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Differs in every catalog ever written, so that a writer recognises its own.
    pub(super) nonce: u128,
    tenants: Vec<Tenant>,
}

/// Names in an error.
const SHOWN: usize = 5;

/// A change of the catalog. Applying it twice is as good as once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A tenant is to exist, with these ids if it is new.
    Attach {
        /// The tenant.
        new: NewTenant,
        /// Ids that nothing has yet.
        ids: TimelineRef,
    },
    /// A tenant is to go.
    Delete {
        /// Its name.
        name: Name,
        /// Do not insist on dropping its slot.
        forget_slot: bool,
    },
    /// A tenant is to be attached to a cluster.
    Claim {
        /// Its timeline.
        timeline: TimelineRef,
        /// What no other tenant may have.
        cluster: SystemIdentifier,
    },
    /// Nothing is left of a tenant that was to go.
    Forget {
        /// Its timeline.
        timeline: TimelineRef,
    },
    /// A branch of a tenant is to exist. Its first manifest does already.
    Branch {
        /// The tenant.
        tenant: TenantId,
        /// The branch.
        new: Branch,
        /// Not later than this, in milliseconds since 1970: what it needs may be gone then.
        before_unix_ms: u64,
    },
    /// A server was promoted that lacks the end of a timeline: a branch that begins there goes on in its place.
    Follow {
        /// The timeline, which nobody writes any more.
        left: TimelineRef,
        /// Where it was left, and for what.
        promotion: Promotion,
        /// Whose history it is.
        cluster: SystemIdentifier,
        /// The branch; its name and who writes it are found here.
        new: Branch,
        /// Not later than this, in milliseconds since 1970: what it needs may be gone then.
        before_unix_ms: u64,
    },
    /// A tenant's source is to be read no more: a branch that begins where that ended stands in for it.
    LeaveSource {
        /// What it was read to.
        left: TimelineRef,
        /// Whose history that is.
        cluster: SystemIdentifier,
        /// Do not insist on dropping the slot.
        forget_slot: bool,
        /// The branch; its name is found here.
        new: Branch,
        /// Not later than this, in milliseconds since 1970: what it needs may be gone then.
        before_unix_ms: u64,
    },
    /// Nothing is left at a source that is read no more, nor with who read it.
    HasLeft {
        /// What it was read to.
        left: TimelineRef,
    },
    /// The slot at a source that is being left is not to be insisted on.
    ForgetLeftSlot {
        /// What it was read to.
        left: TimelineRef,
    },
    /// A branch is to be different.
    UpdateBranch {
        /// It.
        timeline: TimelineRef,
        /// Its name, if that is to change.
        name: Option<Name>,
        /// Whether it can't be deleted, if that is to change.
        is_protected: Option<bool>,
        /// When it goes by itself, if that is to change.
        expires_unix_ms: Option<Option<u64>>,
    },
    /// A branch is to be written by a PostgreSQL.
    SetBranchSource {
        /// The branch.
        timeline: TimelineRef,
        /// Who writes it.
        source: BranchSource,
        /// Who did, and does no more.
        replaces: Option<SystemIdentifier>,
    },
    /// Nothing is left of who wrote a branch that is to go.
    ForgetBranchSource {
        /// The branch.
        timeline: TimelineRef,
    },
    /// A timeline is to go on from a base backup of its tenant's source.
    Reattach {
        /// It.
        timeline: TimelineRef,
        /// Where it ends.
        after: Lsn,
        /// By this it is asked for once only.
        id: Option<RequestId>,
    },
    /// A tenant's settings are to be different.
    Configure {
        /// Its name.
        name: Name,
        /// What changes.
        change: SettingsChange,
    },
    /// A branch is to go if its time is over, and nothing keeps it.
    ExpireBranch {
        /// It.
        timeline: TimelineRef,
        /// What time it is, in milliseconds since 1970.
        now_unix_ms: u64,
    },
    /// A branch is to go.
    DropBranch {
        /// It.
        timeline: TimelineRef,
    },
    /// Nothing is left of a branch that was to go.
    ForgetBranch {
        /// It.
        timeline: TimelineRef,
    },
}

/// The catalog does not allow a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// No tenant has that name.
    #[error("there is no tenant {0}")]
    Unknown(Name),
    /// The name is taken.
    #[error(
        "tenant {0} exists already, with another source or slot; choose another name or delete it first"
    )]
    Differs(Name),
    /// The name is taken by a tenant that goes.
    #[error("tenant {0} is being deleted; wait until it is gone")]
    BeingDeleted(Name),
    /// No tenant has that timeline.
    #[error("there is no timeline {0}")]
    UnknownTimeline(TimelineRef),
    /// One cluster is one tenant.
    #[error("cluster {cluster} is attached already, as {holder}")]
    ClusterTaken {
        /// The cluster.
        cluster: SystemIdentifier,
        /// Who has it.
        holder: Name,
    },
    /// The name is taken by another timeline.
    #[error(
        "timeline {0} exists already and begins elsewhere; choose another name or delete it first"
    )]
    BranchDiffers(Name),
    /// One PostgreSQL at a time writes a branch.
    #[error("branch {branch} is written by another PostgreSQL, {source_of}; stop that one first")]
    Written {
        /// The branch.
        branch: Name,
        /// How that is reached, without its password.
        source_of: String,
    },
    /// What a branch was before it began is its parent's.
    #[error("branch {branch} begins at {from}; a PostgreSQL that writes it can't begin at {begin}")]
    BeforeBranch {
        /// The branch.
        branch: Name,
        /// Where it begins.
        from: Lsn,
        /// Where the other one's WAL begins.
        begin: Lsn,
    },
    /// Its source is read no more, and somebody has removed what stood in for that.
    #[error("tenant {0} has no source that is read")]
    NoSource(Name),
    /// What its source was read to is being removed where it was read.
    #[error("who read the source of tenant {0} has not left it yet; try again in a moment")]
    Leaving(Name),
    /// A timeline that was left has nothing there.
    #[error("timeline {timeline} ends at {end}, where it was left")]
    BehindEnd {
        /// The timeline.
        timeline: TimelineRef,
        /// Where it ends.
        end: Lsn,
    },
    /// Nobody writes the timeline, so nobody can be followed.
    #[error("timeline {0} is written by nobody")]
    NotWritten(TimelineRef),
    /// It is not what the tenant's source is read to.
    #[error(
        "timeline {0} is not what its tenant's source is read to; of a branch's own PostgreSQL, `pal start --discard` makes another"
    )]
    NotTheSource(TimelineRef),
    /// A branch goes.
    #[error("branch {0} is being deleted; wait until it is gone")]
    BranchGoes(Name),
    /// Other timelines need it.
    #[error("{} begin{} on {what}; delete {} first", listed(children), if children.len() == 1 { "s" } else { "" }, if children.len() == 1 { "it" } else { "them" })]
    HasBranches {
        /// What should go.
        what: String,
        /// What begins on it.
        children: Vec<Name>,
    },
    /// Somebody has said that it is to stay.
    #[error("branch {0} is protected; `pal branch protect --off` takes that back")]
    Protected(Name),
    /// The first timeline goes with its tenant, and so does what goes on with it.
    #[error("{0} is what the tenant's source is read to, and stays as long as the tenant does")]
    NoBranch(String),
    /// A read would go through too many timelines.
    #[error("branches on branches are {limit} deep at most; begin it on an older timeline")]
    TooDeep {
        /// How many there may be.
        limit: usize,
    },
    /// The catalog is written whole with every change.
    #[error("there are {limit} branches, which is the limit; delete some first")]
    TooManyBranches {
        /// How many there may be.
        limit: usize,
    },
    /// A setting can't be so.
    #[error(transparent)]
    Settings(#[from] InvalidTenantSettingsError),
    /// Two tenants can't read from one slot.
    #[error("tenant {owner} uses slot {slot} of that source already; name another slot")]
    SlotTaken {
        /// The slot.
        slot: String,
        /// Who uses it.
        owner: Name,
    },
}

/// Some names, and how many more there are.
fn listed(names: &[Name]) -> String {
    let shown: Vec<_> = names.iter().take(SHOWN).map(Name::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

impl CatalogError {
    /// What the caller may do, and what is so, for programs.
    pub fn fault(&self) -> Fault {
        let reason = match self {
            Self::Unknown(_) => Reason::UnknownTenant,
            Self::UnknownTimeline(_) => Reason::UnknownTimeline,
            Self::Differs(_) | Self::BranchDiffers(_) => Reason::NameTaken,
            Self::SlotTaken { .. } | Self::ClusterTaken { .. } => Reason::SourceTaken,
            Self::BeingDeleted(_) | Self::BranchGoes(_) => Reason::BeingDeleted,
            Self::HasBranches { .. } => Reason::Needed,
            Self::Protected(_) => Reason::Protected,
            Self::Written { .. } => Reason::InUse,
            Self::NoBranch(_) | Self::NotTheSource(_) | Self::NotWritten(_) | Self::NoSource(_) => {
                Reason::NotABranch
            }
            Self::Leaving(_) => Reason::InUse,
            Self::BehindEnd { .. } => Reason::NotArrived,
            Self::BeforeBranch { .. } => Reason::WrongEnd,
            Self::TooDeep { .. } | Self::TooManyBranches { .. } => Reason::LimitReached,
            Self::Settings(_) => Reason::Malformed,
        };
        Fault::new(self.kind(), reason)
    }

    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown(_) | Self::UnknownTimeline(_) => ErrorKind::NotFound,
            Self::Differs(_)
            | Self::BranchDiffers(_)
            | Self::SlotTaken { .. }
            | Self::ClusterTaken { .. } => ErrorKind::AlreadyExists,
            Self::BeingDeleted(_)
            | Self::BranchGoes(_)
            | Self::NotWritten(_)
            | Self::NoSource(_)
            | Self::Leaving(_)
            | Self::Written { .. }
            | Self::Protected(_)
            | Self::HasBranches { .. } => ErrorKind::Conflict,
            Self::NoBranch(_)
            | Self::Settings(_)
            | Self::NotTheSource(_)
            | Self::BeforeBranch { .. }
            | Self::BehindEnd { .. }
            | Self::TooDeep { .. }
            | Self::TooManyBranches { .. } => ErrorKind::Invalid,
        }
    }
}

impl Change {
    /// It is not to be made later than this, in milliseconds since 1970.
    pub fn before_unix_ms(&self) -> Option<u64> {
        match self {
            Self::Branch { before_unix_ms, .. }
            | Self::Follow { before_unix_ms, .. }
            | Self::LeaveSource { before_unix_ms, .. } => Some(*before_unix_ms),
            _ => None,
        }
    }
}

impl Catalog {
    /// The tenants, in the order in which they were attached.
    pub fn tenants(&self) -> &[Tenant] {
        &self.tenants
    }

    /// The tenant whose first timeline this is.
    pub fn tenant(&self, timeline: TimelineRef) -> Option<&Tenant> {
        self.tenants
            .iter()
            .find(|tenant| tenant.timeline() == timeline)
    }

    /// Makes a change; gives the timeline that it is about.
    ///
    /// # Errors
    /// If the catalog does not allow it; then nothing has changed.
    pub fn apply(&mut self, change: &Change) -> Result<TimelineRef, CatalogError> {
        match change {
            Change::Attach { new, ids } => self.attach(new, *ids),
            Change::Delete { name, forget_slot } => self.delete(name, *forget_slot),
            Change::Claim { timeline, cluster } => self.claim(*timeline, *cluster),
            Change::Forget { timeline } => {
                let gone = |tenant: &Tenant| {
                    let deleting = matches!(tenant.state, TenantState::Deleting { .. });
                    tenant.timeline() == *timeline && deleting
                };
                self.tenants.retain(|tenant| !gone(tenant));
                Ok(*timeline)
            }
            Change::Branch { tenant, new, .. } => self.branch(*tenant, new),
            Change::Follow {
                left,
                promotion,
                cluster,
                new,
                ..
            } => self.follow(*left, *promotion, *cluster, new),
            Change::LeaveSource {
                left,
                cluster,
                forget_slot,
                new,
                ..
            } => self.leave_source(*left, *cluster, *forget_slot, new),
            Change::ForgetLeftSlot { left } => {
                let leaving = &mut self.tenant_mut(*left)?.leaving;
                leaving.iter_mut().for_each(|it| it.forget_slot = true);
                Ok(*left)
            }
            Change::HasLeft { left } => {
                self.has_left(*left);
                Ok(*left)
            }
            Change::UpdateBranch {
                timeline,
                name,
                is_protected,
                expires_unix_ms,
            } => {
                let branch = self.renamed(*timeline, name.as_ref())?;
                branch.is_protected = is_protected.unwrap_or(branch.is_protected);
                branch.expires_unix_ms = expires_unix_ms.unwrap_or(branch.expires_unix_ms);
                Ok(*timeline)
            }
            Change::SetBranchSource {
                timeline,
                source,
                replaces,
            } => self.set_branch_source(*timeline, source, *replaces),
            Change::Reattach {
                timeline,
                after,
                id,
            } => self.ask_to_reattach(*timeline, *after, *id),
            Change::Configure { name, change } => self.configure(name, change),
            Change::ForgetBranchSource { timeline } => {
                self.forget_branch_source(*timeline);
                Ok(*timeline)
            }
            Change::ExpireBranch {
                timeline,
                now_unix_ms,
            } => {
                if self.expired(*now_unix_ms).contains(timeline) {
                    self.drop_branch(*timeline)?;
                }
                Ok(*timeline)
            }
            Change::DropBranch { timeline } => self.drop_branch(*timeline),
            Change::ForgetBranch { timeline } => {
                self.forget_branch(*timeline);
                Ok(*timeline)
            }
        }
    }

    fn attach(&mut self, new: &NewTenant, ids: TimelineRef) -> Result<TimelineRef, CatalogError> {
        if let Some(tenant) = self.named(&new.name) {
            let same_slot = new
                .slot
                .as_ref()
                .is_none_or(|slot| slot.as_str() == tenant.slot);
            return match tenant.state {
                TenantState::Deleting { .. } => Err(CatalogError::BeingDeleted(new.name.clone())),
                TenantState::Attached
                    if tenant.has_source() && tenant.source == new.source && same_slot =>
                {
                    Ok(tenant.main())
                }
                TenantState::Attached => Err(CatalogError::Differs(new.name.clone())),
            };
        }
        self.expect_free_slot(&new.name, &new.source, &new.slot())?;
        self.tenants.push(Tenant::attached(new.clone(), ids));
        Ok(ids)
    }

    /// No other tenant uses this slot of that source.
    fn expect_free_slot(
        &self,
        name: &Name,
        source: &Source,
        slot: &str,
    ) -> Result<(), CatalogError> {
        let mut others = self.tenants.iter().filter(|tenant| tenant.name != *name);
        let holds = |tenant: &&Tenant| {
            let is_read = tenant.has_source() || tenant.leaving.is_some();
            is_read && tenant.source == *source && tenant.slot == slot
        };
        match others.find(holds) {
            Some(owner) => Err(CatalogError::SlotTaken {
                slot: slot.to_owned(),
                owner: owner.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The last word: of two that are attached at the same time the catalog takes one. An attach that
    /// begins anew may find another cluster.
    fn claim(
        &mut self,
        timeline: TimelineRef,
        cluster: SystemIdentifier,
    ) -> Result<TimelineRef, CatalogError> {
        if let Some((holds, holder)) = self.writes(cluster) {
            if holds == timeline {
                return Ok(timeline);
            }
            return Err(CatalogError::ClusterTaken { cluster, holder });
        }
        let mut tenants = self.tenants.iter_mut();
        let tenant = tenants.find(|tenant| tenant.timeline() == timeline);
        let tenant = tenant.ok_or(CatalogError::UnknownTimeline(timeline))?;
        if let TenantState::Deleting { .. } = tenant.state {
            return Err(CatalogError::BeingDeleted(tenant.name.clone()));
        }
        tenant.cluster = Some(cluster);
        Ok(timeline)
    }

    /// A repeat may give up the slot, but not ask for its removal again.
    fn delete(&mut self, name: &Name, forget_slot: bool) -> Result<TimelineRef, CatalogError> {
        let tenant = self.named_mut(name)?;
        if tenant.leaving.is_some() {
            return Err(CatalogError::Leaving(name.clone()));
        }
        if tenant.branches.iter().any(|branch| branch.deleting) {
            let going = tenant.branches.iter().find(|branch| branch.deleting);
            let going = going.map_or_else(|| name.clone(), |branch| branch.name.clone());
            return Err(CatalogError::BranchGoes(going));
        }
        // What goes on with the first timeline's history goes with it.
        let others = tenant.branches.iter();
        let others = others.filter(|branch| !tenant.goes_on(branch) && branch.left.is_none());
        let children: Vec<_> = others.map(|branch| branch.name.clone()).collect();
        if !children.is_empty() {
            let what = format!("timelines of tenant {name}");
            return Err(CatalogError::HasBranches { what, children });
        }
        let mut kept = tenant.branches.iter().filter(|branch| branch.is_protected);
        if let Some(kept) = kept.next() {
            return Err(CatalogError::Protected(kept.name.clone()));
        }
        let forget_slot = match tenant.state {
            TenantState::Attached => forget_slot,
            TenantState::Deleting {
                forget_slot: before,
            } => before || forget_slot,
        };
        tenant.state = TenantState::Deleting { forget_slot };
        Ok(tenant.timeline())
    }

    /// The tenant of this name.
    pub fn named(&self, name: &Name) -> Option<&Tenant> {
        self.tenants.iter().find(|tenant| tenant.name == *name)
    }

    fn named_mut(&mut self, name: &Name) -> Result<&mut Tenant, CatalogError> {
        let tenant = self.tenants.iter_mut().find(|tenant| tenant.name == *name);
        tenant.ok_or_else(|| CatalogError::Unknown(name.clone()))
    }
}
