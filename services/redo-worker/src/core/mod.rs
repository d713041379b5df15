//! The redo-worker without its transport.

mod engines;
mod metrics;
mod postgres;

pub use engines::{Limits, ProcessSource, RedoProcess, StartFailure, TenantEngines};
pub use metrics::RedoMetrics;
pub use postgres::PostgresSource;
