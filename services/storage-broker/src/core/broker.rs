//! The one owner of the broker's state, and the handle to it.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use palimpsest_api::{
    TimelineRef,
    broker::{Assignment, ClusterView, Member, Role, TimelineState, TimelineStatus},
};
use palimpsest_manifest::TimelineManifests;
use palimpsest_runtime::{CancellationToken, TaskScope};
use palimpsest_store::ObjectStore;
use palimpsest_telemetry::{Counter, Registry, Sample, Sampled};
use palimpsest_types::{ErrorKind, Lsn, NodeId, SystemIdentifier, TenantId, TimelineId};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    branch::BranchSource,
    branching::AT_ONCE,
    catalog::{Catalog, CatalogError, Change},
    catalog_store::{CatalogStore, CatalogStoreError},
    catalog_writer::{ChangeError, Command, write_catalog},
    membership::{Membership, Timing, TooManyMembersError},
    picture,
    sweeper::sweep,
    tenant::{Name, NewTenant, Tenant, TenantState},
};

/// The storage-broker. Clones share it.
#[derive(Debug, Clone)]
pub struct Broker {
    events: mpsc::Sender<Event>,
    changes: mpsc::Sender<Command>,
    view: watch::Receiver<ClusterView>,
    catalog: watch::Receiver<Arc<Catalog>>,
    store: ObjectStore,
    catalogs: CatalogStore,
    /// Held by those who make a branch.
    branching: Arc<Semaphore>,
    heartbeats: Counter,
}

/// A heartbeat was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// There is no room for another member.
    #[error(transparent)]
    TooManyMembers(#[from] TooManyMembersError),
    /// The broker ends.
    #[error("the storage-broker is shutting down; try again")]
    Stopped,
}

/// What changes the state.
#[derive(Debug)]
pub(super) enum Event {
    Heartbeat {
        member: Member,
        statuses: Vec<(TimelineRef, TimelineStatus)>,
        answer: oneshot::Sender<Result<Vec<Assignment>, TooManyMembersError>>,
    },
    Leave {
        node: NodeId,
        /// Dropped when the node is out of the picture.
        left: oneshot::Sender<()>,
    },
    Catalog {
        catalog: Catalog,
        /// Dropped when the change is in the picture.
        applied: oneshot::Sender<()>,
    },
    Tick,
}

struct State {
    catalog: watch::Sender<Arc<Catalog>>,
    membership: Membership,
    changes: mpsc::Sender<Command>,
    view: watch::Sender<ClusterView>,
}

/// Events that wait, at most; senders wait then.
const EVENTS: usize = 256;
/// Changes of the catalog that wait, at most.
const CHANGES: usize = 64;
/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(250);

impl Broker {
    /// Starts it in `scope`, with the catalog as it is in the store.
    ///
    /// # Errors
    /// If the catalog can't be read.
    pub async fn start(
        store: ObjectStore,
        timing: Timing,
        scope: &TaskScope,
    ) -> Result<Self, CatalogStoreError> {
        let catalogs = CatalogStore::new(store.clone());
        let newest = catalogs.newest().await?.state;
        let (events, queue) = mpsc::channel(EVENTS);
        let (changes, commands) = mpsc::channel(CHANGES);
        let (sender, view) = watch::channel(ClusterView::default());
        let (catalogs_sender, catalog) = watch::channel(Arc::default());
        let mut state = State {
            catalog: catalogs_sender,
            membership: Membership::new(timing, Instant::now()),
            changes: changes.clone(),
            view: sender,
        };
        state.set_catalog(newest);
        state.publish();
        let token = scope.token();
        scope.spawn("broker", state.run(queue, token.clone()));
        let writer = write_catalog(catalogs.clone(), commands, events.clone(), token.clone());
        scope.spawn("catalog writer", writer);
        let broker = Self {
            events,
            changes,
            view,
            catalog,
            store,
            catalogs,
            branching: Arc::new(Semaphore::new(AT_ONCE)),
            heartbeats: Counter::default(),
        };
        scope.spawn("sweeper", sweep(broker.clone(), token.clone()));
        Ok(broker)
    }

