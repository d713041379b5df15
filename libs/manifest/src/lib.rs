//! Durable state that changes by compare-and-swap on the object store.
//!
//! [`Sequence`] is the generic part: numbered immutable objects, of which the newest is the state.
//! Creating number N+1 succeeds for one writer only, so a change made from state N is applied to
//! state N or not at all. It knows nothing of what the objects say.
//!
//! [`TimelineManifest`] is one such state: what a timeline consists of in the object store.

mod envelope;
mod sequence;
mod timeline;

pub use envelope::{EnvelopeError, open, seal};
pub use sequence::{Sequence, SequenceError, Versioned};
pub use timeline::{LayerEntry, ManifestError, SourceCluster, TimelineManifest, TimelineManifests};
