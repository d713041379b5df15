//! What there is, for those who look after it: tenants, timelines, what is stored of them, and who writes them.

use palimpsest_proto::admin::v1::{self as wire, admin_service_client::AdminServiceClient};
use palimpsest_types::{ByteCount, Lsn, SystemIdentifier, TenantId};
use tonic::Streaming;

use crate::{
    broker::{
        TimelineState, TimelineView, malformed, state_from_wire, state_to_wire, within_deadline,
    },
    channel::{Channel, MAX_MESSAGE, connect_lazily},
    convert::{InvalidMessageError, TimelineRef, id_bytes, id_to_wire},
    status::RemoteError,
};

/// A PostgreSQL cluster and its branches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantInfo {
    /// Which.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// How its PostgreSQL is reached, without the password.
    pub source: String,
    /// The replication slot there.
    pub slot: String,
    /// The cluster, once the attach has found out.
    pub cluster: Option<SystemIdentifier>,
    /// What the source is read to.
    pub main: TimelineRef,
    /// How many timelines it has.
    pub timelines: u32,
}

/// What the newest manifest of a timeline says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredTimeline {
    /// Its number.
    pub manifest: u64,
    /// Its layers have everything up to here.
    pub lsn: Lsn,
    /// The oldest LSN that could be read if nothing was ever removed.
    pub oldest_readable: Lsn,
    /// Below this only what branches and leases keep can be read; zero if nothing was removed.
    pub gc_cutoff: Lsn,
    /// Layers of its own.
    pub layers: u64,
    /// How large they are.
    pub layer_bytes: ByteCount,
    /// Branches that begin on it.
    pub branches: u32,
    /// Leases of its LSNs, those among them that have just ended.
    pub leases: u32,
}

/// All that there is to know of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineDetails {
    /// Where it stands.
    pub view: TimelineView,
    /// What is stored of it, if anything is, and that can be read.
    pub stored: Option<StoredTimeline>,
    /// Why it can't be read.
    pub problem: Option<String>,
}

/// What a timeline takes in the object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineSize {
    /// Which.
    pub timeline: TimelineRef,
    /// How much; or why a manifest can't be read.
    pub stored: Result<StoredSize, String>,
}

/// Sizes of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredSize {
    /// Those of its own.
    pub own: ByteCount,
    /// Those of what it begins on of which it sees something.
    pub shared: ByteCount,
    /// What goes if it is deleted; `None` if it can't be.
    pub freed: Option<ByteCount>,
}

/// A PostgreSQL whose WAL is the history of a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputeInfo {
    /// The branch.
    pub timeline: TimelineRef,
    /// Name of its tenant.
    pub tenant_name: String,
    /// Its name.
    pub branch_name: String,
    /// How the PostgreSQL is reached, without the password.
    pub source: String,
    /// The replication slot there.
    pub slot: String,
    /// Its system identifier.
    pub cluster: SystemIdentifier,
    /// Its PostgreSQL timeline.
    pub pg_timeline: u32,
    /// Where its WAL begins.
    pub begin: Lsn,
    /// What happens to the branch.
    pub state: TimelineState,
}

/// What is new about timelines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimelineChanges {
    /// New or different.
    pub changed: Vec<TimelineView>,
    /// Those that there are no more.
    pub gone: Vec<TimelineRef>,
    /// Whether all that was told is a picture of one moment; if not, more of it follows.
    pub is_complete: bool,
}

/// Timelines and their changes, as they come.
#[derive(Debug)]
pub struct TimelineWatch(Streaming<wire::WatchTimelinesResponse>);

/// Asks the storage-broker. Clones share a connection.
#[derive(Debug, Clone)]
pub struct AdminClient {
    admin: AdminServiceClient<Channel>,
}

impl AdminClient {
    /// A client of the storage-broker at `address`, connected when first used.
    ///
    /// # Errors
    /// If it is not an address.
    pub fn new(address: &str) -> Result<Self, RemoteError> {
        let admin = AdminServiceClient::new(connect_lazily(address)?);
        Ok(Self {
            admin: admin.max_decoding_message_size(MAX_MESSAGE),
        })
    }

    /// The tenants.
    ///
    /// # Errors
    /// If the storage-broker can't be reached.
    pub async fn tenants(&self) -> Result<Vec<TenantInfo>, RemoteError> {
        let mut admin = self.admin.clone();
        let answer = within_deadline(admin.list_tenants(wire::ListTenantsRequest {})).await?;
        let tenants = answer.tenants.into_iter().map(TenantInfo::try_from);
        tenants.collect::<Result<_, _>>().map_err(malformed)
    }

