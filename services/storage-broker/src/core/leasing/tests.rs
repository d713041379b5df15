use palimpsest_runtime::TaskScope;
use palimpsest_types::TimelineId;

use super::*;
use crate::core::{
    catalog::SettingsChange,
    fixture::{Site, lsn},
    sweeper::sweep_pins,
};

const ID: LeaseId = LeaseId::from_bytes([7; 16]);
const HOUR: Duration = Duration::from_secs(60 * 60);

fn new(timeline: TimelineRef, at: Option<u64>, length: Duration) -> NewLease {
    NewLease {
        timeline,
        id: ID,
        lsn: at.map(lsn),
        length: Some(length),
    }
}

/// Moves the cutoff of the first timeline, as whoever removes versions would.
async fn cut_off(site: &Site, at: u64) {
    let manifests = site.broker.manifests(site.main);
    let mut newest = manifests.newest().await.unwrap().unwrap();
    let cut = |manifest: &mut TimelineManifest| {
        manifest.gc_cutoff = lsn(at);
        Ok::<_, Infallible>(true)
    };
    let moved = manifests.update(Publisher::Broker, &mut newest, cut).await;
    assert!(moved.unwrap());
}

fn kind<T: std::fmt::Debug>(outcome: Result<T, LeaseError>) -> ErrorKind {
    outcome.unwrap_err().fault().kind
}

