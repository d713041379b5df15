//! For fuzzing: a manifest from the body of its object, with neither store nor lists.

use crate::{
    TimelineManifest,
    envelope::{open, seal_body},
};

const MAGIC: [u8; 4] = *b"FUZZ";
const VERSION: u32 = 1;

/// What the body of an object says, as far as it can be said without the lists that it refers to.
pub fn manifest_from_body(body: &[u8]) -> Option<TimelineManifest> {
    let object = seal_body(MAGIC, VERSION, body);
    let mut manifest: TimelineManifest = open(MAGIC, VERSION, &object).ok()?;
    manifest.assemble(&[]).ok()?;
    manifest.check().ok()?;
    Some(manifest)
}
