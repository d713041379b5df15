//! All services in one process, over loopback gRPC: what `pal up` runs.
//!
//! They are the same libraries that the services' own programs run, and they talk as they would
//! between machines. Each lives in a scope of its own, so that they stop one after the other: who
//! writes first, the storage-broker last.

use std::path::{Path, PathBuf};

use palimpsest_runtime::{CancellationToken, TaskScope};
use palimpsest_types::ErrorKind;

use crate::place::{Announcement, Place};

/// What to run, and where.
#[derive(Debug, Clone)]
pub struct StackSettings {
    /// The storage-broker's port, from which the others are counted; 0 takes free ones.
    pub port_base: u16,
    /// Directory of PostgreSQL's programs.
    pub pg_bin: PathBuf,
    /// Directory of what `compute/redo` built.
    pub redo_build: PathBuf,
}

/// The services, running.
#[derive(Debug)]
pub struct Stack {
    services: Vec<Service>,
    store: PathBuf,
}

/// One of them.
#[derive(Debug)]
struct Service {
    name: &'static str,
    address: String,
    scope: TaskScope,
}

/// A service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// Its port number would be too large.
    #[error("port base {base} leaves no room for {name}; take a lower one")]
    Port {
        /// What was asked for.
        base: u16,
        /// The service without a port.
        name: &'static str,
    },
    /// It says why.
    #[error("{name} did not start")]
    Start {
        /// The service.
        name: &'static str,
        /// Whether the settings are to blame.
        kind: ErrorKind,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The version of PostgreSQL whose programs and redo library are used.
const PG_MAJOR: u32 = 15;
const BROKER: &str = "storage-broker";
const REDO_WORKER: &str = "redo-worker";
const PAGE_SERVE: &str = "page-serve";
const WAL_INGEST: &str = "wal-ingest";
/// Ports, counted from the base.
const PORTS: [(&str, u16); 4] = [
    (BROKER, 0),
    (WAL_INGEST, 1),
    (PAGE_SERVE, 2),
    (REDO_WORKER, 3),
];

/// Where Debian and its kin put the PostgreSQL programs.
pub fn default_pg_bin() -> PathBuf {
    format!("/usr/lib/postgresql/{PG_MAJOR}/bin").into()
}

/// Where the redo library is: beside an installed `pal`, or in the source tree that it was built
/// from.
pub fn default_redo_build() -> PathBuf {
    let executable = std::env::current_exe().ok();
    let prefix = executable
        .as_deref()
        .and_then(Path::parent)
        .and_then(Path::parent);
    let installed = prefix.map(|prefix| prefix.join(format!("lib/palimpsest/{PG_MAJOR}")));
    installed
        .filter(|directory| directory.is_dir())
        .unwrap_or_else(|| {
            let built = format!("../compute/redo/build/{PG_MAJOR}");
            Path::new(env!("CARGO_MANIFEST_DIR")).join(built)
        })
}

impl StackError {
    /// Whether other settings would help.
    pub fn is_about_settings(&self) -> bool {
        match self {
            Self::Port { .. } => true,
            Self::Start { kind, .. } => *kind == ErrorKind::Invalid,
        }
    }
}

impl Stack {
    /// Starts everything in a place and announces it there. If one does not start, those before it
    /// are stopped.
    ///
    /// # Errors
    /// What the service says.
    pub async fn start(settings: &StackSettings, place: &Place) -> Result<Self, StackError> {
        let mut stack = Self {
            services: Vec::new(),
            store: place.dir().join("store"),
        };
        match stack.start_all(settings, place.dir()).await {
            Ok(()) => Ok(stack),
            Err(error) => {
                stack.stop().await;
                Err(error)
            }
        }
    }

    async fn start_all(&mut self, settings: &StackSettings, dir: &Path) -> Result<(), StackError> {
        let listen = |name| settings.listen(name);
        let scope = TaskScope::default();
        let broker = palimpsest_storage_broker::Settings {
            listen: listen(BROKER)?,
            store: self.store.clone(),
            ..palimpsest_storage_broker::Settings::default()
        };
        let running = palimpsest_storage_broker::run(broker, &scope).await;
        let running = running.map_err(|error| failed(BROKER, error.kind(), error))?;
        let broker = running.address().to_string();
        self.add(BROKER, &broker, scope);

        let scope = TaskScope::default();
        let redo = palimpsest_redo_worker::Settings {
            listen: listen(REDO_WORKER)?,
            broker: broker.clone(),
            pg_bin: settings.pg_bin.clone(),
            redo_build: settings.redo_build.clone(),
            ..palimpsest_redo_worker::Settings::default()
        };
        let running = palimpsest_redo_worker::run(redo, &scope).await;
        let running = running.map_err(|error| failed(REDO_WORKER, error.kind(), error))?;
        self.add(REDO_WORKER, running.address(), scope);

        let scope = TaskScope::default();
        let pages = palimpsest_page_serve::Settings {
            listen: listen(PAGE_SERVE)?,
            broker: broker.clone(),
            store: self.store.clone(),
            ..palimpsest_page_serve::Settings::default()
        };
        let running = palimpsest_page_serve::run(pages, &scope).await;
        let running = running.map_err(|error| failed(PAGE_SERVE, error.kind(), error))?;
        self.add(PAGE_SERVE, running.address(), scope);

        let scope = TaskScope::default();
        let ingest = palimpsest_wal_ingest::Settings {
            listen: listen(WAL_INGEST)?,
            broker,
            store: self.store.clone(),
            data: dir.join("wal-ingest"),
            ..palimpsest_wal_ingest::Settings::default()
        };
        let running = palimpsest_wal_ingest::run(ingest, &scope).await;
        let running = running.map_err(|error| failed(WAL_INGEST, error.kind(), error))?;
        self.add(WAL_INGEST, running.address(), scope);
        Ok(())
    }

    fn add(&mut self, name: &'static str, address: impl ToString, scope: TaskScope) {
        self.services.push(Service {
            name,
            address: address.to_string(),
            scope,
        });
    }

    /// Names and addresses, in the order in which they were started.
    pub fn addresses(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.services
            .iter()
            .map(|service| (service.name, service.address.as_str()))
    }

    /// Where the storage-broker is.
    pub fn broker(&self) -> &str {
        let broker = self.addresses().find(|(name, _)| *name == BROKER);
        broker
            .map(|(_, address)| address)
            .expect("it is started first, or there is no stack")
    }

    /// What other processes need to know.
    pub fn announcement(&self) -> Announcement {
        Announcement {
            pid: std::process::id(),
            broker: self.broker().to_owned(),
            store: self.store.clone(),
        }
    }

    /// Waits until `stop` is cancelled, or until a service ends by itself, whose name it returns.
    pub async fn wait(&self, stop: &CancellationToken) -> Option<&'static str> {
        let ended = self.services.iter().map(|service| {
            Box::pin(async {
                service.scope.token().cancelled().await;
                service.name
            })
        });
        // Both are cancel-safe: waiting changes nothing.
        tokio::select! {
            () = stop.cancelled() => None,
            (name, ..) = futures::future::select_all(ended) => Some(name),
        }
    }

    /// Stops one after the other, the last started first.
    pub async fn stop(self) {
        for service in self.services.into_iter().rev() {
            tracing::debug!(service = service.name, "stopping");
            service.scope.stop().await;
        }
    }
}

