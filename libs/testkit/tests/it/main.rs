//! Against a real PostgreSQL.

mod cluster;
mod workload;
