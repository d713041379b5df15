//! The storage-broker, as timelines need it.

use std::{collections::HashMap, sync::Arc};

use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::{BrokerClient, ClusterView, LeavingWriter, Promotion, TimelineView, watch_cluster},
};
use palimpsest_runtime::TaskScope;
use palimpsest_types::{Lsn, RequestId, SystemIdentifier};
use tokio::sync::{Notify, watch};

/// What the storage-broker last told, and a way to ask it. Only an attach needs an answer.
#[derive(Debug, Clone)]
pub struct Broker {
    client: BrokerClient,
    view: watch::Receiver<ClusterView>,
    news: Arc<Notify>,
}

/// What a node is told to do with a timeline, as far as everybody sees it.
type Order = (TimelineRef, String, Option<SystemIdentifier>);

impl Broker {
    /// The broker at this address, whose pictures are followed in `scope`.
    ///
    /// # Errors
    /// If it is not an address.
    pub fn new(address: &str, scope: &TaskScope) -> Result<Self, RemoteError> {
        Ok(Self {
            client: BrokerClient::new(address)?,
            view: watch_cluster(address, scope)?,
            news: Arc::default(),
        })
    }

    /// Notified when there is something to tell or to ask for, so that a heartbeat is due.
    pub fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.news)
    }

    /// Has a heartbeat ask for orders as soon as the picture shows that there are others for the node at this address.
    pub fn ask_for_orders(&self, node: String, scope: &TaskScope) {
        let (mut view, news) = (self.view.clone(), self.news());
        let token = scope.token().clone();
        scope.spawn("orders", async move {
            let mut known = Vec::new();
            let watching = async {
                while view.changed().await.is_ok() {
                    let orders = orders(&view.borrow_and_update(), &node);
                    if orders != known {
                        known = orders;
                        news.notify_one();
                    }
                }
            };
            // Cancel-safe: it only waits.
            token.run_until_cancelled(watching).await;
        });
    }

    /// Has a heartbeat tell soon what somebody may wait for.
    pub(super) fn tell_soon(&self) {
        self.news.notify_one();
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

/// What the node at an address is to do.
fn orders(view: &ClusterView, node: &str) -> Vec<Order> {
    let is_own = |view: &&TimelineView| view.writer.as_deref() == Some(node);
    let own = view.timelines.iter().filter(is_own);
    own.map(|view| (view.timeline, view.source.clone(), view.source_cluster))
        .collect()
}

#[cfg(test)]
mod tests {
    use palimpsest_api::broker::TimelineStatus;
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    #[test]
    fn orders_are_those_of_the_node_and_differ_when_another_cluster_is_to_be_read() {
        let of = |writer: Option<&str>, cluster: u64| {
            let mut view = ClusterView::default();
            view.timelines.push(TimelineView {
                writer: writer.map(str::to_owned),
                source_cluster: Some(SystemIdentifier::new(cluster)),
                timeline: TimelineRef {
                    tenant: TenantId::from_bytes([1; 16]),
                    timeline: TimelineId::from_bytes([2; 16]),
                },
                tenant_name: "shop".to_owned(),
                timeline_name: "main".to_owned(),
                status: TimelineStatus::default(),
                source: String::new(),
                slot: String::new(),
                branch: None,
            });
            orders(&view, "here:1")
        };
        assert!(of(None, 1).is_empty());
        assert!(of(Some("there:1"), 1).is_empty());
        assert_eq!(of(Some("here:1"), 1).len(), 1);
        assert_ne!(of(Some("here:1"), 1), of(Some("here:1"), 2));
    }
}
