use std::path::PathBuf;

use palimpsest_types::ByteCount;

/// Settings of a page-serve.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Settings {
    /// Where to listen, as host:port; port 0 is any free one
    #[arg(long, env = "PALIMPSEST_PAGE_SERVE__LISTEN", default_value = LISTEN)]
    pub listen: String,
    /// Where the storage-broker is, as host:port
    #[arg(long, env = "PALIMPSEST_PAGE_SERVE__BROKER", default_value = BROKER)]
    pub broker: String,
    /// Directory of the object store
    #[arg(long, env = "PALIMPSEST_PAGE_SERVE__STORE", default_value = STORE)]
    pub store: PathBuf,
    /// Memory for pages that were made, of all timelines
    #[arg(long, env = "PALIMPSEST_PAGE_SERVE__PAGE_CACHE", default_value = "256MiB", value_parser = parse_size)]
    pub page_cache: ByteCount,
    /// Memory for blocks of layers, of all timelines
    #[arg(long, env = "PALIMPSEST_PAGE_SERVE__BLOCK_CACHE", default_value = "256MiB", value_parser = parse_size)]
    pub block_cache: ByteCount,
    /// Memory for the changes of each timeline that no layer has yet
    #[arg(long, env = "PALIMPSEST_PAGE_SERVE__TAIL_MEMORY", default_value = "2GiB", value_parser = parse_size)]
    pub tail_memory: ByteCount,
    /// How long a request waits for its LSN to arrive, in seconds
    #[arg(long, env = "PALIMPSEST_PAGE_SERVE__LSN_PATIENCE_SECONDS", default_value_t = PATIENCE)]
    pub lsn_patience_seconds: u32,
}

const LISTEN: &str = "127.0.0.1:7702";
const BROKER: &str = "127.0.0.1:7700";
const STORE: &str = "data/store";
// More than wal-ingest's, which counts the same changes: it pauses first.
const TAIL: ByteCount = ByteCount::gib(2);
const BLOCKS: ByteCount = ByteCount::mib(256);
const CACHE: ByteCount = ByteCount::mib(256);
const PATIENCE: u32 = 10;

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: LISTEN.to_owned(),
            broker: BROKER.to_owned(),
            store: STORE.into(),
            page_cache: CACHE,
            block_cache: BLOCKS,
            tail_memory: TAIL,
            lsn_patience_seconds: PATIENCE,
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
        let Cli { settings } = Cli::try_parse_from(["page-serve"]).unwrap();
        assert_eq!(settings, Settings::default());
    }
}
