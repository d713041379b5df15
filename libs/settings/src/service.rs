//! The services that have settings.

use std::fmt;

/// A service, as its section of a file, its variables and its ports are named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Knows who is there.
    StorageBroker,
    /// Reads WAL.
    WalIngest,
    /// Serves pages.
    PageServe,
    /// Replays records.
    RedoWorker,
    /// Makes layers anew.
    Compactor,
}

impl Service {
    /// All of them, in the order of their ports.
    pub const ALL: [Self; 5] = [
        Self::StorageBroker,
        Self::WalIngest,
        Self::PageServe,
        Self::RedoWorker,
        Self::Compactor,
    ];

    /// Its name, also that of its section.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StorageBroker => "storage-broker",
            Self::WalIngest => "wal-ingest",
            Self::PageServe => "page-serve",
            Self::RedoWorker => "redo-worker",
            Self::Compactor => "compactor",
        }
    }

    /// Its port, counted from the base.
    pub(crate) const fn port_offset(self) -> u16 {
        match self {
            Self::StorageBroker => 0,
            Self::WalIngest => 1,
            Self::PageServe => 2,
            Self::RedoWorker => 3,
            Self::Compactor => 4,
        }
    }

    /// The names of all, for messages.
    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
