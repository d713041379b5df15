//! A PostgreSQL that was started for a branch: its directory below the data directory of `pal up`, what is
//! remembered of it there, and its server.
//!
//! ```text
//! computes/TIMELINE/compute.json  who it is
//!                   data/         the data directory
//!                   run/          its socket, for its owner alone
//!                   log           what it says
//! computes/init-TENANT/           the same of one that is only there while `pal init` makes a tenant of it
//! ```

mod collations;
mod files;
mod place;
mod server;

pub(crate) use files::{Access, access, first_settings, settings, user_maps};
pub(crate) use place::{ComputePlace, Record};
pub use server::Programs;
pub(crate) use server::Server;
