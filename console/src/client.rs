use std::path::{Path, PathBuf};

use palimpsest_api::{
    RemoteError,
    admin::{AdminClient, TenantInfo},
    broker::{BrokerClient, ClusterView, Role, TimelineView, watch_cluster},
    channel::connect_lazily,
    page::PageClient,
};
use palimpsest_runtime::TaskScope;
use palimpsest_types::{ErrorKind, Reason};
use tokio::sync::watch;

use crate::{
    cli::Common,
    error::CliError,
    place::{self, Announcement},
};

/// The services, as a command sees them.
#[derive(Debug)]
pub(crate) struct Client {
    endpoint: String,
    data: PathBuf,
    local: Option<Announcement>,
    broker: BrokerClient,
}

/// Pictures of the cluster as they come. Ends with this value.
#[derive(Debug)]
pub(crate) struct Watch {
    pictures: watch::Receiver<ClusterView>,
    scope: TaskScope,
}

const DEFAULT_ENDPOINT: &str = "127.0.0.1:7700";

impl Client {
    /// A client of the broker that the options name, or of the one in the data directory.
    pub(crate) fn new(common: &Common) -> Result<Self, CliError> {
        let local = match common.endpoint {
            Some(_) => None,
            None => place::look(&common.data)?,
        };
        let announced = local.as_ref().map(|local| local.broker.clone());
        let endpoint = common.endpoint.clone().or(announced);
        let endpoint = endpoint.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let broker = BrokerClient::new(&endpoint)
            .map_err(CliError::remote("the address of the storage-broker"))?;
        Ok(Self {
            endpoint,
            data: common.data.clone(),
            local,
            broker,
        })
    }

    /// Where the broker is.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// What the data directory says, if the broker was found there.
    pub(crate) fn local(&self) -> Option<&Announcement> {
        self.local.as_ref()
    }

    /// The broker. What it answers goes through [`Client::refused`].
    pub(crate) fn broker(&mut self) -> &mut BrokerClient {
        &mut self.broker
    }

    /// The picture as it is now.
    pub(crate) async fn cluster(&mut self) -> Result<ClusterView, CliError> {
        let view = self.broker.cluster().await;
        view.map_err(|source| self.refused("asking for the timelines", source))
    }

    /// What people and consoles ask.
    pub(crate) fn admin(&self) -> Result<AdminClient, CliError> {
        let admin = AdminClient::new(&self.endpoint);
        admin.map_err(CliError::remote("the address of the storage-broker"))
    }

    /// Whether the tenant of a timeline has a source that is read.
    pub(crate) async fn has_source(&self, timeline: &TimelineView) -> Result<bool, CliError> {
        let tenants = self.admin()?.tenants().await;
        let tenants = tenants.map_err(|error| self.refused("asking for the tenants", error))?;
        let of_timeline = |tenant: &&TenantInfo| tenant.tenant == timeline.timeline.tenant;
        let tenant = tenants.iter().find(of_timeline);
        Ok(tenant.is_some_and(|tenant| !tenant.source.is_empty()))
    }

    /// Pictures from now on.
    pub(crate) fn watch(&self) -> Result<Watch, CliError> {
        let scope = TaskScope::default();
        let pictures = watch_cluster(&self.endpoint, &scope)
            .map_err(|source| self.refused("asking for the timelines", source))?;
        Ok(Watch { pictures, scope })
    }

    /// A client of some page-serve that answers.
    pub(crate) async fn pages(&self, view: &ClusterView) -> Result<PageClient, CliError> {
        let mut failure = CliError::NoPageServe;
        for address in view.addresses(Role::PageServe) {
            let connected = async { PageClient::connect(connect_lazily(&address)?).await };
            match connected.await {
                Ok(client) => return Ok(client),
                Err(source) => {
                    let what = format!("connecting to page-serve at {address}");
                    failure = CliError::Remote { what, source };
                }
            }
        }
        Err(failure)
    }

    /// The broker's refusal, or that it is not there.
    pub(crate) fn refused(&self, what: impl Into<String>, source: RemoteError) -> CliError {
        match (source.kind, source.reason) {
            (ErrorKind::NotReady, None | Some(Reason::Unreachable)) => CliError::Unreachable {
                endpoint: self.endpoint.clone(),
                source,
            },
            _ => CliError::Remote {
                what: what.into(),
                source,
            },
        }
    }
}

impl Watch {
    /// The first picture, from now on, of which `decide` makes something.
    pub(crate) async fn until<T>(
        &mut self,
        mut decide: impl FnMut(&ClusterView) -> Option<T>,
    ) -> Option<T> {
        loop {
            self.pictures.changed().await.ok()?;
            if let Some(decision) = decide(&self.pictures.borrow_and_update()) {
                return Some(decision);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.scope.token().cancel();
    }
}

/// A timeline by the name that a person gave.
pub(crate) fn find<'a>(view: &'a ClusterView, name: &str) -> Result<&'a TimelineView, CliError> {
    view.find(name).ok_or_else(|| CliError::UnknownTimeline {
        name: name.to_owned(),
        known: view.timelines.iter().map(full_name).collect(),
    })
}

/// `TENANT/TIMELINE`.
pub(crate) fn full_name(view: &TimelineView) -> String {
    format!("{}/{}", view.tenant_name, view.timeline_name)
}
