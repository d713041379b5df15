//! The judges.
#![expect(clippy::unwrap_used, reason = "a judge fails by panicking")]

mod consistency_images;
mod consistency_served;
mod durability;
mod end_to_end;
mod fencing;
mod gist;
mod kill;
mod lifecycle;
mod names;
mod offline_pages;
mod offline_records;
mod recovered_instance;
mod slot;
mod slru;
mod support;
mod under_load;
