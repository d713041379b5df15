//! The judges.
#![expect(clippy::unwrap_used, reason = "a judge fails by panicking")]

mod consistency_images;
mod consistency_served;
mod durability;
mod end_to_end;
mod gist;
mod lifecycle;
mod names;
mod offline_pages;
mod offline_records;
mod recovered_instance;
mod slot;
mod support;
