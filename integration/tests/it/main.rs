//! The judges.
#![expect(clippy::unwrap_used, reason = "a judge fails by panicking")]

mod answers;
mod bucket;
mod c_client;
mod consistency_images;
mod consistency_served;
mod control;
mod databases;
mod disk_full;
mod documented;
mod durability;
mod end_to_end;
mod fencing;
mod gist;
mod kill;
mod laggards;
mod lifecycle;
mod limits;
mod many;
mod names;
mod offline_pages;
mod offline_records;
mod paused_attach;
mod recovered_instance;
mod settings;
mod slot;
mod slru;
mod source_crash;
mod stored_bytes;
mod support;
mod tablespaces;
mod tail_room;
mod telemetry;
mod torn_backup;
mod under_load;
