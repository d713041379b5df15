use palimpsest_types::{TenantId, TimelineId};

use super::*;

const SOURCE: &str = "host=h user=u password=secret";

fn ids(number: u8) -> TimelineRef {
    TimelineRef {
        tenant: TenantId::from_bytes([number; 16]),
        timeline: TimelineId::from_bytes([number; 16]),
    }
}

fn attach(name: &str, source: &str, slot: Option<&str>, number: u8) -> Change {
    Change::Attach {
        new: NewTenant::parse(name, source, slot).unwrap(),
        ids: ids(number),
    }
}

fn delete(name: &str, forget_slot: bool) -> Change {
    Change::Delete {
        name: name.parse().unwrap(),
        forget_slot,
    }
}

#[test]
fn attaching_again_gives_the_same_ids() {
    let mut catalog = Catalog::default();
    assert_eq!(catalog.apply(&attach("a", SOURCE, None, 1)), Ok(ids(1)));
    let before = catalog.clone();
    assert_eq!(catalog.apply(&attach("a", SOURCE, None, 2)), Ok(ids(1)));
    let same_slot = attach("a", SOURCE, Some("palimpsest_a"), 2);
    assert_eq!(catalog.apply(&same_slot), Ok(ids(1)));
    assert_eq!(catalog, before);
    assert_eq!(catalog.tenant(ids(1)).unwrap().slot, "palimpsest_a");
    assert_eq!(catalog.tenant(ids(1)).unwrap().timeline_name, "main");
}

#[test]
fn a_name_or_a_slot_belongs_to_one_source() {
    let mut catalog = Catalog::default();
    catalog.apply(&attach("a", SOURCE, None, 1)).unwrap();
    for change in [
        attach("a", "host=other user=u", None, 2),
        attach("a", SOURCE, Some("other"), 2),
        attach("b", SOURCE, Some("palimpsest_a"), 2),
    ] {
        let error = catalog.apply(&change).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    }
    let elsewhere = attach("b", "host=other user=u", Some("palimpsest_a"), 2);
    assert_eq!(catalog.apply(&elsewhere), Ok(ids(2)));
}

#[test]
fn a_tenant_goes_in_two_steps() {
    let mut catalog = Catalog::default();
    catalog.apply(&attach("a", SOURCE, None, 1)).unwrap();
    let forget = Change::Forget { timeline: ids(1) };
    catalog.apply(&forget).unwrap();
    assert_eq!(catalog.tenants().len(), 1, "it was not to go");

    for (asked, expected) in [(false, false), (true, true), (false, true)] {
        assert_eq!(catalog.apply(&delete("a", asked)), Ok(ids(1)));
        let forget_slot = expected;
        let state = catalog.tenant(ids(1)).unwrap().state;
        assert_eq!(state, TenantState::Deleting { forget_slot });
    }
    let error = catalog.apply(&attach("a", SOURCE, None, 2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);

    catalog.apply(&forget).unwrap();
    catalog.apply(&forget).unwrap();
    assert!(catalog.tenants().is_empty());
    let error = catalog.apply(&delete("a", false)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

fn claim(number: u8, cluster: u64) -> Change {
    Change::Claim {
        timeline: ids(number),
        cluster: SystemIdentifier::new(cluster),
    }
}

#[test]
fn a_cluster_is_one_tenants_until_that_is_gone() {
    let mut catalog = Catalog::default();
    catalog.apply(&attach("a", SOURCE, None, 1)).unwrap();
    catalog.apply(&attach("b", SOURCE, None, 2)).unwrap();
    let taken = |holder: &str| CatalogError::ClusterTaken {
        cluster: SystemIdentifier::new(7),
        holder: holder.parse().unwrap(),
    };
    assert_eq!(catalog.apply(&claim(1, 7)), Ok(ids(1)));
    assert_eq!(catalog.apply(&claim(1, 7)), Ok(ids(1)), "a repeat");
    assert_eq!(catalog.apply(&claim(2, 7)), Err(taken("a")));
    catalog.apply(&delete("a", false)).unwrap();
    assert_eq!(
        catalog.apply(&claim(2, 7)),
        Err(taken("a")),
        "a slot may be there"
    );
    let gone = Change::Forget { timeline: ids(1) };
    catalog.apply(&gone).unwrap();
    assert_eq!(catalog.apply(&claim(2, 7)), Ok(ids(2)));
}

#[test]
fn who_goes_or_is_not_there_claims_nothing() {
    let mut catalog = Catalog::default();
    let unknown = Err(CatalogError::UnknownTimeline(ids(1)));
    assert_eq!(catalog.apply(&claim(1, 7)), unknown);
    catalog.apply(&attach("a", SOURCE, None, 1)).unwrap();
    catalog.apply(&delete("a", false)).unwrap();
    let error = catalog.apply(&claim(1, 7)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
}

#[test]
fn an_attach_that_begins_anew_may_find_another_cluster() {
    let mut catalog = Catalog::default();
    catalog.apply(&attach("a", SOURCE, None, 1)).unwrap();
    catalog.apply(&attach("b", SOURCE, None, 2)).unwrap();
    catalog.apply(&claim(1, 7)).unwrap();
    catalog.apply(&claim(1, 8)).unwrap();
    assert_eq!(catalog.apply(&claim(2, 7)), Ok(ids(2)));
}
