//! Where the engine's programs are, and its limits.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use palimpsest_redo::{REQUEST_LIMIT, START_LIMIT};
use palimpsest_types::ByteCount;

use crate::run_as::RunAs;

/// Settings of one engine. [`EngineSettings::discover`] gives production values.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// The `postgres` binary, of the major version that wrote the WAL.
    pub postgres: PathBuf,
    /// `palimpsest_redo.so`, built for that version.
    pub library: PathBuf,
    /// `mkcontrol`, built for that version.
    pub mkcontrol: PathBuf,
    /// Where the process's private directory is made.
    pub scratch: PathBuf,
    /// On if the cluster that wrote the WAL has data checksums or `wal_log_hints`; otherwise pages
    /// come out with a wrong `pd_lsn` now and then.
    pub wal_log_hints: bool,
    /// On if nobody waits for what the process does: it has low priority, and gives way to threads
    /// that wake up as soon as they do.
    pub in_background: bool,
    /// Whom the process runs as. Required when the engine itself runs as root.
    pub run_as: Option<RunAs>,
    /// How long the process may work on one request before it is killed.
    pub request_timeout: Duration,
    /// How long a process may take to start.
    pub start_timeout: Duration,
    /// Address space of the process. About 75 MiB are used by its code and buffers; a request may
    /// need three times its size on top.
    pub memory_limit: ByteCount,
    /// Requests taken in before they are answered; who has more waits.
    pub max_taken: usize,
    /// Of those, requests given to the process before it has answered.
    pub max_in_flight: usize,
    /// Bytes of requests given to the engine before they are answered. One larger request is
    /// served alone.
    pub max_in_flight_bytes: ByteCount,
}

/// A program of the engine is missing.
#[derive(Debug, thiserror::Error)]
#[error("cannot find {}; install PostgreSQL and run `make -C compute/redo`", path.display())]
pub struct DiscoverError {
    path: PathBuf,
    source: io::Error,
}

impl EngineSettings {
    /// Production values, for the `postgres` in `bin_dir` and what `compute/redo` built in
    /// `build_dir`.
    ///
    /// # Errors
    /// If one of the three files does not exist.
    pub fn discover(bin_dir: &Path, build_dir: &Path) -> Result<Self, DiscoverError> {
        let find = |directory: &Path, name: &str| {
            let path = directory.join(name);
            path.canonicalize()
                .map_err(|source| DiscoverError { path, source })
        };
        Ok(Self {
            postgres: find(bin_dir, "postgres")?,
            library: find(build_dir, "palimpsest_redo.so")?,
            mkcontrol: find(build_dir, "mkcontrol")?,
            scratch: std::env::temp_dir(),
            wal_log_hints: false,
            in_background: false,
            run_as: None,
            request_timeout: REQUEST_LIMIT,
            start_timeout: START_LIMIT,
            memory_limit: ByteCount::mib(384),
            max_taken: 128,
            max_in_flight: 128,
            max_in_flight_bytes: ByteCount::mib(16),
        })
    }
}
