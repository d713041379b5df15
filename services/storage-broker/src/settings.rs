use std::path::PathBuf;

use crate::core::Timing;

/// Settings of a storage-broker.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Settings {
    /// Where to listen, as host:port; port 0 is any free one
    #[arg(long, env = "PALIMPSEST_STORAGE_BROKER__LISTEN", default_value = LISTEN)]
    pub listen: String,
    /// Directory of the object store; made for the owner's eyes only, because the catalog in it
    /// holds connection strings with their passwords
    #[arg(long, env = "PALIMPSEST_STORAGE_BROKER__STORE", default_value = STORE)]
    pub store: PathBuf,
    /// Leases of members; the same everywhere, so no option.
    #[arg(skip)]
    pub timing: Timing,
}

const LISTEN: &str = "127.0.0.1:7700";
const STORE: &str = "data/store";

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: LISTEN.to_owned(),
            store: STORE.into(),
            timing: Timing::default(),
        }
    }
}
