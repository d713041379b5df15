//! How a cluster is set up.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::PrivateMount;

/// The superuser of every cluster made here; trusted without a password.
pub const SUPERUSER: &str = "postgres";

/// The socket's port when none was asked for. Every cluster has a socket directory of its own,
/// so equal numbers do not meet; it differs from PostgreSQL's default so that a forgotten `host`
/// never reaches a real server.
const PRIVATE_PORT: u16 = 54321;

const DEFAULT_PG_BIN: &str = "/usr/lib/postgresql/15/bin";

/// What a new cluster is like. The default suits tests: not durable, all WAL kept.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Where the PostgreSQL programs are.
    pub pg_bin: PathBuf,
    /// Page checksums (`initdb --data-checksums`).
    pub data_checksums: bool,
    /// Size of a WAL segment: a power of two from 1 to 1024.
    pub wal_segment_size_mib: u32,
    /// Whether commits reach the disk (`fsync`). Off is faster and survives a killed server, not a
    /// dead machine.
    pub durable: bool,
    /// Whether autovacuum runs; off where a test needs the same WAL every time.
    pub autovacuum: bool,
    /// Further lines of `postgresql.conf`; they win over the ones made from the fields above.
    pub settings: Vec<(String, String)>,
    /// Loopback port to listen on, trusting every local user; `None` is the unix socket only,
    /// which only the server's own user and root can reach.
    pub port: Option<u16>,
    /// What the server alone sees in the place of a directory.
    pub private_mount: Option<PrivateMount>,
}

/// Where the PostgreSQL programs are: `PALIMPSEST_PG_BIN`, or Debian's place for version 15.
pub fn pg_bin() -> PathBuf {
    std::env::var_os("PALIMPSEST_PG_BIN").map_or_else(|| DEFAULT_PG_BIN.into(), PathBuf::from)
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            pg_bin: pg_bin(),
            data_checksums: false,
            wal_segment_size_mib: 16,
            durable: false,
            autovacuum: true,
            settings: Vec::new(),
            port: None,
            private_mount: None,
        }
    }
}

impl ClusterOptions {
    /// These options with one more line of `postgresql.conf`.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn port_number(&self) -> u16 {
        self.port.unwrap_or(PRIVATE_PORT)
    }

    /// The text of the settings file.
    pub(super) fn configuration(&self, sockets: &Path) -> String {
        let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
        let listen = if self.port.is_some() { "127.0.0.1" } else { "" };
        let derived = [
            ("listen_addresses", listen.to_owned()),
            ("port", self.port_number().to_string()),
            ("unix_socket_directories", sockets.display().to_string()),
            ("fsync", switch(self.durable)),
            ("autovacuum", switch(self.autovacuum)),
            // No checkpoint but the ones a test asks for, and no WAL removed by any of them.
            ("max_wal_size", "64GB".to_owned()),
            ("checkpoint_timeout", "1h".to_owned()),
            ("wal_keep_size", "1TB".to_owned()),
            ("max_prepared_transactions", "16".to_owned()),
            ("shared_buffers", "64MB".to_owned()),
            ("log_line_prefix", "%m [%p] ".to_owned()),
        ];
        let asked = self
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()));
        derived
            .into_iter()
            .chain(asked)
            .fold(String::new(), |mut text, (name, value)| {
                let value = value.replace('\'', "''");
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{name} = '{value}'");
                text
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_settings_come_last_and_quotes_are_doubled() {
        let options = ClusterOptions::default().with("archive_command", "echo 'x'");
        let text = options.configuration(Path::new("/tmp/s"));
        assert!(text.ends_with("archive_command = 'echo ''x'''\n"), "{text}");
        assert!(text.contains("listen_addresses = ''\n"));
        assert!(text.contains("unix_socket_directories = '/tmp/s'\n"));
    }
}
