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
    /// Memory for changes, of all timelines
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__MEMORY", default_value = "1GiB", value_parser = parse_size)]
    pub memory: ByteCount,
    /// Local disk for WAL and layers that the object store does not have yet, of all timelines; when
    /// it is used up, they pause
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__LOCAL_DISK", default_value = "20GiB", value_parser = parse_size)]
    pub local_disk: ByteCount,
    /// Changes that become one layer, as they are in memory
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__LAYER_SIZE", default_value = "256MiB", value_parser = parse_size)]
    pub layer_size: ByteCount,
    /// Changes become a layer after so many seconds, however few they are
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__LAYER_AGE_SECONDS", default_value_t = LAYER_AGE)]
    pub layer_age_seconds: u32,
    /// WAL that a slot of ours may hold back on the source's disk before it is dropped
    #[arg(long, env = "PALIMPSEST_WAL_INGEST__SLOT_RETENTION_LIMIT", default_value = "10GiB", value_parser = parse_size)]
    pub slot_retention_limit: ByteCount,
}

const LISTEN: &str = "127.0.0.1:7701";
const BROKER: &str = "127.0.0.1:7700";
const STORE: &str = "data/store";
const DATA: &str = "data/wal-ingest";
const MEMORY: ByteCount = ByteCount::gib(1);
const LOCAL_DISK: ByteCount = ByteCount::gib(20);
const LAYER_SIZE: ByteCount = ByteCount::mib(256);
const LAYER_AGE: u32 = 300;
const SLOT: ByteCount = ByteCount::gib(10);

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: LISTEN.to_owned(),
            broker: BROKER.to_owned(),
            store: STORE.into(),
            data: DATA.into(),
            memory: MEMORY,
            local_disk: LOCAL_DISK,
            layer_size: LAYER_SIZE,
            layer_age_seconds: LAYER_AGE,
            slot_retention_limit: SLOT,
        }
    }
}

fn parse_size(text: &str) -> Result<ByteCount, String> {
    text.parse()
        .map_err(|error: palimpsest_types::ParseByteCountError| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn an_empty_command_line_is_the_default() {
        let Cli { settings } = Cli::try_parse_from(["wal-ingest"]).unwrap();
        assert_eq!(settings, Settings::default());
    }
}