    /// The timelines of a tenant, or all.
    ///
    /// # Errors
    /// What the storage-broker says.
    pub async fn timelines(&self, tenant: Option<&str>) -> Result<Vec<TimelineView>, RemoteError> {
        let request = wire::ListTimelinesRequest {
            tenant_name: tenant.unwrap_or_default().to_owned(),
        };
        let mut admin = self.admin.clone();
        let mut pieces = within_deadline(admin.list_timelines(request)).await?;
        let mut timelines = Vec::new();
        while let Some(piece) = pieces.message().await? {
            for timeline in piece.timelines {
                timelines.push(timeline.try_into().map_err(malformed)?);
            }
        }
        Ok(timelines)
    }

    /// A timeline, and what is stored of it.
    ///
    /// # Errors
    /// What the storage-broker says.
    pub async fn timeline(&self, timeline: TimelineRef) -> Result<TimelineDetails, RemoteError> {
        let request = wire::GetTimelineRequest {
            timeline: Some(timeline.into()),
        };
        let mut admin = self.admin.clone();
        let answer = within_deadline(admin.get_timeline(request)).await?;
        answer.try_into().map_err(malformed)
    }

    /// What the timelines of a tenant, or all, take in the object store.
    ///
    /// # Errors
    /// What the storage-broker says.
    pub async fn sizes(&self, tenant: Option<&str>) -> Result<Vec<TimelineSize>, RemoteError> {
        let request = wire::GetTimelineSizesRequest {
            tenant_name: tenant.unwrap_or_default().to_owned(),
        };
        let mut admin = self.admin.clone();
        let mut pieces = within_deadline(admin.get_timeline_sizes(request)).await?;
        let mut sizes = Vec::new();
        while let Some(piece) = pieces.message().await? {
            for size in piece.sizes {
                sizes.push(size.try_into().map_err(malformed)?);
            }
        }
        Ok(sizes)
    }

    /// The timelines of a tenant, or all, and then each that changes.
    ///
    /// # Errors
    /// What the storage-broker says.
    pub async fn watch_timelines(
        &self,
        tenant: Option<&str>,
    ) -> Result<TimelineWatch, RemoteError> {
        let request = wire::WatchTimelinesRequest {
            tenant_name: tenant.unwrap_or_default().to_owned(),
        };
        let mut admin = self.admin.clone();
        let messages = within_deadline(admin.watch_timelines(request)).await?;
        Ok(TimelineWatch(messages))
    }

    /// The PostgreSQL clusters that write branches of a tenant, or of all.
    ///
    /// # Errors
    /// What the storage-broker says.
    pub async fn computes(&self, tenant: Option<&str>) -> Result<Vec<ComputeInfo>, RemoteError> {
        let request = wire::ListComputesRequest {
            tenant_name: tenant.unwrap_or_default().to_owned(),
        };
        let mut admin = self.admin.clone();
        let answer = within_deadline(admin.list_computes(request)).await?;
        let computes = answer.computes.into_iter().map(ComputeInfo::try_from);
        computes.collect::<Result<_, _>>().map_err(malformed)
    }
}

impl TimelineWatch {
    /// What is new; `None` when the tenant is gone, the storage-broker ends, or nothing was taken for too long. Cancel-safe.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn next(&mut self) -> Result<Option<TimelineChanges>, RemoteError> {
        let message = self.0.message().await?;
        message
            .map(TimelineChanges::try_from)
            .transpose()
            .map_err(malformed)
    }
}

impl From<TenantInfo> for wire::TenantInfo {
    fn from(tenant: TenantInfo) -> Self {
        Self {
            tenant_id: id_to_wire(tenant.tenant.as_bytes()),
            name: tenant.name,
            deleting: tenant.deleting,
            source: tenant.source,
            slot_name: tenant.slot,
            system_identifier: tenant.cluster.map_or(0, SystemIdentifier::get),
            main: Some(tenant.main.into()),
            timelines: tenant.timelines,
        }
    }
}

impl TryFrom<wire::TenantInfo> for TenantInfo {
    type Error = InvalidMessageError;

    fn try_from(message: wire::TenantInfo) -> Result<Self, Self::Error> {
        let cluster = Some(message.system_identifier).filter(|cluster| *cluster > 0);
        Ok(Self {
            tenant: TenantId::from_bytes(id_bytes("tenant_id", &message.tenant_id)?),
            name: message.name,
            deleting: message.deleting,
            source: message.source,
            slot: message.slot_name,
            cluster: cluster.map(SystemIdentifier::new),
            main: message.main.try_into()?,
            timelines: message.timelines,
        })
    }
}

