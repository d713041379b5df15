//! The client against a stock PostgreSQL 15.

#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails should fail its test"
)]

mod backup;
mod login;
mod server;
mod slots;
mod stream;
mod tls;
