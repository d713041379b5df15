//! Objects that hold a timeline's manifest.

use palimpsest_manifest::{fuzz::manifest_from_body, seal};

/// Length of what [`seal`] puts before a body.
const ENVELOPE: usize = 12;

/// The body of a manifest object, as JSON: what can be read is written again as the same.
pub fn manifest(data: &[u8]) {
    let Some(manifest) = manifest_from_body(data) else {
        return;
    };
    let object = seal(*b"FUZZ", 1, &manifest).expect("what was read can be written");
    assert_eq!(manifest_from_body(&object[ENVELOPE..]), Some(manifest));
}
