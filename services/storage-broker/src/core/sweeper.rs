//! Removing what is left of branches: those that are to go, and attempts that ended half way; and leases that are over.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use palimpsest_api::TimelineRef;
use palimpsest_manifest::{ManifestError, PinKind, Publisher, TimelineManifest, UpdateError};
use palimpsest_runtime::CancellationToken;
use palimpsest_store::{StoreError, StorePath};
use palimpsest_types::unix_ms;
use tokio::time::sleep;

use super::{
    branch::Branch,
    broker::Broker,
    catalog::{Catalog, Change},
    catalog_store::CatalogStoreError,
    catalog_writer::ChangeError,
    leasing::remove_ended,
};

/// How often branches that are to go are looked for, unless one is told of.
const LOOK: Duration = Duration::from_secs(5);
/// How often all timelines are looked through for what was left half made.
const PASS: Duration = Duration::from_secs(15 * 60);
/// Between two timelines then.
const PAUSE: Duration = Duration::from_millis(50);

/// Something could not be removed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Catalog(#[from] CatalogStoreError),
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// Goes on until told to stop.
pub(super) async fn sweep(broker: Broker, token: CancellationToken) {
    // Apart, as a look at all timelines takes long.
    let sweeping = async { tokio::join!(remove_what_goes(&broker), look_for_halves(&broker)) };
    // Cancel-safe: what is half done is found again.
    Box::pin(token.run_until_cancelled(sweeping)).await;
}

async fn remove_what_goes(broker: &Broker) {
    let mut changes = broker.catalogs();
    loop {
        let now_unix_ms = unix_ms(SystemTime::now());
        let expired = broker.catalog().expired(now_unix_ms);
        // Who works on one does not lose it.
        let expired = expired.into_iter().filter(|branch| broker.is_left(*branch));
        for timeline in expired.collect::<Vec<_>>() {
            let change = Change::ExpireBranch {
                timeline,
                now_unix_ms,
            };
            match broker.change(change).await {
                Ok(_) => tracing::info!(branch = %timeline, "the time of a branch is over"),
                Err(error) => complain(timeline, &error.into()),
            }
        }
        for (branch, parent) in going(&broker.catalog()) {
            match remove(broker, branch, parent).await {
                Ok(()) => tracing::info!(%branch, "a branch is deleted"),
                Err(error) => complain(branch, &error),
            }
        }
        // Cancel-safe: neither a change nor time is consumed.
        tokio::select! {
            _ = changes.changed() => {}
            () = sleep(LOOK) => {}
        }
    }
}

async fn look_for_halves(broker: &Broker) {
    loop {
        sleep(PASS).await;
        pass(broker).await;
    }
}

/// Branches that are to go, each with the timeline that it begins on.
fn going(catalog: &Catalog) -> Vec<(TimelineRef, TimelineRef)> {
    let tenants = catalog.tenants().iter();
    let of_tenant = tenants.flat_map(|tenant| {
        let timeline = |timeline| TimelineRef {
            tenant: tenant.id,
            timeline,
        };
        // First its writer removes what it has on its own disk.
        let goes = |branch: &&Branch| branch.deleting && branch.source.is_none();
        let going = tenant.branches.iter().filter(goes);
        going.map(move |branch| (timeline(branch.id), timeline(branch.parent)))
    });
    of_tenant.collect()
}

/// Removes all of a branch. The pin goes after what it keeps was used for, the entry last: it is what
/// says that there is something to remove.
async fn remove(
    broker: &Broker,
    branch: TimelineRef,
    parent: TimelineRef,
) -> Result<(), SweepError> {
    // Nothing that is listed begins on it, but attempts may have, which only its pins tell of.
    if let Some(newest) = broker.manifests(branch).newest().await? {
        let halves = pinned(branch, &newest.state, u64::MAX);
        let catalog = broker.newest_catalog().await?;
        for half in halves.into_iter().filter(|half| !catalog.has(*half)) {
            remove_objects(broker, half).await?;
        }
    }
    remove_objects(broker, branch).await?;
    unpin(broker, branch, parent).await?;
    let timeline = branch;
    broker.change(Change::ForgetBranch { timeline }).await?;
    Ok(())
}

/// Removes what an attempt has made that came to nothing. What is left is found by the pin.
pub(super) async fn discard(broker: &Broker, branch: TimelineRef, parent: TimelineRef) {
    let removed = async {
        remove_objects(broker, branch).await?;
        unpin(broker, branch, parent).await?;
        Ok::<_, SweepError>(())
    };
    if let Err(error) = removed.await {
        complain(branch, &error);
    }
}

