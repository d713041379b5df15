use std::{num::NonZeroUsize, path::PathBuf};

/// Settings of a redo-worker.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Settings {
    /// Where to listen, as host:port; port 0 is any free one
    #[arg(long, env = "PALIMPSEST_REDO_WORKER__LISTEN", default_value = LISTEN)]
    pub listen: String,
    /// Where the storage-broker is, as host:port
    #[arg(long, env = "PALIMPSEST_REDO_WORKER__BROKER", default_value = BROKER)]
    pub broker: String,
    /// Directory of PostgreSQL's programs
    #[arg(long, env = "PALIMPSEST_REDO_WORKER__PG_BIN", default_value = PG_BIN)]
    pub pg_bin: PathBuf,
    /// Directory of what `make -C compute/redo` built
    #[arg(long, env = "PALIMPSEST_REDO_WORKER__REDO_BUILD", default_value = REDO_BUILD)]
    pub redo_build: PathBuf,
    /// Processes for each tenant
    #[arg(long, env = "PALIMPSEST_REDO_WORKER__PROCESSES_PER_TENANT", default_value_t = PROCESSES)]
    pub processes_per_tenant: NonZeroUsize,
    /// Tenants that have processes at the same time
    #[arg(long, env = "PALIMPSEST_REDO_WORKER__MAX_TENANTS", default_value_t = TENANTS)]
    pub max_tenants: NonZeroUsize,
}

const LISTEN: &str = "127.0.0.1:7703";
const BROKER: &str = "127.0.0.1:7700";
const PG_BIN: &str = "/usr/lib/postgresql/15/bin";
const REDO_BUILD: &str = "compute/redo/build/15";
const PROCESSES: NonZeroUsize = NonZeroUsize::MIN;
const TENANTS: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not 0");

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: LISTEN.to_owned(),
            broker: BROKER.to_owned(),
            pg_bin: PG_BIN.into(),
            redo_build: REDO_BUILD.into(),
            processes_per_tenant: PROCESSES,
            max_tenants: TENANTS,
        }
    }
}
