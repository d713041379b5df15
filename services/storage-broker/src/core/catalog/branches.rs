//! How the branches of a tenant may change.

use std::collections::HashSet;

use palimpsest_api::TimelineRef;
use palimpsest_types::{Lsn, SystemIdentifier, TenantId, TimelineId};

use super::{Catalog, CatalogError};
use crate::core::{
    branch::{Branch, BranchSource},
    tenant::{Name, Tenant, TenantState},
};

/// Branches on branches that a read goes through, at most.
const MAX_DEPTH: usize = 256;
/// Branches of all tenants: everybody is told of all of them in one message.
const MAX_BRANCHES: usize = 16_384;

impl Catalog {
    /// A tenant by its id.
    pub fn tenant_of(&self, id: TenantId) -> Option<&Tenant> {
        self.tenants.iter().find(|tenant| tenant.id == id)
    }

    /// Whether there is such a timeline, be it on its way out.
    pub fn has(&self, timeline: TimelineRef) -> bool {
        let tenant = self.tenant_of(timeline.tenant);
        tenant.is_some_and(|tenant| tenant.has(timeline.timeline))
    }

    /// What a branch that is asked for would be by the catalog: one that is there already, or none.
    ///
    /// # Errors
    /// If the name is taken by another, or the parent is not there to stay.
    pub fn branch_like(
        &self,
        parent: TimelineRef,
        name: &Name,
        lsn: Option<Lsn>,
    ) -> Result<Option<Branch>, CatalogError> {
        let tenant = self.tenant_of(parent.tenant);
        let tenant = tenant.ok_or(CatalogError::UnknownTimeline(parent))?;
        if let TenantState::Deleting { .. } = tenant.state {
            return Err(CatalogError::BeingDeleted(tenant.name.clone()));
        }
        if tenant.timeline_name == name.as_str() {
            return Err(CatalogError::BranchDiffers(name.clone()));
        }
        let mut branches = tenant.branches.iter();
        match branches.find(|branch| branch.name == *name) {
            Some(branch) if branch.deleting => Err(CatalogError::BranchGoes(name.clone())),
            Some(branch) if tenant.is_at(branch, parent.timeline, lsn) => Ok(Some(branch.clone())),
            Some(_) => Err(CatalogError::BranchDiffers(name.clone())),
            None => {
                let all = self.tenants.iter().map(|tenant| tenant.branches.len());
                if all.sum::<usize>() >= MAX_BRANCHES {
                    let limit = MAX_BRANCHES;
                    return Err(CatalogError::TooManyBranches { limit });
                }
                tenant.expect_room_on(parent)?;
                Ok(None)
            }
        }
    }

    pub(super) fn branch(
        &mut self,
        tenant: TenantId,
        new: &Branch,
    ) -> Result<TimelineRef, CatalogError> {
        let timeline = |timeline| TimelineRef { tenant, timeline };
        let like = self.branch_like(timeline(new.parent), &new.name, Some(new.lsn))?;
        if let Some(branch) = like {
            return Ok(timeline(branch.id));
        }
        let parent = timeline(new.parent);
        let tenant = self.tenant_mut(parent)?;
        let end = match tenant.find_branch(new.parent) {
            Some(branch) => branch.left,
            None => tenant.left,
        };
        // It was left while this branch was being made.
        if let Some(end) = end.filter(|end| new.lsn > *end) {
            let timeline = parent;
            return Err(CatalogError::BehindEnd { timeline, end });
        }
        tenant.branches.push(new.clone());
        Ok(timeline(new.id))
    }

