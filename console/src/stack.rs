//! All services in one process, over loopback gRPC: what `pal up` runs.
//!
//! They are the same libraries that the services' own programs run, and they talk as they would
//! between machines. Each lives in a scope of its own, so that they stop one after the other: who
//! writes first, the storage-broker last.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use palimpsest_runtime::{CancellationToken, TaskScope};
use palimpsest_settings::{Effective, PortBase, Problems, Service, Settings, Sources, merge};
use palimpsest_store::StoreLocation;
use palimpsest_types::ErrorKind;

use crate::place::{Announcement, Place};

/// What to run, and where.
#[derive(Debug, Clone, Default)]
pub struct StackSettings {
    /// Where the ports begin.
    pub port_base: PortBase,
    /// Directory of PostgreSQL's programs, if it is not the usual one.
    pub pg_bin: Option<PathBuf>,
    /// Directory of what `compute/redo` built, if it is not the usual one.
    pub redo_build: Option<PathBuf>,
    /// The object store of all services, if it is not a directory beside the rest.
    pub store: Option<StoreLocation>,
    /// What else the services are told.
    pub sources: Sources,
}

/// The settings of all services.
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    storage_broker: Effective<palimpsest_storage_broker::Settings>,
    redo_worker: Effective<palimpsest_redo_worker::Settings>,
    page_serve: Effective<palimpsest_page_serve::Settings>,
    wal_ingest: Effective<palimpsest_wal_ingest::Settings>,
    compactor: Effective<palimpsest_compactor::Settings>,
}

/// The services, running.
#[derive(Debug)]
pub struct Stack {
    services: Vec<Member>,
    store: StoreLocation,
}

/// One of them.
#[derive(Debug)]
struct Member {
    name: &'static str,
    address: String,
    /// Where metrics and probes are.
    side: SocketAddr,
    scope: TaskScope,
}

