//! The program, and what `pal` and its documentation say of each other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod program;
mod settings;
