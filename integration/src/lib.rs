//! Judges: Palimpsest against PostgreSQL's own bytes.
//!
//! The tests in `tests/it` are the judges; here is what they share. A judge ends by printing one
//! line, `judge NAME: N checked, 0 wrong, P1`, which CI compares with `judges.toml`.

pub mod bench;
pub mod cable;
pub mod consistency;
pub mod demo;
pub mod embedded;
pub mod judge;
pub mod offline;
pub mod oracle;
pub mod processes;
pub mod recovered;
pub mod strikes;
pub mod versions;
mod waiting;
