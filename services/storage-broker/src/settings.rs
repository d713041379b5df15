use std::path::Path;

use palimpsest_settings::{PortBase, Service};
use palimpsest_store::StoreLocation;
use serde::{Deserialize, Serialize};

use crate::core::Timing;

/// Settings of a storage-broker.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Where to listen, as host:port; port 0 is any free one
    #[arg(long)]
    pub listen: String,
    /// The object store: a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or
    /// az://CONTAINER/PREFIX. For the owner's eyes only, as a new directory is made: the catalog in
    /// it holds connection strings with their passwords
    #[arg(long)]
    pub store: StoreLocation,
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
            store: Path::new("data/store").into(),
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
