//! Reading a tenant's source no more.

use std::time::SystemTime;

use palimpsest_api::{
    TimelineRef,
    broker::{Branched, MAIN},
};
use palimpsest_manifest::Pin;
use palimpsest_types::unix_ms;

use super::{
    branch::Branch,
    branching::{Arrival, BranchError, LONGEST, branched},
    broker::Broker,
    catalog::{CatalogError, Change},
    tenant::Name,
};

impl Broker {
    /// Ends what a tenant's source is read to with what the object store has of it; makes the branch that stands in for it durable, or
    /// finds it. What wal-ingest has to remove it is told then.
    ///
    /// # Errors
    /// If there is no such tenant, its base backup is not complete, or the store fails.
    pub async fn leave_source(
        &self,
        tenant: &Name,
        forget_slot: bool,
    ) -> Result<Branched, BranchError> {
        let created = SystemTime::now();
        let _turn = self.branching().acquire().await;
        let newest = self.newest_catalog().await?;
        let unknown = || CatalogError::Unknown(tenant.clone());
        let main = newest.named(tenant).ok_or_else(unknown)?.main();
        if let Some(branch) = newest.stand_in(tenant)? {
            let done = branched(main, branch);
            let leaving = newest.named(tenant).and_then(|tenant| tenant.leaving);
            // A repeat may give up the slot.
            if let Some(leaving) = leaving.filter(|leaving| forget_slot && !leaving.forget_slot) {
                let left = TimelineRef {
                    timeline: leaving.timeline,
                    ..main
                };
                self.change(Change::ForgetLeftSlot { left }).await?;
            }
            return Ok(done);
        }
        let manifest = self.manifests(main).newest().await?;
        let manifest = manifest.ok_or(BranchError::NotAttached(main))?.state;
        let cluster = manifest.source.system_identifier;
        // What is not in the object store goes with the disk of who read it.
        let now = unix_ms(created);
        let behind = |pin: &&Pin| {
            let is_over = pin.expires_unix_ms.is_some_and(|at| at <= now);
            pin.lsn > manifest.lsn && !is_over
        };
        if let Some(pin) = manifest.pins().iter().find(behind) {
            return Err(BranchError::NotStored {
                needed: pin.lsn,
                stored: manifest.lsn,
            });
        }
        let point = self.point(main, Some(manifest.lsn), Arrival::Required);
        let point = point.await?;
        let made = |new: Branch| Change::LeaveSource {
            left: main,
            cluster,
            forget_slot,
            before_unix_ms: unix_ms(created + LONGEST),
            new,
        };
        let name = Name::try_from(MAIN.to_owned()).map_err(|_| CatalogError::NotWritten(main))?;
        self.make(point, (name, None), created, made).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use palimpsest_api::{
        TimelineRef,
        broker::{AssignedTask, TimelineState},
    };
    use palimpsest_types::{Lsn, Reason, SystemIdentifier};
    use tokio::sync::watch;

    use super::*;
    use crate::core::{Catalog, branch::BranchSource, fixture::Site, tenant::NewTenant};

    fn shop() -> Name {
        "shop".parse().unwrap()
    }

    async fn task(site: &Site, state: TimelineState) -> Vec<(TimelineRef, AssignedTask)> {
        let assigned = site.tell(site.main, state).await;
        let assigned = assigned.into_iter();
        assigned.map(|it| (it.timeline, it.task)).collect()
    }

    /// Waits until nothing is left to be removed where a source was read.
    async fn has_left(catalogs: &mut watch::Receiver<Arc<Catalog>>) {
        let has_left = |catalog: &Arc<Catalog>| {
            let mut tenants = catalog.tenants().iter();
            tenants.all(|tenant| tenant.leaving.is_none())
        };
        catalogs.wait_for(has_left).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_source_was_read_to_ends_and_a_branch_stands_in_for_it() {
        let site = Site::new().await;
        assert_eq!(
            task(&site, TimelineState::Streaming).await,
            [(site.main, AssignedTask::Ingest)]
        );
        let left = site.broker.leave_source(&shop(), true).await.unwrap();
        assert_eq!((left.begins_on, left.lsn), (site.main, Lsn::new(200)));
        let again = site.broker.leave_source(&shop(), true).await.unwrap();
        assert_eq!(again, left);

        let view = site.broker.watch().borrow().clone();
        let main = view.find("shop").unwrap();
        assert_eq!(
            (main.timeline, main.status.state),
            (left.timeline, TimelineState::Idle)
        );
        assert!(!main.is_written() && main.branch.unwrap().is_protected);
        let before = view.timeline(site.main).unwrap();
        assert_eq!(before.timeline_name, format!("main@{}", left.lsn));
        assert_eq!(before.status.last_record, left.lsn);
        let [tenant] = &site.broker.tenants()[..] else {
            panic!("there is one");
        };
        assert_eq!((tenant.source.as_str(), tenant.slot.as_str()), ("", ""));

        // Who read it removes what it has, and then has nothing to do.
        let leave = AssignedTask::Leave { forget_slot: true };
        assert_eq!(
            task(&site, TimelineState::Streaming).await,
            [(site.main, leave)]
        );
        let mut catalogs = site.broker.catalogs();
        task(&site, TimelineState::Idle).await;
        has_left(&mut catalogs).await;
        assert_eq!(task(&site, TimelineState::Idle).await, []);
    }

    #[tokio::test]
    async fn what_stands_in_may_be_written_by_another_and_the_source_be_attached_anew() {
        let site = Site::new().await;
        let left = site.broker.leave_source(&shop(), true).await.unwrap();
        let source = BranchSource {
            conninfo: "host=h user=u".parse().unwrap(),
            slot: "palimpsest".to_owned(),
            cluster: SystemIdentifier::new(9),
            pg_timeline: 1,
            begin: left.lsn,
        };
        let set = site.broker.set_branch_source(left.timeline, source, None);
        set.await.unwrap();
        assert_eq!(site.broker.computes(None).unwrap().len(), 1);
        let reattached = site.broker.reattach(site.main, None).await;
        assert!(reattached.is_err(), "{reattached:?}");

        let same = NewTenant::parse("shop", "host=h user=u", None).unwrap();
        let refused = site.broker.attach(same).await.unwrap_err();
        assert_eq!(refused.fault().reason, Some(Reason::NameTaken));
        let slot = Some("palimpsest_shop");
        let other = NewTenant::parse("other", "host=h user=u", slot).unwrap();
        let refused = site.broker.attach(other.clone()).await.unwrap_err();
        assert_eq!(refused.fault().reason, Some(Reason::SourceTaken));
        site.tell(site.main, TimelineState::Idle).await;
        let mut catalogs = site.broker.catalogs();
        has_left(&mut catalogs).await;
        site.broker.attach(other).await.unwrap();
    }

    #[tokio::test]
    async fn a_tenant_without_a_source_goes_without_a_slot_to_drop() {
        let site = Site::new().await;
        let left = site.broker.leave_source(&shop(), false).await.unwrap();
        // Its slot is at a source that may be there; and the end of leaving is none of a deletion.
        let refused = site.broker.delete(shop(), false).await.unwrap_err();
        assert_eq!(refused.fault().reason, Some(Reason::InUse));
        let leave = |forget_slot| [(site.main, AssignedTask::Leave { forget_slot })];
        assert_eq!(task(&site, TimelineState::Deleted).await, leave(false));
        site.broker.leave_source(&shop(), true).await.unwrap();
        assert_eq!(task(&site, TimelineState::Deleted).await, leave(true));
        task(&site, TimelineState::Idle).await;
        let mut catalogs = site.broker.catalogs();
        has_left(&mut catalogs).await;
        let refused = site.broker.delete(shop(), false).await.unwrap_err();
        assert_eq!(refused.fault().reason, Some(Reason::Needed));
        let update = (site.broker).update_branch(left.timeline, None, Some(false), None);
        update.await.unwrap();
        site.broker.delete_branch(left.timeline).await.unwrap();
        let mut catalogs = site.broker.catalogs();
        let is_gone = |catalog: &Arc<Catalog>| !catalog.has(left.timeline);
        catalogs.wait_for(is_gone).await.unwrap();
        site.broker.delete(shop(), false).await.unwrap();
        let delete = AssignedTask::Delete { forget_slot: true };
        assert_eq!(
            task(&site, TimelineState::Idle).await,
            [(site.main, delete)]
        );
    }

    #[tokio::test]
    async fn what_others_need_and_is_not_stored_keeps_a_source_from_being_left() {
        let site = Site::new().await;
        site.tell_end(site.main, Lsn::new(400)).await;
        let early = site.branch(site.main, "early", Some(165)).await.unwrap();
        let late = site.branch(site.main, "late", Some(300)).await.unwrap();
        let refused = site.broker.leave_source(&shop(), true).await.unwrap_err();
        assert!(refused.to_string().contains("needs"), "{refused}");
        site.grow(site.main, 300).await;
        let left = site.broker.leave_source(&shop(), true).await.unwrap();
        assert!(left.lsn >= late.lsn, "{left:?} {late:?}");
        let view = site.broker.watch().borrow().clone();
        for timeline in [early.timeline, late.timeline] {
            assert!(view.timeline(timeline).is_some());
        }
        site.grow(site.main, 400).await;
        let refused = site.branch(site.main, "behind", Some(400)).await;
        assert!(refused.unwrap_err().to_string().contains("ends at"));
    }
}
