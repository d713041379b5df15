use std::{num::NonZeroUsize, path::PathBuf};

use palimpsest_settings::{PortBase, Service};
use serde::{Deserialize, Serialize};

/// Settings of a redo-worker.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Where to listen, as host:port; port 0 is any free one
    #[arg(long)]
    pub listen: String,
    /// Where the storage-broker is, as host:port
    #[arg(long)]
    pub broker: String,
    /// Directory of PostgreSQL's programs
    #[arg(long)]
    pub pg_bin: PathBuf,
    /// Directory of what `make -C compute/redo` built
    #[arg(long)]
    pub redo_build: PathBuf,
    /// Processes for each tenant, besides one for work that nobody waits for
    #[arg(long)]
    pub processes_per_tenant: NonZeroUsize,
    /// Tenants that have processes at the same time
    #[arg(long)]
    pub max_tenants: NonZeroUsize,
}

const TENANTS: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not 0");

impl palimpsest_settings::Settings for Settings {
    const SERVICE: Option<Service> = Some(Service::RedoWorker);

    fn defaults(ports: PortBase) -> Self {
        Self {
            listen: ports.address(Service::RedoWorker),
            broker: ports.address(Service::StorageBroker),
            pg_bin: "/usr/lib/postgresql/15/bin".into(),
            redo_build: "compute/redo/build/15".into(),
            processes_per_tenant: NonZeroUsize::MIN,
            max_tenants: TENANTS,
        }
    }

    fn listen(&self) -> Option<&str> {
        Some(&self.listen)
    }

    fn check(&self) -> Vec<(&'static str, String)> {
        palimpsest_service_kit::check_broker(&self.broker)
    }
}

impl Default for Settings {
    fn default() -> Self {
        palimpsest_settings::Settings::defaults(PortBase::default())
    }
}
