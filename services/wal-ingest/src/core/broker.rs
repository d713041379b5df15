//! The storage-broker, as timelines need it.

use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::{BrokerClient, ClusterView, watch_cluster},
};
use palimpsest_runtime::TaskScope;
use palimpsest_types::SystemIdentifier;
use tokio::sync::watch;

/// What the storage-broker last told, and a way to ask it. Only an attach needs an answer.
#[derive(Debug, Clone)]
pub struct Broker {
    client: BrokerClient,
    view: watch::Receiver<ClusterView>,
}

impl Broker {
    /// The broker at this address, whose pictures are followed in `scope`.
    ///
    /// # Errors
    /// If it is not an address.
    pub fn new(address: &str, scope: &TaskScope) -> Result<Self, RemoteError> {
        Ok(Self {
            client: BrokerClient::new(address)?,
            view: watch_cluster(address, scope)?,
        })
    }

    /// All other timelines that were attached, as far as is known, with their tenants' names.
    pub(super) fn other_timelines(&self, but: TimelineRef) -> Vec<(TimelineRef, String)> {
        let view = self.view.borrow();
        let others = view.timelines.iter().filter(|other| other.timeline != but);
        let attached = others.filter(|other| other.branch.is_none());
        attached
            .map(|other| (other.timeline, other.tenant_name.clone()))
            .collect()
    }

    /// Claims a cluster for the tenant of a timeline. If another tenant has it, that one's name.
    pub(super) async fn claim(
        &self,
        timeline: TimelineRef,
        cluster: SystemIdentifier,
    ) -> Result<Option<String>, RemoteError> {
        self.client.clone().claim_cluster(timeline, cluster).await
    }
}
