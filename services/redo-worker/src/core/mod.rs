//! The redo-worker without its transport.

mod engines;
mod postgres;

pub use engines::{Limits, ProcessSource, RedoProcess, StartFailure, TenantEngines};
pub use postgres::PostgresSource;