async fn remove_objects(broker: &Broker, branch: TimelineRef) -> Result<(), StoreError> {
    let objects = StorePath::timeline(branch.tenant, branch.timeline);
    broker.store().delete_below(&objects).await
}

/// Removes the pin of a branch, if it is there.
async fn unpin(
    broker: &Broker,
    branch: TimelineRef,
    parent: TimelineRef,
) -> Result<(), ManifestError> {
    let manifests = broker.manifests(parent);
    let Some(mut newest) = manifests.newest().await? else {
        return Ok(());
    };
    let id = u128::from_be_bytes(*branch.timeline.as_bytes());
    let remove = |manifest: &mut TimelineManifest| Ok::<_, Infallible>(manifest.remove_pin(id));
    match manifests
        .update(Publisher::Broker, &mut newest, remove)
        .await
    {
        Ok(_) | Err(UpdateError::Manifest(ManifestError::Gone)) => Ok(()),
        Err(UpdateError::Manifest(error)) => Err(error),
        Err(UpdateError::Edit(never)) => match never {},
    }
}

/// Looks through all timelines for leases that are over and pins of branches that never came to be.
async fn pass(broker: &Broker) {
    let known = broker.catalog();
    for timeline in known.tenants().iter().flat_map(super::Tenant::timelines) {
        if let Err(error) = sweep_pins(broker, timeline).await {
            complain(timeline, &error);
        }
        sleep(PAUSE).await;
    }
}

pub(super) async fn sweep_pins(broker: &Broker, timeline: TimelineRef) -> Result<(), SweepError> {
    let manifests = broker.manifests(timeline);
    let Some(mut newest) = manifests.newest().await? else {
        return Ok(());
    };
    remove_ended(&manifests, &mut newest).await?;
    let expired = pinned(timeline, &newest.state, unix_ms(SystemTime::now()));
    if expired.is_empty() {
        return Ok(());
    }
    // Read after the pins, and not from memory: another storage-broker may have made them.
    let catalog = broker.newest_catalog().await?;
    // One that does not know this timeline says nothing of its branches.
    if !catalog.has(timeline) {
        return Ok(());
    }
    for branch in expired.into_iter().filter(|branch| !catalog.has(*branch)) {
        tracing::info!(%branch, "removing what is left of a branch that was never made");
        remove_objects(broker, branch).await?;
        unpin(broker, branch, timeline).await?;
    }
    Ok(())
}

/// Branches that a timeline has pins of, which have ended by then.
fn pinned(timeline: TimelineRef, manifest: &TimelineManifest, by_unix_ms: u64) -> Vec<TimelineRef> {
    let branches = manifest.pins().iter().filter_map(|pin| match pin.kind {
        PinKind::Branch { timeline: branch } => {
            let has_ended = pin
                .expires_unix_ms
                .is_some_and(|expires| expires < by_unix_ms);
            has_ended.then_some(TimelineRef {
                timeline: branch,
                ..timeline
            })
        }
        PinKind::Lease | PinKind::Compute => None,
    });
    branches.collect()
}

/// Not an error of anybody's request.
fn complain(timeline: TimelineRef, error: &SweepError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(%timeline, error, "can't remove what nobody needs any more; trying again");
}

#[cfg(test)]
mod tests {
    use palimpsest_manifest::Pin;

    use super::*;
    use crate::core::fixture::{Site, lsn};

    /// An attempt at a branch that ended before the catalog was told, and when its pin ends.
    async fn half_made(site: &Site, number: u8, expires_unix_ms: u64) -> TimelineRef {
        let timeline = palimpsest_types::TimelineId::from_bytes([number; 16]);
        let branch = TimelineRef {
            timeline,
            ..site.main
        };
        let pin = Pin {
            id: u128::from_be_bytes([number; 16]),
            kind: PinKind::Branch { timeline },
            lsn: lsn(160),
            expires_unix_ms: Some(expires_unix_ms),
        };
        let manifests = site.broker.manifests(site.main);
        let mut newest = manifests.newest().await.unwrap().unwrap();
        let set = |manifest: &mut TimelineManifest| manifest.add_pin(pin).map(|()| true);
        let set = manifests.update(Publisher::Broker, &mut newest, set).await;
        assert!(set.unwrap());
        let first = newest.state.branch(site.main.timeline, lsn(160)).unwrap();
        let own = site.broker.manifests(branch);
        own.publish(0, first).await.unwrap();
        branch
    }

