//! The object store behind one narrow interface.
//!
//! Everything durable beyond one machine is an object under a [`StorePath`]: written once, whole,
//! never changed. The only coordination there is, is [`ObjectStore::create`]: it succeeds for one
//! writer only. [`ObjectStore::open`] proves that before anything relies on it.

mod error;
#[cfg(feature = "faulty")]
pub mod faulty;
mod metrics;
mod object_store;

pub use error::StoreError;
pub use metrics::StoreMetrics;
pub use object_store::{ObjectStore, StorePath};
