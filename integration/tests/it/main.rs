//! The judges.
#![expect(clippy::unwrap_used, reason = "a judge fails by panicking")]

mod offline_pages;
mod offline_records;
mod support;