    /// A branch that stays, under another name if one is given.
    pub(super) fn renamed(
        &mut self,
        timeline: TimelineRef,
        name: Option<&Name>,
    ) -> Result<&mut Branch, CatalogError> {
        let tenant = self.tenant_mut(timeline)?;
        let is_taken = |name: &Name| {
            let mut others = tenant.branches.iter();
            let taken = others.any(|other| other.name == *name && other.id != timeline.timeline);
            taken || tenant.timeline_name == name.as_str()
        };
        if let Some(name) = name.filter(|name| is_taken(name)) {
            return Err(CatalogError::BranchDiffers(name.clone()));
        }
        let goes_on = tenant.find_branch(timeline.timeline);
        let goes_on = goes_on.is_some_and(|branch| tenant.goes_on(branch));
        let branch = tenant.branch_mut(timeline)?;
        if branch.deleting {
            return Err(CatalogError::BranchGoes(branch.name.clone()));
        }
        if goes_on && name.is_some() {
            return Err(CatalogError::NoBranch(branch.name.to_string()));
        }
        if let Some(name) = name {
            branch.name = name.clone();
        }
        Ok(branch)
    }

    /// Whether a branch is written by exactly this.
    pub fn is_written_by(&self, timeline: TimelineRef, source: &BranchSource) -> bool {
        let tenant = self.tenant_of(timeline.tenant);
        let branch = tenant.and_then(|tenant| tenant.find_branch(timeline.timeline));
        branch.is_some_and(|branch| branch.source.as_ref() == Some(source))
    }

    /// One PostgreSQL writes a branch at a time; another takes its place only by name. No cluster writes two
    /// timelines.
    pub(super) fn set_branch_source(
        &mut self,
        timeline: TimelineRef,
        source: &BranchSource,
        replaces: Option<SystemIdentifier>,
    ) -> Result<TimelineRef, CatalogError> {
        let cluster = source.cluster;
        if let Some(holder) = self.writes(cluster).filter(|(of, _)| *of != timeline) {
            let holder = holder.1;
            return Err(CatalogError::ClusterTaken { cluster, holder });
        }
        let tenant = self.tenant_of(timeline.tenant);
        let branches = tenant.map_or(&[][..], |tenant| &tenant.branches);
        let behind = |other: &&Branch| {
            other.parent == timeline.timeline && other.lsn > source.begin && !other.deleting
        };
        let behind: Vec<_> = branches.iter().filter(behind).collect();
        let children: Vec<_> = behind.iter().map(|branch| branch.name.clone()).collect();
        let main = tenant.filter(|tenant| tenant.main() == timeline);
        if main.is_some_and(|tenant| tenant.cluster != Some(cluster)) {
            return Err(CatalogError::NoBranch(self.name_of(timeline)?.to_string()));
        }
        let branch = self.renamed(timeline, None)?;
        let is_new = branch.source.as_ref() != Some(source);
        if is_new && !children.is_empty() {
            let what = format!("what branch {} had behind {}", branch.name, source.begin);
            return Err(CatalogError::HasBranches { what, children });
        }
        if source.begin < branch.lsn {
            return Err(CatalogError::BeforeBranch {
                branch: branch.name.clone(),
                from: branch.lsn,
                begin: source.begin,
            });
        }
        match &branch.source {
            Some(other) if other.cluster != cluster && replaces != Some(other.cluster) => {
                Err(CatalogError::Written {
                    branch: branch.name.clone(),
                    source_of: other.conninfo.redacted(),
                })
            }
            _ => {
                branch.source = Some(source.clone());
                branch.left = None;
                Ok(timeline)
            }
        }
    }

    /// The timeline that a cluster writes, and its name.
    pub(super) fn writes(&self, cluster: SystemIdentifier) -> Option<(TimelineRef, Name)> {
        self.tenants.iter().find_map(|tenant| {
            if tenant.cluster == Some(cluster) && tenant.left.is_none() {
                return Some((tenant.timeline(), tenant.name.clone()));
            }
            let writes = |branch: &&Branch| {
                let source = branch.source.as_ref();
                source.is_some_and(|source| source.cluster == cluster)
            };
            let branch = tenant.branches.iter().find(writes)?;
            let timeline = TimelineRef {
                tenant: tenant.id,
                timeline: branch.id,
            };
            Some((timeline, branch.name.clone()))
        })
    }

