//! What services and libraries tell about themselves: metrics and the context of traces.
//!
//! A metric is a handle that its module holds ([`Counter`], [`Gauge`], [`Histogram`]: an atomic
//! each, or a short lock); what is known anyway is read when somebody asks ([`Sampled`]). Each
//! service has a [`Registry`] of its own, so several can live in one process.
//!
//! Not here: how metrics and traces leave the process.

mod registry;
mod sampled;
pub mod trace;

pub use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

pub use registry::{latencies, registry, render, sizes};
pub use sampled::{Sample, Sampled};