/// A service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// Settings are wrong.
    #[error(transparent)]
    Settings(#[from] Problems),
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
            Self::Settings(_) => true,
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
        let settings = settings.services(place.dir())?;
        let mut stack = Self {
            services: Vec::new(),
            store: settings.storage_broker.settings.store.clone(),
        };
        match stack.start_all(settings).await {
            Ok(()) => Ok(stack),
            Err(error) => {
                stack.stop().await;
                Err(error)
            }
        }
    }

    async fn start_all(&mut self, settings: ServiceSettings) -> Result<(), StackError> {
        let (scope, service) = (TaskScope::default(), Service::StorageBroker);
        let own = settings.storage_broker.settings;
        let running = palimpsest_storage_broker::run(own, &scope).await;
        let running = running.map_err(|error| failed(service, error.kind(), error))?;
        // The others are told where it is, not where it was to be.
        let broker = running.address().to_string();
        self.add(service, (running.address(), running.side_address()), scope);

        let (scope, service) = (TaskScope::default(), Service::RedoWorker);
        let mut own = settings.redo_worker.settings;
        own.broker.clone_from(&broker);
        let running = palimpsest_redo_worker::run(own, &scope).await;
        let running = running.map_err(|error| failed(service, error.kind(), error))?;
        self.add(service, (running.address(), running.side_address()), scope);

        let (scope, service) = (TaskScope::default(), Service::PageServe);
        let mut own = settings.page_serve.settings;
        own.broker.clone_from(&broker);
        let running = palimpsest_page_serve::run(own, &scope).await;
        let running = running.map_err(|error| failed(service, error.kind(), error))?;
        self.add(service, (running.address(), running.side_address()), scope);

        let (scope, service) = (TaskScope::default(), Service::Compactor);
        let mut own = settings.compactor.settings;
        own.broker.clone_from(&broker);
        let running = palimpsest_compactor::run(own, &scope).await;
        let running = running.map_err(|error| failed(service, error.kind(), error))?;
        self.add(service, (running.address(), running.side_address()), scope);

        let (scope, service) = (TaskScope::default(), Service::WalIngest);
        let mut own = settings.wal_ingest.settings;
        own.broker = broker;
        let running = palimpsest_wal_ingest::run(own, &scope).await;
        let running = running.map_err(|error| failed(service, error.kind(), error))?;
        self.add(service, (running.address(), running.side_address()), scope);
        Ok(())
    }

    fn add(
        &mut self,
        service: Service,
        (address, side): (SocketAddr, SocketAddr),
        scope: TaskScope,
    ) {
        self.services.push(Member {
            name: service.name(),
            address: address.to_string(),
            side,
            scope,
        });
    }

    /// Names and addresses, in the order in which they were started.
    pub fn addresses(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.services
            .iter()
            .map(|service| (service.name, service.address.as_str()))
    }

    /// Names, and where metrics and probes are, in the same order.
    pub fn side_addresses(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        self.services
            .iter()
            .map(|service| (service.name, service.side))
    }

    /// Where the storage-broker is.
    pub fn broker(&self) -> &str {
        let broker = self
            .addresses()
            .find(|(name, _)| *name == Service::StorageBroker.name());
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
    /// The settings of all services that keep their files below `dir`.
    ///
    /// # Errors
    /// What is wrong with any of them.
    pub fn services(&self, dir: &Path) -> Result<ServiceSettings, Problems> {
        let store = dir.join("store");
        let storage_broker = palimpsest_storage_broker::Settings {
            store: store.clone().into(),
            ..palimpsest_storage_broker::Settings::defaults(self.port_base)
        };
        let redo_worker = palimpsest_redo_worker::Settings {
            pg_bin: default_pg_bin(),
            redo_build: default_redo_build(),
            ..palimpsest_redo_worker::Settings::defaults(self.port_base)
        };
        let page_serve = palimpsest_page_serve::Settings {
            store: store.clone().into(),
            ..palimpsest_page_serve::Settings::defaults(self.port_base)
        };
        let compactor = palimpsest_compactor::Settings {
            store: store.clone().into(),
            ..palimpsest_compactor::Settings::defaults(self.port_base)
        };
        let wal_ingest = palimpsest_wal_ingest::Settings {
            store: store.into(),
            data: dir.join("wal-ingest"),
            ..palimpsest_wal_ingest::Settings::defaults(self.port_base)
        };
        let storing = self.sources.clone().with_flags(self.store_flags());
        let redo = self.sources.clone().with_flags(self.redo_flags());
        let mut problems = Vec::new();
        let storage_broker = noting(&mut problems, merge(&storage_broker, &storing));
        let redo_worker = noting(&mut problems, merge(&redo_worker, &redo));
        let page_serve = noting(&mut problems, merge(&page_serve, &storing));
        let wal_ingest = noting(&mut problems, merge(&wal_ingest, &storing));
        let compactor = noting(&mut problems, merge(&compactor, &storing));
        let storing = (storage_broker, page_serve, wal_ingest, compactor);
        match (redo_worker, storing) {
            (
                Some(redo_worker),
                (Some(storage_broker), Some(page_serve), Some(wal_ingest), Some(compactor)),
            ) => {
                let services = ServiceSettings {
                    storage_broker,
                    redo_worker,
                    page_serve,
                    wal_ingest,
                    compactor,
                };
                services.with_one_store()
            }
            _ => Err(Problems(problems)),
        }
    }

    fn store_flags(&self) -> Vec<(String, String)> {
        let flag = |store: &StoreLocation| ("store".to_owned(), store.to_string());
        self.store.iter().map(flag).collect()
    }

    fn redo_flags(&self) -> Vec<(String, String)> {
        let flags = [("pg-bin", &self.pg_bin), ("redo-build", &self.redo_build)];
        let given = |(key, path): (&str, &Option<PathBuf>)| {
            let path = path.as_ref()?;
            Some((key.to_owned(), path.to_string_lossy().into_owned()))
        };
        flags.into_iter().filter_map(given).collect()
    }
}

impl ServiceSettings {
    /// Fails unless all have the same object store: what one writes the others read.
    fn with_one_store(self) -> Result<Self, Problems> {
        let store = self.store();
        let differs = |found: &StoreLocation| {
            let message = format!(
                "{found} is not the store of the storage-broker, which is {store}; they share one: name it by --store, or in each section"
            );
            (found != store).then_some(message)
        };
        let page_serve = differs(&self.page_serve.settings.store)
            .map(|message| self.page_serve.problem("store", message));
        let wal_ingest = differs(&self.wal_ingest.settings.store)
            .map(|message| self.wal_ingest.problem("store", message));
        let compactor = differs(&self.compactor.settings.store)
            .map(|message| self.compactor.problem("store", message));
        let problems = [page_serve, wal_ingest, compactor];
        let problems: Vec<_> = problems.into_iter().flatten().collect();
        match problems.is_empty() {
            true => Ok(self),
            false => Err(Problems(problems)),
        }
    }