    pub(super) fn forget_branch_source(&mut self, timeline: TimelineRef) {
        let mut tenants = self.tenants.iter_mut();
        let tenant = tenants.find(|tenant| tenant.id == timeline.tenant);
        let mut branches = tenant.into_iter().flat_map(|tenant| &mut tenant.branches);
        let goes = |branch: &&mut Branch| branch.id == timeline.timeline && branch.deleting;
        if let Some(branch) = branches.find(goes) {
            branch.source = None;
        }
    }

    pub(super) fn drop_branch(
        &mut self,
        timeline: TimelineRef,
    ) -> Result<TimelineRef, CatalogError> {
        let tenant = self.tenant_mut(timeline)?;
        let on_it = tenant.branches.iter();
        let on_it = on_it.filter(|branch| branch.parent == timeline.timeline);
        let children: Vec<_> = on_it.map(|branch| branch.name.clone()).collect();
        let stays = tenant.find_branch(timeline.timeline);
        if let Some(branch) = stays.filter(|branch| tenant.goes_on(branch)) {
            return Err(CatalogError::NoBranch(branch.name.to_string()));
        }
        let branch = tenant.branch_mut(timeline)?;
        if branch.is_protected {
            return Err(CatalogError::Protected(branch.name.clone()));
        }
        if !children.is_empty() {
            let what = format!("branch {}", branch.name);
            return Err(CatalogError::HasBranches { what, children });
        }
        branch.deleting = true;
        Ok(timeline)
    }

    pub(super) fn tenant_mut(
        &mut self,
        timeline: TimelineRef,
    ) -> Result<&mut Tenant, CatalogError> {
        let mut tenants = self.tenants.iter_mut();
        let tenant = tenants.find(|tenant| tenant.id == timeline.tenant);
        tenant.ok_or(CatalogError::UnknownTimeline(timeline))
    }

    /// Branches whose time is over, but for those that are protected or that others begin on.
    pub fn expired(&self, now_unix_ms: u64) -> HashSet<TimelineRef> {
        let mut expired = HashSet::new();
        for tenant in &self.tenants {
            let needed: HashSet<_> = tenant.branches.iter().map(|branch| branch.parent).collect();
            let over = tenant.branches.iter().filter(|branch| {
                let is_over = branch.expires_unix_ms.is_some_and(|at| at <= now_unix_ms);
                let is_kept = branch.is_protected || tenant.goes_on(branch);
                is_over && !branch.deleting && !is_kept && !needed.contains(&branch.id)
            });
            expired.extend(over.map(|branch| TimelineRef {
                tenant: tenant.id,
                timeline: branch.id,
            }));
        }
        expired
    }

    pub(super) fn forget_branch(&mut self, timeline: TimelineRef) {
        let mut tenants = self.tenants.iter_mut();
        if let Some(tenant) = tenants.find(|tenant| tenant.id == timeline.tenant) {
            let gone = |branch: &Branch| branch.id == timeline.timeline && branch.deleting;
            tenant.branches.retain(|branch| !gone(branch));
        }
    }
}

impl Tenant {
    fn has(&self, timeline: TimelineId) -> bool {
        self.timeline == timeline || self.find_branch(timeline).is_some()
    }

    pub(super) fn branch_mut(
        &mut self,
        timeline: TimelineRef,
    ) -> Result<&mut Branch, CatalogError> {
        if self.timeline == timeline.timeline {
            return Err(CatalogError::NoBranch(self.timeline_name.clone()));
        }
        let mut branches = self.branches.iter_mut();
        let branch = branches.find(|branch| branch.id == timeline.timeline);
        branch.ok_or(CatalogError::UnknownTimeline(timeline))
    }

