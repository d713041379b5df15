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