    /// Directory of PostgreSQL's programs.
    pub fn pg_bin(&self) -> &Path {
        &self.redo_worker.settings.pg_bin
    }

    /// Directory of the redo library.
    pub fn redo_build(&self) -> &Path {
        &self.redo_worker.settings.redo_build
    }

    /// The object store.
    pub fn store(&self) -> &StoreLocation {
        &self.storage_broker.settings.store
    }

    /// Directory of what is not in the object store yet.
    pub fn local(&self) -> &Path {
        &self.wal_ingest.settings.data
    }

    /// Where each service is to listen.
    pub fn listens(&self) -> [(Service, &str); 5] {
        [
            (
                Service::StorageBroker,
                self.storage_broker.settings.listen.as_str(),
            ),
            (Service::WalIngest, self.wal_ingest.settings.listen.as_str()),
            (Service::PageServe, self.page_serve.settings.listen.as_str()),
            (
                Service::RedoWorker,
                self.redo_worker.settings.listen.as_str(),
            ),
            (Service::Compactor, self.compactor.settings.listen.as_str()),
        ]
    }

    /// All of them as one file, each with its origin.
    pub fn to_toml(&self) -> String {
        [
            self.storage_broker.to_toml(),
            self.wal_ingest.to_toml(),
            self.page_serve.to_toml(),
            self.redo_worker.to_toml(),
            self.compactor.to_toml(),
        ]
        .join("\n")
    }
}

fn noting<T>(
    problems: &mut Vec<palimpsest_settings::Problem>,
    outcome: Result<T, Problems>,
) -> Option<T> {
    match outcome {
        Ok(settings) => Some(settings),
        Err(Problems(more)) => {
            problems.extend(more);
            None
        }
    }
}

fn failed<E>(service: Service, kind: ErrorKind, error: E) -> StackError
where
    E: std::error::Error + Send + Sync + 'static,
{
    StackError::Start {
        name: service.name(),
        kind,
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_settings::TomlFile;

    use super::*;

    #[test]
    fn one_file_holds_the_settings_of_all_services() {
        let text = "[page-serve]\npage-cache = '1GiB'\n[redo-worker]\npg-bin = '/pg'\n";
        let settings = StackSettings {
            port_base: 8800.try_into().unwrap(),
            redo_build: Some("/redo".into()),
            sources: Sources {
                file: Some(TomlFile::parse("p.toml", text).unwrap()),
                ..Sources::default()
            },
            ..StackSettings::default()
        };
        let printed = settings.services(Path::new("/here")).unwrap().to_toml();
        for line in [
            "listen = \"127.0.0.1:8803\" # default",
            "data = \"/here/wal-ingest\" # default",
            "page-cache = \"1GiB\" # p.toml:2",
            "pg-bin = \"/pg\" # p.toml:4",
            "redo-build = \"/redo\" # --redo-build",
        ] {
            assert!(printed.contains(line), "{line} in {printed}");
        }
    }

    #[test]
    fn a_store_for_all_beats_each_ones_own_and_there_is_one_only() {
        let text = "[page-serve]\nstore = 's3://other'\n";
        let mut settings = StackSettings {
            sources: Sources {
                file: Some(TomlFile::parse("p.toml", text).unwrap()),
                ..Sources::default()
            },
            ..StackSettings::default()
        };
        let here = Path::new("/here");
        let Problems(problems) = settings.services(here).unwrap_err();
        let told: Vec<_> = problems.iter().map(|problem| problem.in_full()).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        for words in ["p.toml:2", "s3://other", "/here/store"] {
            assert!(told[0].contains(words), "{words} in {told:?}");
        }
        settings.store = Some("s3://one/below".parse().unwrap());
        let services = settings.services(here).unwrap();
        assert_eq!(services.store().to_string(), "s3://one/below");
        let printed = services.to_toml();
        let line = "store = \"s3://one/below\" # --store";
        assert_eq!(printed.matches(line).count(), 4, "{printed}");
    }

    #[test]
    fn the_problems_of_all_services_are_told() {
        let text = "[page-serve]\ncache = 1\n[redo-worker]\nmax-tenants = 0\n";
        let settings = StackSettings {
            sources: Sources {
                file: Some(TomlFile::parse("p.toml", text).unwrap()),
                ..Sources::default()
            },
            ..StackSettings::default()
        };
        let Problems(problems) = settings.services(Path::new("/here")).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