#[tokio::test]
async fn a_lease_is_a_pin_that_is_extended_and_dropped() {
    let site = Site::new().await;
    let broker = &site.broker;
    let taken = broker.lease(new(site.main, Some(163), HOUR)).await.unwrap();
    assert_eq!((taken.timeline, taken.lsn), (site.main, lsn(160)));
    assert_eq!(broker.leases(site.main).await.unwrap(), [taken]);
    // Who did not hear the answer asks again, and may have forgotten where it was.
    for at in [Some(160), Some(163), None] {
        let again = broker.lease(new(site.main, at, HOUR)).await.unwrap();
        assert_eq!(again.lsn, lsn(160));
        assert!(again.expires_unix_ms >= taken.expires_unix_ms);
    }
    assert_eq!(broker.leases(site.main).await.unwrap().len(), 1);
    let longer = broker.lease(new(site.main, None, 2 * HOUR)).await.unwrap();
    assert!(longer.expires_unix_ms > taken.expires_unix_ms + 1_000_000);
    let shorter = broker.lease(new(site.main, None, HOUR)).await.unwrap();
    assert_eq!(shorter, longer, "it is never made shorter");
    let moved = broker.lease(new(site.main, Some(168), HOUR)).await;
    assert_eq!(kind(moved), ErrorKind::AlreadyExists);
    assert!(broker.drop_lease(site.main, ID).await.unwrap());
    assert!(!broker.drop_lease(site.main, ID).await.unwrap());
    assert!(broker.leases(site.main).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lease_of_which_nobody_says_how_long_lasts_as_the_tenant_has_set_it() {
    let site = Site::new().await;
    let asked = NewLease {
        length: None,
        ..new(site.main, Some(160), HOUR)
    };
    let lasts = async || {
        let now = unix_ms(SystemTime::now());
        let lease = site.broker.lease(asked).await.unwrap();
        (lease.expires_unix_ms - now) / 60_000
    };
    assert!((9..=10).contains(&lasts().await), "ten minutes");
    let change = SettingsChange {
        set: vec![("lease-length".to_owned(), "5h".to_owned())],
        unset: Vec::new(),
    };
    let set = site.broker.configure("shop".parse().unwrap(), change);
    set.await.unwrap();
    assert!((299..=300).contains(&lasts().await), "five hours");
}

#[tokio::test]
async fn only_what_can_be_read_is_leased() {
    let site = Site::new().await;
    let lease = async |timeline, at, length| {
        let taken = site.broker.lease(new(timeline, at, length)).await;
        kind(taken)
    };
    assert_eq!(lease(site.main, Some(112), HOUR).await, ErrorKind::Invalid);
    assert_eq!(lease(site.main, None, HOUR).await, ErrorKind::NotReady);
    let long = TenantSettings::LONGEST_LEASE + Duration::from_millis(1);
    assert_eq!(lease(site.main, Some(160), long).await, ErrorKind::Invalid);
    let timeline = TimelineId::from_bytes([9; 16]);
    let other = TimelineRef {
        timeline,
        ..site.main
    };
    assert_eq!(lease(other, Some(160), HOUR).await, ErrorKind::NotFound);
    assert!(site.manifest(site.main).await.unwrap().pins().is_empty());
    // What has arrived where one reads may not be known here yet.
    let early = site.broker.lease(new(site.main, Some(208), HOUR)).await;
    assert_eq!(early.unwrap().lsn, lsn(208));
}

#[tokio::test]
async fn what_a_lease_keeps_is_there_below_the_cutoff() {
    let site = Site::new().await;
    let broker = &site.broker;
    broker.lease(new(site.main, Some(160), HOUR)).await.unwrap();
    cut_off(&site, 180).await;
    let other = NewLease {
        id: LeaseId::from_bytes([8; 16]),
        ..new(site.main, Some(168), HOUR)
    };
    let refused = broker.lease(other).await.unwrap_err();
    assert_eq!(refused.fault().reason, Some(Reason::BelowHorizon));
    // Also for others, who keep it from then on by themselves.
    broker.lease(new(site.main, None, 2 * HOUR)).await.unwrap();
    let branch = site.branch(site.main, "a", Some(160)).await.unwrap();
    assert_eq!(branch.lsn, lsn(160));
    assert!(site.branch(site.main, "b", Some(168)).await.is_err());
    assert!(broker.drop_lease(site.main, ID).await.unwrap());
    assert!(site.branch(site.main, "c", Some(160)).await.is_ok());
    broker.lease(new(site.main, Some(160), HOUR)).await.unwrap();
}

#[tokio::test]
async fn what_a_branch_shares_is_leased_where_it_is() {
    let site = Site::new().await;
    let branch = site.branch(site.main, "a", Some(160)).await.unwrap();
    for (at, length) in [(Some(152), HOUR), (None, 2 * HOUR), (Some(152), 3 * HOUR)] {
        let taken = site.broker.lease(new(branch.timeline, at, length)).await;
        let taken = taken.unwrap();
        assert_eq!((taken.timeline, taken.lsn), (site.main, lsn(152)));
        // By those who wait for it to end it is found where it is.
        let again = site.broker.lease(new(site.main, None, HOUR / 2)).await;
        assert_eq!(again.unwrap(), taken);
    }
    let leases = async |timeline| site.broker.leases(timeline).await.unwrap().len();
    assert_eq!(
        (leases(branch.timeline).await, leases(site.main).await),
        (0, 1)
    );
    let other = site
        .broker
        .lease(new(branch.timeline, Some(160), HOUR))
        .await;
    assert_eq!(kind(other), ErrorKind::AlreadyExists, "nor elsewhere");
    // The pin of the branch is no lease.
    let pin = LeaseId::from_bytes(*branch.timeline.timeline.as_bytes());
    assert!(!site.broker.drop_lease(site.main, pin).await.unwrap());
    assert!(site.broker.drop_lease(branch.timeline, ID).await.unwrap());
    assert_eq!(leases(site.main).await, 0);
}

#[tokio::test]
async fn a_lease_outlives_its_broker_and_ends_with_its_time() {
    let site = Site::new().await;
    let scope = TaskScope::default();
    site.broker
        .lease(new(site.main, Some(160), HOUR))
        .await
        .unwrap();
    let second = site.another_broker(&scope).await;
    assert_eq!(second.leases(site.main).await.unwrap().len(), 1);
    // One that has ended long ago, by any clock, and one that has ended just now.
    let manifests = second.manifests(site.main);
    let mut newest = manifests.newest().await.unwrap().unwrap();
    let now = unix_ms(SystemTime::now());
    let pin = |id, ago: u64| Pin {
        id,
        kind: PinKind::Lease,
        lsn: lsn(168),
        expires_unix_ms: Some(now - ago),
    };
    let set = |manifest: &mut TimelineManifest| {
        manifest.add_pin(pin(1, 120_000))?;
        manifest.add_pin(pin(2, 1))?;
        Ok::<_, PinError>(true)
    };
    let updated = manifests.update(Publisher::Broker, &mut newest, set).await;
    assert!(updated.unwrap());
    sweep_pins(&second, site.main).await.unwrap();
    let left = site.manifest(site.main).await.unwrap();
    let left: Vec<_> = left.pins().iter().map(|pin| pin.id).collect();
    assert_eq!(left, [pin_id(ID), 2]);
    // Whoever takes one removes those that are over, too.
    let mut newest = manifests.newest().await.unwrap().unwrap();
    let updated = manifests.update(Publisher::Broker, &mut newest, set).await;
    assert!(updated.unwrap());
    second.lease(new(site.main, None, 2 * HOUR)).await.unwrap();
    assert_eq!(second.leases(site.main).await.unwrap().len(), 2);
    scope.stop().await;
}

#[tokio::test]
async fn leases_that_are_over_are_in_nobodys_way() {
    let site = Site::new().await;
    let manifests = site.broker.manifests(site.main);
    let mut newest = manifests.newest().await.unwrap().unwrap();
    let fill = |expires: Option<u64>| {
        move |manifest: &mut TimelineManifest| {
            for id in 0..LEASES as u128 {
                manifest.add_pin(Pin {
                    id,
                    kind: PinKind::Lease,
                    lsn: lsn(168),
                    expires_unix_ms: expires,
                })?;
            }
            Ok::<_, PinError>(true)
        }
    };
    let later = unix_ms(SystemTime::now() + HOUR);
    let full = manifests.update(Publisher::Broker, &mut newest, fill(Some(later)));
    assert!(full.await.unwrap());
    let lease = async || site.broker.lease(new(site.main, Some(160), HOUR)).await;
    assert_eq!(kind(lease().await), ErrorKind::Throttled);
    site.branch(site.main, "a", Some(160)).await.unwrap();
    let mut newest = manifests.newest().await.unwrap().unwrap();
    let over = manifests.update(Publisher::Broker, &mut newest, fill(Some(1)));
    assert!(over.await.unwrap());
    lease().await.unwrap();
    assert_eq!(site.broker.leases(site.main).await.unwrap().len(), 1);
}