    /// The branch of an id.
    pub fn find_branch(&self, timeline: TimelineId) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.id == timeline)
    }

    /// Whether a branch begins at this LSN of a timeline, or if none is given on it.
    fn is_at(&self, branch: &Branch, timeline: TimelineId, lsn: Option<Lsn>) -> bool {
        let mut on = timeline;
        // Before its own beginning its history is that of the one that it begins on.
        while let (Some(lsn), Some(own)) = (lsn, self.find_branch(on))
            && lsn < own.lsn
        {
            on = own.parent;
        }
        branch.parent == on && lsn.is_none_or(|lsn| lsn == branch.lsn)
    }

    /// Another branch may begin on a timeline.
    pub(super) fn expect_room_on(&self, parent: TimelineRef) -> Result<(), CatalogError> {
        let (mut at, mut depth) = (parent.timeline, 1);
        while at != self.timeline {
            let branch = self.find_branch(at);
            let branch = branch.ok_or(CatalogError::UnknownTimeline(parent))?;
            if branch.deleting {
                return Err(CatalogError::BranchGoes(branch.name.clone()));
            }
            if depth == MAX_DEPTH {
                return Err(CatalogError::TooDeep { limit: MAX_DEPTH });
            }
            (at, depth) = (branch.parent, depth + 1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::ErrorKind;

    use super::*;
    use crate::core::{Change, NewTenant};

    fn id(number: u8) -> TimelineId {
        TimelineId::from_bytes([number; 16])
    }

    fn timeline(number: u8) -> TimelineRef {
        TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: id(number),
        }
    }

    /// With one tenant, whose first timeline is number 1.
    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        let new = NewTenant::parse("shop", "host=h user=u", None).unwrap();
        let ids = timeline(1);
        catalog.apply(&Change::Attach { new, ids }).unwrap();
        catalog
    }

    fn branch(name: &str, number: u8, parent: u8, lsn: u64) -> Change {
        let new = Branch {
            id: id(number),
            name: name.parse().unwrap(),
            parent: id(parent),
            lsn: Lsn::new(lsn),
            created_unix_ms: 5,
            expires_unix_ms: None,
            is_protected: false,
            deleting: false,
            left: None,
            source: None,
        };
        let tenant = timeline(1).tenant;
        listing(tenant, new)
    }

    fn listing(tenant: TenantId, new: Branch) -> Change {
        let before_unix_ms = u64::MAX;
        Change::Branch {
            tenant,
            new,
            before_unix_ms,
        }
    }

    fn refused(catalog: &mut Catalog, change: &Change) -> (ErrorKind, String) {
        let before = catalog.clone();
        let error = catalog.apply(change).unwrap_err();
        assert_eq!(*catalog, before);
        (error.kind(), error.to_string())
    }

    #[test]
    fn a_branch_is_made_once() {
        let mut catalog = catalog();
        let change = branch("a", 2, 1, 100);
        assert_eq!(catalog.apply(&change), Ok(timeline(2)));
        let again = branch("a", 3, 1, 100);
        assert_eq!(catalog.apply(&again), Ok(timeline(2)));
        for other in [
            branch("a", 3, 1, 108),
            branch("a", 3, 2, 100),
            branch("main", 3, 1, 100),
        ] {
            let (kind, text) = refused(&mut catalog, &other);
            assert_eq!(kind, ErrorKind::AlreadyExists, "{text}");
        }
        let (kind, _) = refused(&mut catalog, &branch("b", 3, 9, 100));
        assert_eq!(kind, ErrorKind::NotFound);
    }

    #[test]
    fn what_others_begin_on_stays() {
        let mut catalog = catalog();
        catalog.apply(&branch("a", 2, 1, 100)).unwrap();
        catalog.apply(&branch("b", 3, 2, 100)).unwrap();
        let drop = |number| Change::DropBranch {
            timeline: timeline(number),
        };
        let (kind, text) = refused(&mut catalog, &drop(2));
        assert_eq!(kind, ErrorKind::Conflict);
        assert_eq!(text, "b begins on branch a; delete it first");
        let name = "shop".parse().unwrap();
        let tenant = Change::Delete {
            name,
            forget_slot: true,
        };
        let (_, text) = refused(&mut catalog, &tenant);
        assert_eq!(
            text,
            "a, b begin on timelines of tenant shop; delete them first"
        );
        let (_, text) = refused(&mut catalog, &drop(1));
        assert!(text.contains("as long as the tenant"), "{text}");

        catalog.apply(&drop(3)).unwrap();
        // Until nothing is left of it, and nothing new begins on it.
        refused(&mut catalog, &drop(2));
        let (kind, _) = refused(&mut catalog, &branch("c", 4, 3, 100));
        assert_eq!(kind, ErrorKind::Conflict);
        let (kind, _) = refused(&mut catalog, &branch("b", 4, 2, 100));
        assert_eq!(kind, ErrorKind::Conflict);
        let forget = |number| Change::ForgetBranch {
            timeline: timeline(number),
        };
        let before = catalog.clone();
        catalog.apply(&forget(2)).unwrap();
        assert_eq!(catalog, before, "it is not to go");
        catalog.apply(&forget(3)).unwrap();
        catalog.apply(&drop(2)).unwrap();
        catalog.apply(&forget(2)).unwrap();
        assert!(!catalog.has(timeline(2)) && catalog.has(timeline(1)));
        catalog.apply(&tenant).unwrap();
    }

    #[test]
    fn a_branch_can_be_renamed_protected_and_given_an_end() {
        let mut catalog = catalog();
        catalog.apply(&branch("a", 2, 1, 100)).unwrap();
        catalog.apply(&branch("b", 3, 1, 100)).unwrap();
        let update = |name: Option<&str>, is_protected, expires_unix_ms| Change::UpdateBranch {
            timeline: timeline(2),
            name: name.map(|name| name.parse().unwrap()),
            is_protected,
            expires_unix_ms,
        };
        for taken in ["b", "main"] {
            let (kind, text) = refused(&mut catalog, &update(Some(taken), Some(true), None));
            assert_eq!(kind, ErrorKind::AlreadyExists, "{text}");
        }
        catalog
            .apply(&update(Some("c"), Some(true), Some(Some(9))))
            .unwrap();
        catalog.apply(&update(Some("c"), None, None)).unwrap();
        let tenant = catalog.tenant(timeline(1)).unwrap();
        let changed = tenant.find_branch(id(2)).unwrap();
        assert_eq!(changed.name.as_str(), "c");
        assert_eq!(
            (changed.is_protected, changed.expires_unix_ms),
            (true, Some(9))
        );
        let drop = Change::DropBranch {
            timeline: timeline(2),
        };
        let (_, text) = refused(&mut catalog, &drop);
        assert!(text.contains("protected"), "{text}");
        catalog
            .apply(&update(None, Some(false), Some(None)))
            .unwrap();
        catalog.apply(&drop).unwrap();
        let (kind, _) = refused(&mut catalog, &update(None, Some(true), None));
        assert_eq!(kind, ErrorKind::Conflict);
    }

    fn written_by(cluster: u64, begin: u64, replaces: Option<u64>) -> Change {
        Change::SetBranchSource {
            timeline: timeline(2),
            source: BranchSource {
                conninfo: "host=/s user=u password=hunter2".parse().unwrap(),
                slot: "palimpsest".to_owned(),
                cluster: SystemIdentifier::new(cluster),
                pg_timeline: 9,
                begin: Lsn::new(begin),
            },
            replaces: replaces.map(SystemIdentifier::new),
        }
    }

    #[test]
    fn one_cluster_writes_a_branch_until_another_takes_its_place() {
        let mut catalog = catalog();
        catalog.apply(&branch("a", 2, 1, 100)).unwrap();
        catalog.apply(&branch("b", 3, 1, 100)).unwrap();
        let (kind, _) = refused(&mut catalog, &written_by(7, 96, None));
        assert_eq!(kind, ErrorKind::Invalid, "before it begins");
        catalog.apply(&written_by(7, 100, None)).unwrap();
        catalog.apply(&written_by(7, 100, None)).unwrap();
        for replaces in [None, Some(6)] {
            let (kind, text) = refused(&mut catalog, &written_by(8, 108, replaces));
            assert_eq!(kind, ErrorKind::Conflict);
            assert!(
                text.contains("user=u") && !text.contains("hunter2"),
                "{text}"
            );
        }
        catalog.apply(&written_by(8, 108, Some(7))).unwrap();
        let (kind, _) = refused(&mut catalog, &written_by(7, 108, None));
        assert_eq!(kind, ErrorKind::Conflict, "the first is not let in again");

        let cluster = SystemIdentifier::new(5);
        let claim = Change::Claim {
            timeline: timeline(1),
            cluster,
        };
        catalog.apply(&claim).unwrap();
        let (kind, text) = refused(&mut catalog, &written_by(5, 108, Some(8)));
        assert_eq!(kind, ErrorKind::AlreadyExists, "{text}");
        let other = match written_by(8, 108, None) {
            Change::SetBranchSource {
                source, replaces, ..
            } => Change::SetBranchSource {
                timeline: timeline(3),
                source,
                replaces,
            },
            change => change,
        };
        let (kind, text) = refused(&mut catalog, &other);
        assert_eq!(kind, ErrorKind::AlreadyExists, "{text}");
    }

    #[test]
    fn who_writes_a_branch_is_forgotten_only_when_it_goes() {
        let mut catalog = catalog();
        catalog.apply(&branch("a", 2, 1, 100)).unwrap();
        catalog.apply(&written_by(7, 100, None)).unwrap();
        let timeline = timeline(2);
        let source = |catalog: &Catalog| {
            let tenant = catalog.tenant_of(timeline.tenant).unwrap();
            tenant.find_branch(id(2)).unwrap().source.clone()
        };
        let forget = Change::ForgetBranchSource { timeline };
        catalog.apply(&forget).unwrap();
        assert!(source(&catalog).is_some());
        catalog.apply(&Change::DropBranch { timeline }).unwrap();
        let (kind, _) = refused(&mut catalog, &written_by(8, 100, Some(7)));
        assert_eq!(kind, ErrorKind::Conflict, "it goes");
        catalog.apply(&forget).unwrap();
        assert_eq!(source(&catalog), None);
    }

    #[test]
    fn a_branch_that_was_given_more_time_stays() {
        let mut catalog = catalog();
        catalog.apply(&branch("a", 2, 1, 100)).unwrap();
        let timeline = timeline(2);
        let update = |at| Change::UpdateBranch {
            timeline,
            name: None,
            is_protected: None,
            expires_unix_ms: Some(at),
        };
        let expire = Change::ExpireBranch {
            timeline,
            now_unix_ms: 9,
        };
        for at in [None, Some(10)] {
            catalog.apply(&update(at)).unwrap();
            let before = catalog.clone();
            catalog.apply(&expire).unwrap();
            assert_eq!(catalog, before, "{at:?}");
        }
        catalog.apply(&update(Some(9))).unwrap();
        catalog.apply(&expire).unwrap();
        let tenant = catalog.tenant_of(timeline.tenant).unwrap();
        assert!(tenant.find_branch(id(2)).unwrap().deleting);
        catalog.apply(&expire).unwrap();
    }

    #[test]
    fn branches_on_branches_come_to_an_end() {
        let mut catalog = catalog();
        let bytes = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let mut bytes = [0; 16];
            (bytes[0], bytes[1]) = (high, low);
            TimelineId::from_bytes(bytes)
        };
        let mut parent = id(1);
        let deep = |number: u16, parent| Branch {
            id: bytes(number),
            name: format!("b{number}").parse().unwrap(),
            parent,
            lsn: Lsn::new(100),
            created_unix_ms: 5,
            expires_unix_ms: None,
            is_protected: false,
            deleting: false,
            left: None,
            source: None,
        };
        let tenant = timeline(1).tenant;
        for number in 0..256 {
            let new = deep(number, parent);
            parent = new.id;
            catalog.apply(&listing(tenant, new)).unwrap();
        }
        let new = deep(256, parent);
        let error = catalog.apply(&listing(tenant, new)).unwrap_err();
        assert_eq!(error, CatalogError::TooDeep { limit: MAX_DEPTH });
    }
}
