use super::*;
use crate::{
    test_layers::{base, delta},
    validate::InvalidManifestError,
};

fn manifest() -> TimelineManifest {
    let source = SourceCluster {
        system_identifier: SystemIdentifier::new(7),
        pg_version: 15,
        pg_timeline: 3,
        wal_segment_size: ByteCount::mib(16),
        wal_log_hints: false,
    };
    let mut manifest = TimelineManifest::new(source, Lsn::new(100), Lsn::new(120));
    manifest.add_layers(vec![base("base", 100)]).unwrap();
    manifest
}

fn names(manifest: &TimelineManifest) -> Vec<&str> {
    let layers = manifest.layers().iter();
    layers.map(|layer| layer.name.as_str()).collect()
}

#[test]
fn layers_are_in_lsn_order_whatever_order_they_come_in() {
    let mut manifest = manifest();
    manifest.lsn = Lsn::new(140);
    let layers = vec![
        delta("b", 120, 140),
        base("at-120", 120),
        delta("a", 100, 120),
    ];
    manifest.add_layers(layers).unwrap();
    assert_eq!(names(&manifest), ["base", "a", "at-120", "b"]);
    manifest.check().unwrap();
}

#[test]
fn a_change_that_is_refused_changes_nothing() {
    let mut manifest = manifest();
    let before = manifest.clone();
    let twice = manifest.add_layers(vec![delta("a", 100, 110), delta("a", 110, 120)]);
    assert!(matches!(twice, Err(InvalidManifestError::Duplicate { .. })));
    let again = manifest.add_layers(vec![delta("a", 100, 110), base("base", 100)]);
    assert!(matches!(again, Err(InvalidManifestError::Duplicate { .. })));
    let empty = manifest.add_layers(vec![delta("a", 110, 110)]);
    assert!(matches!(empty, Err(InvalidManifestError::EmptySpan { .. })));
    let unknown = manifest.remove_layers(&["base", "x"]);
    assert!(matches!(unknown, Err(InvalidManifestError::Unknown { layer }) if layer == "x"));
    assert_eq!(manifest, before);
}

#[test]
fn a_layer_that_came_and_went_leaves_no_edit() {
    let mut manifest = manifest();
    let before = manifest.edits.clone();
    manifest.add_layers(vec![delta("a", 100, 120)]).unwrap();
    manifest.remove_layers(&["a"]).unwrap();
    assert_eq!(manifest.edits, before);
}

#[test]
fn says_why_the_layers_can_not_be_the_history() {
    let mut gap = manifest();
    gap.lsn = Lsn::new(140);
    gap.add_layers(vec![delta("a", 100, 120), delta("c", 130, 140)])
        .unwrap();
    let error = gap.check().unwrap_err();
    assert_eq!(
        error.to_string(),
        "no layer holds the changes of (0/78, 0/82]"
    );
    let hole = LsnSpan {
        after: Lsn::new(120),
        up_to: Lsn::new(130),
    };
    gap.holes.push(hole);
    gap.check()
        .expect_err("what comes after a hole is in layers");
    gap.add_layers(vec![delta("b", 120, 130)]).unwrap();
    gap.check().unwrap();
    gap.holes.push(hole);
    let twice = gap.check().unwrap_err();
    assert_eq!(twice, InvalidManifestError::Hole { hole });

    let mut beyond = manifest();
    beyond.add_layers(vec![delta("a", 100, 120)]).unwrap();
    let error = beyond.check().unwrap_err();
    assert!(matches!(error, InvalidManifestError::Beyond { .. }));

    let mut branch = manifest();
    branch.remove_layers(&["base"]).unwrap();
    assert_eq!(branch.check(), Err(InvalidManifestError::NoBase));
    branch.ancestor = Some(Ancestor {
        timeline: TimelineId::from_bytes([1; 16]),
        lsn: Lsn::new(100),
    });
    branch.check().unwrap();
}

#[test]
fn below_the_cutoff_changes_may_be_missing() {
    let mut manifest = manifest();
    manifest.lsn = Lsn::new(160);
    manifest
        .add_layers(vec![base("at-140", 140), delta("b", 130, 160)])
        .unwrap();
    assert!(manifest.check().is_err());
    manifest.gc_cutoff = Lsn::new(140);
    manifest.check().unwrap();
}

#[test]
fn what_may_be_gone_can_not_be_pinned() {
    let mut manifest = manifest();
    let pin = |id, lsn, expires| Pin {
        id,
        kind: PinKind::Lease,
        lsn: Lsn::new(lsn),
        expires_unix_ms: Some(expires),
    };
    manifest.add_pin(pin(1, 100, 5)).unwrap();
    manifest.gc_cutoff = Lsn::new(110);
    let below = manifest.add_pin(pin(2, 109, 5)).unwrap_err();
    assert!(matches!(below, PinError::BelowCutoff { .. }));
    assert!(manifest.add_pin(pin(1, 101, 5)).is_err(), "moved");
    manifest.add_pin(pin(1, 100, 9)).unwrap();
    manifest.add_pin(pin(3, 110, 5)).unwrap();
    assert_eq!(manifest.pins(), [pin(1, 100, 9), pin(3, 110, 5)]);
    // What one keeps is there for another.
    manifest.add_pin(pin(4, 100, 7)).unwrap();
    assert!(manifest.remove_pin(4));
    assert!(manifest.remove_pin(1));
    assert!(!manifest.remove_pin(1));
    assert!(manifest.add_pin(pin(1, 100, 9)).is_err(), "gone is gone");
}

#[test]
fn leases_end_and_branches_stay() {
    let mut manifest = manifest();
    let timeline = palimpsest_types::TimelineId::from_bytes([1; 16]);
    let kinds = [
        (1, PinKind::Lease, Some(5)),
        (2, PinKind::Compute, Some(9)),
        (3, PinKind::Lease, None),
        (4, PinKind::Branch { timeline }, Some(5)),
    ];
    for (id, kind, expires_unix_ms) in kinds {
        let lsn = Lsn::new(100);
        let pin = Pin {
            id,
            kind,
            lsn,
            expires_unix_ms,
        };
        manifest.add_pin(pin).unwrap();
    }
    assert!(!manifest.remove_ended_leases(5), "it ends with its time");
    assert!(manifest.remove_ended_leases(6));
    let left = |manifest: &TimelineManifest| -> Vec<_> {
        manifest.pins().iter().map(|pin| pin.id).collect()
    };
    assert_eq!(left(&manifest), [2, 3, 4]);
    assert!(manifest.remove_ended_leases(u64::MAX));
    assert_eq!(left(&manifest), [3, 4]);
}

#[test]
fn a_timeline_has_a_bounded_number_of_pins() {
    let mut manifest = manifest();
    let pin = |id| Pin {
        id,
        kind: PinKind::Compute,
        lsn: Lsn::new(100),
        expires_unix_ms: None,
    };
    for id in 0..16_384 {
        manifest.add_pin(pin(id)).unwrap();
    }
    assert_eq!(manifest.add_pin(pin(16_384)), Err(PinError::TooMany));
    manifest.add_pin(pin(0)).unwrap();
}
