//! Durable state that changes by compare-and-swap on the object store.
//!
//! [`Sequence`] is the generic part: numbered immutable objects, of which the newest is the state.
//! Creating number N+1 succeeds for one writer only, so a change made from state N is applied to
//! state N or not at all. It knows nothing of what the objects say.
//!
//! [`TimelineManifest`] is one such state: what a timeline consists of in the object store.
//! [`TimelineManifests`] reads and publishes it; [`TimelineManifests::update`] is the way for
//! whoever shares a timeline with others. It fences: what a superseded [`Publisher`] wants to
//! change is never published.
//!
//! Invariants: a manifest names only what is stored; a number at or above the floor of the newest
//! object is never deleted, nor is a layer list that such a manifest refers to.

mod envelope;
mod error;
mod fold;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod layer_entry;
mod layer_list;
mod list_store;
mod manifests;
mod publisher;
mod sequence;
#[cfg(test)]
mod test_layers;
mod timeline;
mod validate;

pub use envelope::{EnvelopeError, open, seal};
pub use error::{ManifestError, UpdateError};
pub use layer_entry::{KeySpan, LayerEntry, LayerKind, LsnSpan};
pub use manifests::TimelineManifests;
pub use publisher::Publisher;
pub use sequence::{HeaderError, Sequence, SequenceError, Versioned};
pub use timeline::{
    Ancestor, BranchPointError, ClaimError, CompactorClaim, CompactorEpoch, PgTimelineBegin, Pin,
    PinError, PinKind, Reread, SourceCluster, TimelineManifest,
};
pub use validate::{GapError, InvalidManifestError, check_contiguity};
