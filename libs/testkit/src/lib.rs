//! What tests and the demo need beside the product: a stock PostgreSQL of their own, SQL workloads
//! that make it write every kind of WAL record, and a server of buckets.
//!
//! Nothing here is part of a service; `cargo xtask layers` refuses a service that depends on it.
//! Failures are `anyhow` errors that carry the server's own words, because a person reads them.

pub mod bucket;
pub mod cluster;
pub mod workload;

pub use bucket::{BucketServer, Whim};
pub use cluster::{Cluster, ClusterOptions, Session};
pub use workload::{Boundary, Workload};
