use std::path::PathBuf;

use palimpsest_types::ByteCount;

/// Settings of a wal-ingest.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Settings {
    /// Where to listen, as host:port; port 0 is any free one
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__LISTEN", default_value = LISTEN)]
    pub listen: String,
    /// Where the storage-broker is, as host:port
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__BROKER", default_value = BROKER)]
    pub broker: String,
    /// Directory of the object store
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__STORE", default_value = STORE)]
    pub store: PathBuf,
    /// Directory of the WAL that this node keeps
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__DATA", default_value = DATA)]
    pub data: PathBuf,
    /// Changes kept in memory for each timeline; when they are more, the timeline pauses
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__TAIL_MEMORY", default_value_t = TAIL, value_parser = parse_size)]
    pub tail_memory: ByteCount,
    /// WAL that a slot of ours may hold back on the source's disk before it is dropped
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__SLOT_RETENTION_LIMIT", default_value_t = SLOT, value_parser = parse_size)]
    pub slot_retention_limit: ByteCount,
}

const LISTEN: &str = "127.0.0.1:7701";
const BROKER: &str = "127.0.0.1:7700";
const STORE: &str = "data/store";
const DATA: &str = "data/wal-ingest";
const TAIL: ByteCount = ByteCount::gib(1);
const SLOT: ByteCount = ByteCount::gib(10);

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: LISTEN.to_owned(),
            broker: BROKER.to_owned(),
            store: STORE.into(),
            data: DATA.into(),
            tail_memory: TAIL,
            slot_retention_limit: SLOT,
        }
    }
}

fn parse_size(text: &str) -> Result<ByteCount, String> {
    text.parse()
        .map_err(|error: palimpsest_types::ParseByteCountError| error.to_string())
}