impl From<TimelineDetails> for wire::GetTimelineResponse {
    fn from(details: TimelineDetails) -> Self {
        Self {
            timeline: Some(details.view.into()),
            stored: details.stored.map(Into::into),
            stored_problem: details.problem.unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::GetTimelineResponse> for TimelineDetails {
    type Error = InvalidMessageError;

    fn try_from(message: wire::GetTimelineResponse) -> Result<Self, Self::Error> {
        let missing = || InvalidMessageError::missing("timeline");
        Ok(Self {
            view: message.timeline.ok_or_else(missing)?.try_into()?,
            stored: message.stored.map(Into::into),
            problem: Some(message.stored_problem).filter(|problem| !problem.is_empty()),
        })
    }
}

impl From<StoredTimeline> for wire::StoredTimeline {
    fn from(stored: StoredTimeline) -> Self {
        Self {
            manifest_number: stored.manifest,
            lsn: stored.lsn.get(),
            oldest_readable_lsn: stored.oldest_readable.get(),
            gc_cutoff_lsn: stored.gc_cutoff.get(),
            layers: stored.layers,
            layer_bytes: stored.layer_bytes.get(),
            branches: stored.branches,
            leases: stored.leases,
        }
    }
}

impl From<wire::StoredTimeline> for StoredTimeline {
    fn from(message: wire::StoredTimeline) -> Self {
        Self {
            manifest: message.manifest_number,
            lsn: Lsn::new(message.lsn),
            oldest_readable: Lsn::new(message.oldest_readable_lsn),
            gc_cutoff: Lsn::new(message.gc_cutoff_lsn),
            layers: message.layers,
            layer_bytes: ByteCount::new(message.layer_bytes),
            branches: message.branches,
            leases: message.leases,
        }
    }
}

impl From<TimelineSize> for wire::TimelineSize {
    fn from(size: TimelineSize) -> Self {
        let (stored, problem) = match size.stored {
            Ok(stored) => (Some(stored.into()), String::new()),
            Err(problem) => (None, problem),
        };
        Self {
            timeline: Some(size.timeline.into()),
            stored,
            problem,
        }
    }
}

impl TryFrom<wire::TimelineSize> for TimelineSize {
    type Error = InvalidMessageError;

    fn try_from(message: wire::TimelineSize) -> Result<Self, Self::Error> {
        Ok(Self {
            timeline: message.timeline.try_into()?,
            stored: message.stored.map(Into::into).ok_or(message.problem),
        })
    }
}

impl From<StoredSize> for wire::StoredSize {
    fn from(size: StoredSize) -> Self {
        Self {
            own_bytes: size.own.get(),
            shared_bytes: size.shared.get(),
            freed_bytes: size.freed.map(ByteCount::get),
        }
    }
}

impl From<wire::StoredSize> for StoredSize {
    fn from(message: wire::StoredSize) -> Self {
        Self {
            own: ByteCount::new(message.own_bytes),
            shared: ByteCount::new(message.shared_bytes),
            freed: message.freed_bytes.map(ByteCount::new),
        }
    }
}

impl From<ComputeInfo> for wire::Compute {
    fn from(compute: ComputeInfo) -> Self {
        Self {
            timeline: Some(compute.timeline.into()),
            tenant_name: compute.tenant_name,
            branch_name: compute.branch_name,
            source: compute.source,
            slot_name: compute.slot,
            system_identifier: compute.cluster.get(),
            pg_timeline: compute.pg_timeline,
            begin_lsn: compute.begin.get(),
            state: state_to_wire(compute.state).into(),
        }
    }
}

impl TryFrom<wire::Compute> for ComputeInfo {
    type Error = InvalidMessageError;

    fn try_from(message: wire::Compute) -> Result<Self, Self::Error> {
        let state = state_from_wire(message.state());
        Ok(Self {
            timeline: message.timeline.try_into()?,
            tenant_name: message.tenant_name,
            branch_name: message.branch_name,
            source: message.source,
            slot: message.slot_name,
            cluster: SystemIdentifier::new(message.system_identifier),
            pg_timeline: message.pg_timeline,
            begin: Lsn::new(message.begin_lsn),
            state,
        })
    }
}

impl From<TimelineChanges> for wire::WatchTimelinesResponse {
    fn from(changes: TimelineChanges) -> Self {
        Self {
            changed: changes.changed.into_iter().map(Into::into).collect(),
            gone: changes.gone.into_iter().map(Into::into).collect(),
            is_complete: changes.is_complete,
        }
    }
}

impl TryFrom<wire::WatchTimelinesResponse> for TimelineChanges {
    type Error = InvalidMessageError;

    fn try_from(message: wire::WatchTimelinesResponse) -> Result<Self, Self::Error> {
        let changed = message.changed.into_iter().map(TimelineView::try_from);
        let gone = message.gone.into_iter();
        let gone = gone.map(|timeline| TimelineRef::try_from(Some(timeline)));
        Ok(Self {
            changed: changed.collect::<Result<_, _>>()?,
            gone: gone.collect::<Result<_, _>>()?,
            is_complete: message.is_complete,
        })
    }
}