impl StackSettings {
    /// Where a service is to listen.
    fn listen(&self, name: &'static str) -> Result<String, StackError> {
        let offset = PORTS.iter().find(|(service, _)| *service == name);
        let offset = offset.map_or(0, |(_, offset)| *offset);
        let port = match self.port_base {
            0 => Some(0),
            base => base.checked_add(offset),
        };
        let base = self.port_base;
        let port = port.ok_or(StackError::Port { base, name })?;
        Ok(format!("127.0.0.1:{port}"))
    }
}

fn failed<E>(name: &'static str, kind: ErrorKind, error: E) -> StackError
where
    E: std::error::Error + Send + Sync + 'static,
{
    StackError::Start {
        name,
        kind,
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(port_base: u16) -> StackSettings {
        StackSettings {
            port_base,
            pg_bin: default_pg_bin(),
            redo_build: default_redo_build(),
        }
    }

    #[test]
    fn ports_are_counted_from_the_base_and_zero_is_any() {
        let listen = |base, name| settings(base).listen(name).unwrap();
        assert_eq!(listen(7700, BROKER), "127.0.0.1:7700");
        assert_eq!(listen(7700, REDO_WORKER), "127.0.0.1:7703");
        assert_eq!(listen(0, PAGE_SERVE), "127.0.0.1:0");
        assert!(settings(u16::MAX).listen(PAGE_SERVE).is_err());
    }
}
