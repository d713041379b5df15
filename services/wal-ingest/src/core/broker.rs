//! The storage-broker, as timelines need it.

use std::collections::HashMap;

use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::{BrokerClient, ClusterView, LeavingWriter, Promotion, watch_cluster},
};
use palimpsest_runtime::TaskScope;
use palimpsest_types::{Lsn, RequestId, SystemIdentifier};
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

    /// How much of timelines others need in the object store, who begin to write branches on them.
    pub(super) fn begun_on(&self) -> HashMap<TimelineRef, Lsn> {
        let mut begun_on = HashMap::new();
        let view = self.view.borrow();
        for written in view.timelines.iter().filter(|view| view.is_written()) {
            // What nobody writes between has no writer who could store it.
            let mut at = Some(written);
            while let Some(branch) = at.and_then(|view| view.branch) {
                let parent = TimelineRef {
                    timeline: branch.timeline,
                    ..written.timeline
                };
                let needed = begun_on.entry(parent).or_default();
                *needed = branch.lsn.max(*needed);
                at = view.timeline(parent);
            }
        }
        begun_on
    }

    /// Has another timeline read from a server that was promoted, and lacks the end of this one.
    pub(super) async fn follow_promotion(
        &self,
        writer: LeavingWriter,
        promotion: Promotion,
    ) -> Result<TimelineRef, RemoteError> {
        let mut client = self.client.clone();
        client.follow_promotion(writer, promotion).await
    }

    /// Has a timeline that has stopped go on from a base backup.
    pub(super) async fn reattach(
        &self,
        timeline: TimelineRef,
        id: RequestId,
    ) -> Result<Lsn, RemoteError> {
        self.client.clone().reattach(timeline, id).await
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
