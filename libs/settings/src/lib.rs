//! Settings of the services: where they come from, how they are merged, what is wrong with them.
//!
//! ```text
//! defaults < --config FILE < PALIMPSEST_… variables < flags ─▶ merge ─▶ settings + origins
//! ```
//!
//! A service's settings are one struct. Its fields are the keys of the file, the names of the flags
//! and of the variables; its doc comments are the help text and the reference; its default is the
//! default everywhere. [`merge`] is pure; [`Sources::gather`] reads what it merges.
//!
//! Not here: what any setting means, and how a process acts on `--check-config`.

mod command_line;
pub mod duration;
mod environment;
mod file;
mod inventory;
mod merge;
mod ports;
mod problem;
mod reference;
mod service;
mod sources;

use serde::{Serialize, de::DeserializeOwned};

pub use command_line::{ConfigArgs, command, flags};
pub use file::TomlFile;
pub use inventory::{Setting, inventory, written};
pub use merge::{Effective, merge};
pub use ports::{ParsePortBaseError, PortBase, SIDE_PORT_OFFSET};
pub use problem::{Problem, Problems};
pub use reference::reference;
pub use service::Service;
pub use sources::{Origin, Sources};

/// The settings of a service, or those that every process has.
///
/// The struct derives `clap::Args`, `Serialize` and `Deserialize` with `#[serde(default,
/// deny_unknown_fields, rename_all = "kebab-case")]`; each field is `#[arg(long)]`.
pub trait Settings: clap::Args + Default + Serialize + DeserializeOwned {
    /// Whose they are. `None`: every process has them, and in a file they stand before the sections.
    const SERVICE: Option<Service>;

    /// What holds where nothing else is said.
    fn defaults(ports: PortBase) -> Self;

    /// Where it will listen, if it does.
    fn listen(&self) -> Option<&str> {
        None
    }

    /// Keys whose values can't work in a process of its own, each with what to do.
    fn check(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}
