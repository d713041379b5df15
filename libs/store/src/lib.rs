//! The object store behind one narrow interface.
//!
//! Everything durable beyond one machine is an object under a [`StorePath`]: written once, whole,
//! never changed. The only coordination there is, is [`ObjectStore::create`]: it succeeds for one
//! writer only. [`ObjectStore::open`] proves that before anything relies on it.
//!
//! A [`StoreLocation`] says where it is: a directory, or a bucket of a provider. How a bucket is
//! reached and who asks come from the environment alone. What is asked of a bucket is answered in
//! bounded time, or is an error that names it.

mod body;
mod bucket;
mod directory;
mod error;
#[cfg(feature = "faulty")]
pub mod faulty;
mod location;
mod metrics;
mod object_store;
mod path;
mod trouble;

pub use body::{Body, BodyWriter};
pub use bucket::Variables;
pub use error::StoreError;
pub use location::{Bucket, ParseStoreLocationError, Provider, StoreLocation};
pub use metrics::StoreMetrics;
pub use object_store::ObjectStore;
pub use path::StorePath;
pub use trouble::{Said, Trouble};