    #[tokio::test]
    async fn what_an_attempt_left_goes_when_its_time_is_over() {
        let site = Site::new().await;
        let made = site.branch(site.main, "a", Some(152)).await.unwrap();
        let old = half_made(&site, 8, 1).await;
        let young = half_made(&site, 9, u64::MAX).await;
        pass(&site.broker).await;
        assert!(site.manifest(old).await.is_none());
        assert!(site.manifest(young).await.is_some());
        assert!(site.manifest(made.timeline).await.is_some());
        let pins = site.manifest(site.main).await.unwrap();
        let pinned = pins.pins().iter().map(|pin| pin.id.to_be_bytes());
        let kept = [made.timeline, young].map(|kept| *kept.timeline.as_bytes());
        assert!(pinned.eq(kept));
    }

    #[tokio::test]
    async fn a_branch_that_is_listed_outlives_the_end_of_its_pin() {
        let site = Site::new().await;
        let made = site.branch(site.main, "a", Some(152)).await.unwrap();
        let manifests = site.broker.manifests(site.main);
        let mut newest = manifests.newest().await.unwrap().unwrap();
        let age = |manifest: &mut TimelineManifest| {
            let pin = manifest.pins()[0];
            let expires_unix_ms = Some(1);
            manifest
                .add_pin(Pin {
                    expires_unix_ms,
                    ..pin
                })
                .map(|()| true)
        };
        manifests
            .update(Publisher::Broker, &mut newest, age)
            .await
            .unwrap();
        pass(&site.broker).await;
        assert!(site.manifest(made.timeline).await.is_some());
        assert_eq!(site.manifest(site.main).await.unwrap().pins().len(), 1);
    }

    #[tokio::test]
    async fn a_branch_goes_by_itself_when_its_time_is_over() {
        let site = Site::new().await;
        let named = async |name| {
            site.branch(site.main, name, Some(152))
                .await
                .unwrap()
                .timeline
        };
        let (over, later) = (named("over").await, named("later").await);
        let (kept, needed) = (named("kept").await, named("needed").await);
        site.branch(needed, "child", None).await.unwrap();
        for (branch, at) in [(over, 1), (later, u64::MAX), (kept, 1), (needed, 1)] {
            let protect = (branch == kept).then_some(true);
            let update = site
                .broker
                .update_branch(branch, None, protect, Some(Some(at)));
            update.await.unwrap();
        }
        let mut view = site.broker.watch();
        let gone = view.wait_for(|view| view.timeline(over).is_none());
        tokio::time::timeout(Duration::from_secs(30), gone)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(site.broker.watch().borrow().timelines.len(), 1 + 4);
        assert!(site.broker.catalog().expired(1).is_empty());
    }

    #[tokio::test]
    async fn what_was_begun_on_a_branch_goes_with_it() {
        let site = Site::new().await;
        let made = site
            .branch(site.main, "a", Some(152))
            .await
            .unwrap()
            .timeline;
        let half = TimelineRef {
            timeline: palimpsest_types::TimelineId::from_bytes([8; 16]),
            ..site.main
        };
        let manifests = site.broker.manifests(made);
        let mut newest = manifests.newest().await.unwrap().unwrap();
        let pin = Pin {
            id: u128::from_be_bytes([8; 16]),
            kind: PinKind::Branch {
                timeline: half.timeline,
            },
            lsn: lsn(152),
            expires_unix_ms: Some(u64::MAX - 1),
        };
        let set = |manifest: &mut TimelineManifest| manifest.add_pin(pin).map(|()| true);
        let set = manifests.update(Publisher::Broker, &mut newest, set).await;
        assert!(set.unwrap());
        let first = newest.state.branch(made.timeline, lsn(152)).unwrap();
        let own = site.broker.manifests(half);
        own.publish(0, first).await.unwrap();
        site.broker.delete_branch(made).await.unwrap();
        let mut view = site.broker.watch();
        let gone = view.wait_for(|view| view.timeline(made).is_none());
        tokio::time::timeout(Duration::from_secs(30), gone)
            .await
            .unwrap()
            .unwrap();
        assert!(site.manifest(half).await.is_none());
    }

    #[tokio::test]
    async fn of_a_branch_that_goes_nothing_is_left() {
        let site = Site::new().await;
        let made = site.branch(site.main, "a", Some(152)).await.unwrap();
        site.broker.delete_branch(made.timeline).await.unwrap();
        let mut view = site.broker.watch();
        let gone = view.wait_for(|view| view.timeline(made.timeline).is_none());
        tokio::time::timeout(Duration::from_secs(30), gone)
            .await
            .unwrap()
            .unwrap();
        assert!(site.manifest(made.timeline).await.is_none());
        assert!(site.manifest(site.main).await.unwrap().pins().is_empty());
        // Its name is free.
        let again = site.branch(site.main, "a", Some(160)).await.unwrap();
        assert_ne!(again.timeline, made.timeline);
    }
}
