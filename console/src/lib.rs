//! `pal`: runs Palimpsest on one machine and looks into it from a terminal.
//!
//! ```text
//! cli         what can be asked for
//! commands/   one file per family of commands: ask a service, print the answer
//! stack       the services, in this one process (`pal up`)
//! place       the data directory: who runs there, and where its broker is
//! client      the services as commands see them
//! output      standard output: text, tables, JSON
//! moment      an LSN or a time, as a person names it; point: which LSN that is
//! unpack      a tar archive as files
//! compute/    a PostgreSQL that was started for a branch
//! page_view   a page's bytes in words
//! branch_tree  timelines as a tree
//! layer_picture  the layers of a timeline as SVG
//! ```
//!
//! Commands decide nothing about storage; they only know `libs/api`. Errors say what failed, where,
//! and what to do; [`CliError::exit_code`] is stable.

mod branch_tree;
pub mod cli;
mod client;
pub mod commands;
pub mod compute;
mod error;
mod hex_dump;
mod layer_picture;
pub mod moment;
mod output;
mod page_view;
pub mod place;
mod point;
mod progress;
mod relation;
pub mod stack;
mod told;
pub mod unpack;
mod views;

pub use cli::Cli;
pub use error::CliError;
pub use output::{Format, Output};
