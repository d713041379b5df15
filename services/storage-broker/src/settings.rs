use std::path::PathBuf;

use palimpsest_settings::{PortBase, Service};
use serde::{Deserialize, Serialize};

use crate::core::Timing;

/// Settings of a storage-broker.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Where to listen, as host:port; port 0 is any free one
    #[arg(long)]
    pub listen: String,
    /// Directory of the object store; made for the owner's eyes only, because the catalog in it
    /// holds connection strings with their passwords
    #[arg(long)]
    pub store: PathBuf,
    /// Leases of members; the same everywhere, so no option.
    #[arg(skip)]
    #[serde(skip)]
    pub timing: Timing,
}

impl palimpsest_settings::Settings for Settings {
    const SERVICE: Option<Service> = Some(Service::StorageBroker);

    fn defaults(ports: PortBase) -> Self {
        Self {
            listen: ports.address(Service::StorageBroker),
            store: "data/store".into(),
            timing: Timing::default(),
        }
    }

    fn listen(&self) -> Option<&str> {
        Some(&self.listen)
    }
}

impl Default for Settings {
    fn default() -> Self {
        palimpsest_settings::Settings::defaults(PortBase::default())
    }
}