    /// Takes a heartbeat in; gives what the member is to write.
    ///
    /// # Errors
    /// If there are too many members, or the broker ends.
    pub async fn heartbeat(
        &self,
        member: Member,
        statuses: Vec<(TimelineRef, TimelineStatus)>,
    ) -> Result<Vec<Assignment>, BrokerError> {
        self.heartbeats.inc();
        let (answer, answered) = oneshot::channel();
        let event = Event::Heartbeat {
            member,
            statuses,
            answer,
        };
        let sent = self.events.send(event).await;
        sent.map_err(|_| BrokerError::Stopped)?;
        Ok(answered.await.map_err(|_| BrokerError::Stopped)??)
    }

    /// Forgets a member that ends.
    ///
    /// # Errors
    /// If the broker ends.
    pub async fn leave(&self, node: NodeId) -> Result<(), BrokerError> {
        let (left, done) = oneshot::channel();
        let sent = self.events.send(Event::Leave { node, left }).await;
        sent.map_err(|_| BrokerError::Stopped)?;
        // Never sent on: it is dropped when all is done.
        let _ = done.await;
        Ok(())
    }

    /// Makes what is known of the cluster part of what the service tells.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Heartbeats taken in";
        registry.register("broker_heartbeats", help, self.heartbeats.clone());
        let view = self.view.clone();
        registry.register_collector(Sampled::new(move || samples(&view.borrow())));
    }

    /// Makes the intent to attach a tenant durable. It is done even if the future is dropped.
    ///
    /// # Errors
    /// If the catalog does not allow it or can't be changed.
    pub async fn attach(&self, new: NewTenant) -> Result<TimelineRef, ChangeError> {
        let ids = TimelineRef {
            tenant: TenantId::from_bytes(rand::random()),
            timeline: TimelineId::from_bytes(rand::random()),
        };
        self.change(Change::Attach { new, ids }).await
    }

    /// Makes the intent to delete a tenant durable. It is done even if the future is dropped.
    ///
    /// # Errors
    /// If there is no such tenant or the catalog can't be changed.
    pub async fn delete(&self, name: Name, forget_slot: bool) -> Result<TimelineRef, ChangeError> {
        self.change(Change::Delete { name, forget_slot }).await
    }

    /// Claims a cluster for the tenant of a timeline, durably. If another has it, that one's name.
    ///
    /// # Errors
    /// If there is no such timeline or the catalog can't be changed.
    pub async fn claim(
        &self,
        timeline: TimelineRef,
        cluster: SystemIdentifier,
    ) -> Result<Option<Name>, ChangeError> {
        match self.change(Change::Claim { timeline, cluster }).await {
            Ok(_) => Ok(None),
            Err(ChangeError::Catalog(CatalogStoreError::Refused(CatalogError::ClusterTaken {
                holder,
                ..
            }))) => Ok(Some(holder)),
            Err(error) => Err(error),
        }
    }

    /// Changes a branch durably. It is done even if the future is dropped.
    ///
    /// # Errors
    /// If there is no such branch, its new name is taken, or the catalog can't be changed.
    pub async fn update_branch(
        &self,
        timeline: TimelineRef,
        name: Option<Name>,
        is_protected: Option<bool>,
        expires_unix_ms: Option<Option<u64>>,
    ) -> Result<(), ChangeError> {
        let change = Change::UpdateBranch {
            timeline,
            name,
            is_protected,
            expires_unix_ms,
        };
        self.change(change).await?;
        Ok(())
    }

    /// Says durably who writes a branch. It is done even if the future is dropped.
    ///
    /// # Errors
    /// If there is no such branch, another writes it, or the catalog can't be changed.
    pub async fn set_branch_source(
        &self,
        timeline: TimelineRef,
        source: BranchSource,
        replaces: Option<SystemIdentifier>,
    ) -> Result<(), ChangeError> {
        // One that writes it already may have written more since.
        let is_set = self.catalog().is_written_by(timeline, &source);
        if replaces.is_some() && !is_set {
            self.expect_end(timeline, source.begin)?;
        }
        let change = Change::SetBranchSource {
            timeline,
            source,
            replaces,
        };
        self.change(change).await?;
        Ok(())
    }

    /// Who takes another's place begins where that one's WAL ends, by what was last said of it.
    fn expect_end(&self, branch: TimelineRef, begin: Lsn) -> Result<(), ChangeError> {
        let view = self.view.borrow();
        let status = view.timeline(branch).map(|view| &view.status);
        let end = status.map_or(Lsn::ZERO, |status| status.last_record);
        match begin < end {
            false => Ok(()),
            true => Err(ChangeError::BeforeEnd { begin, end }),
        }
    }

    /// Makes the intent to delete a branch durable. It is done even if the future is dropped.
    ///
    /// # Errors
    /// If there is no such branch, others begin on it, it is being written, or the catalog can't be changed.
    pub async fn delete_branch(&self, timeline: TimelineRef) -> Result<(), ChangeError> {
        let catalog = self.catalog();
        let tenant = catalog.tenant_of(timeline.tenant);
        // What the tenant's source is read to stays, and nobody is to be told to stop that.
        let stays = tenant.is_some_and(|tenant| tenant.main() == timeline);
        if let Some((branch, source_of)) = self.running(timeline).filter(|_| !stays) {
            return Err(ChangeError::Running { branch, source_of });
        }
        self.change(Change::DropBranch { timeline }).await?;
        Ok(())
    }

    /// The name of a branch that a PostgreSQL may be running on, and how that is reached.
    fn running(&self, branch: TimelineRef) -> Option<(String, String)> {
        let view = self.view.borrow();
        let view = view.timeline(branch)?;
        let runs = match view.status.state {
            // Nobody has said yet.
            TimelineState::Unknown => !view.source.is_empty(),
            TimelineState::Disconnected | TimelineState::Stopped => false,
            TimelineState::Idle | TimelineState::Deleting | TimelineState::Deleted => false,
            // Else it is what one said who is dead.
            _ => view.writer.is_some(),
        };
        runs.then(|| (view.timeline_name.clone(), view.source.clone()))
    }

    /// Whether a branch may go because its time is over: nobody writes it, or who does is away.
    pub(super) fn is_left(&self, branch: TimelineRef) -> bool {
        let view = self.view.borrow();
        view.timeline(branch).is_some_and(|view| {
            let state = view.status.state;
            matches!(state, TimelineState::Disconnected | TimelineState::Stopped)
                || view.source.is_empty()
        })
    }

    /// The catalog as it is known here.
    pub(super) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.borrow())
    }

    /// The same, whenever it changes.
    pub(super) fn catalogs(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.clone()
    }

    /// The catalog as it is in the store, where another storage-broker may have changed it.
    pub(super) async fn newest_catalog(&self) -> Result<Catalog, CatalogStoreError> {
        Ok(self.catalogs.newest().await?.state)
    }

    /// Who makes a branch waits for a permit.
    pub(super) fn branching(&self) -> &Semaphore {
        &self.branching
    }

    /// The manifests of a timeline.
    pub(super) fn manifests(&self, timeline: TimelineRef) -> TimelineManifests {
        TimelineManifests::new(self.store.clone(), timeline.tenant, timeline.timeline)
    }

    /// Where manifests are.
    pub(super) fn store(&self) -> &ObjectStore {
        &self.store
    }

    /// The whole picture, always the newest.
    pub fn watch(&self) -> watch::Receiver<ClusterView> {
        self.view.clone()
    }

    /// Changes the catalog. It is done even if the future is dropped.
    pub(super) async fn change(&self, change: Change) -> Result<TimelineRef, ChangeError> {
        let (answer, answered) = oneshot::channel();
        let command = Command {
            change,
            answer: Some(answer),
        };
        let sent = self.changes.send(command).await;
        sent.map_err(|_| ChangeError::Stopped)?;
        Ok(answered.await.map_err(|_| ChangeError::Stopped)??)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn samples(view: &ClusterView) -> Vec<Sample> {
    let mut members = Sample::gauge("broker_members", None, "Members that are alive");
    for (name, role) in [
        ("wal-ingest", Role::WalIngest),
        ("page-serve", Role::PageServe),
        ("redo-worker", Role::RedoWorker),
        ("compactor", Role::Compactor),
    ] {
        let alive = view.addresses(role).len();
        members.push([("role", name.to_owned())], alive as f64);
    }
    let timelines = Sample::gauge("broker_timelines", None, "Timelines in the catalog");
    vec![members, timelines.of(view.timelines.len() as f64)]
}

impl State {
    async fn run(mut self, mut queue: mpsc::Receiver<Event>, token: CancellationToken) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Cancel-safe: neither a tick nor an event is lost when dropped.
            let event = tokio::select! {
                () = token.cancelled() => return,
                event = queue.recv() => match event {
                    Some(event) => event,
                    None => return,
                },
                _ = ticks.tick() => Event::Tick,
            };
            self.apply(event, Instant::now());
        }
    }

    fn apply(&mut self, event: Event, now: Instant) {
        match event {
            Event::Heartbeat {
                member,
                statuses,
                answer,
            } => {
                let node = member.node;
                let taken = self.membership.heartbeat(now, member, statuses);
                self.settle(now);
                let assigned = taken
                    .map(|()| picture::assignments(&self.catalog.borrow(), &self.membership, node));
                // A member that has gone away asks again.
                let _ = answer.send(assigned);
                self.forget_deleted();
            }
            Event::Leave { node, left } => {
                self.membership.leave(now, node);
                self.settle(now);
                drop(left);
            }
            Event::Catalog { catalog, applied } => {
                self.set_catalog(catalog);
                self.settle(now);
                drop(applied);
            }
            Event::Tick => {
                self.membership.expire(now);
                self.settle(now);
            }
        }
    }

    fn set_catalog(&mut self, catalog: Catalog) {
        let written = catalog.tenants().iter().flat_map(Tenant::written);
        self.membership.set_timelines(&written.collect());
        self.catalog.send_replace(Arc::new(catalog));
    }

    fn settle(&mut self, now: Instant) {
        self.membership.assign(now);
        self.publish();
    }

    fn publish(&self) {
        let view = picture::view(&self.catalog.borrow(), &self.membership);
        self.view.send_if_modified(|current| {
            let modified = *current != view;
            *current = view;
            modified
        });
    }

    /// Asks for the removal of tenants of which nothing is left. If the writer of the catalog is
    /// busy, the next heartbeat asks again.
    fn forget_deleted(&self) {
        let is_gone = |timeline: &TimelineRef| {
            let state = self.membership.status(*timeline).state;
            state == TimelineState::Deleted && self.membership.writer(*timeline).is_some()
        };
        let has_left = |timeline: &TimelineRef| {
            let state = self.membership.status(*timeline).state;
            state == TimelineState::Idle && self.membership.writer(*timeline).is_some()
        };
        let catalog = self.catalog.borrow();
        let tenants = catalog.tenants().iter();
        let going = tenants.filter(|tenant| matches!(tenant.state, TenantState::Deleting { .. }));
        let tenants = going.map(Tenant::timeline).filter(is_gone);
        let tenants = tenants.map(|timeline| Change::Forget { timeline });
        let branches = catalog.tenants().iter().flat_map(Tenant::going_writers);
        let branches = branches.filter(is_gone);
        let branches = branches.map(|timeline| Change::ForgetBranchSource { timeline });
        let left = catalog.tenants().iter();
        let left = left.filter_map(Tenant::leaving_timeline).filter(has_left);
        let left = left.map(|left| Change::HasLeft { left });
        for change in tenants.chain(branches).chain(left) {
            let command = Command {
                change,
                answer: None,
            };
            if self.changes.try_send(command).is_err() {
                return;
            }
        }
    }
}

impl BrokerError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooManyMembers(_) => ErrorKind::Throttled,
            Self::Stopped => ErrorKind::NotReady,
        }
    }
}
