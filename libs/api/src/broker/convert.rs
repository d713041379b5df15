use palimpsest_proto::broker::v1 as wire;
use palimpsest_types::{
    ByteCount, Lsn, NodeId, SystemIdentifier, TenantId, TimelineId, WriterEpoch,
};

use super::{
    AssignedTask, Assignment, BranchView, BranchWriter, ClusterView, DatabaseSize, LeavingWriter,
    LogicalSize, Lost, Member, Promotion, Reattach, Role, TenantView, TimelineState,
    TimelineStatus, TimelineView, WalReceiver,
};
use crate::convert::{InvalidMessageError, TimelineRef, id_bytes, id_to_wire};

impl From<Member> for wire::Member {
    fn from(member: Member) -> Self {
        let role = match member.role {
            Role::WalIngest => wire::Role::WalIngest,
            Role::PageServe => wire::Role::PageServe,
            Role::RedoWorker => wire::Role::RedoWorker,
            Role::Compactor => wire::Role::Compactor,
        };
        Self {
            node_id: id_to_wire(member.node.as_bytes()),
            role: role.into(),
            address: member.address,
            version: member.version,
            tenant_defaults: Some(member.tenant_defaults.into()),
        }
    }
}

/// The node that says that it ends.
///
/// # Errors
/// If its id is none.
pub fn leaving_from_wire(message: &wire::LeaveRequest) -> Result<NodeId, InvalidMessageError> {
    let bytes = id_bytes("node_id", &message.node_id)?;
    Ok(NodeId::from_bytes(bytes))
}

/// Which timeline is to be attached to which cluster.
///
/// # Errors
/// If one of them is missing or malformed.
pub fn claim_from_wire(
    message: wire::ClaimClusterRequest,
) -> Result<(TimelineRef, SystemIdentifier), InvalidMessageError> {
    let timeline = message.timeline.try_into()?;
    match message.system_identifier {
        0 => Err(InvalidMessageError::missing("system_identifier")),
        cluster => Ok((timeline, SystemIdentifier::new(cluster))),
    }
}

/// Which timeline was left, and for what.
///
/// # Errors
/// If one of them is missing or malformed.
pub fn promotion_from_wire(
    message: wire::FollowPromotionRequest,
) -> Result<(LeavingWriter, Promotion), InvalidMessageError> {
    let wire::FollowPromotionRequest {
        timeline,
        switch_lsn,
        pg_timeline,
        end_lsn,
        epoch,
    } = message;
    let lsn = |field, lsn| match lsn {
        0 => Err(InvalidMessageError::missing(field)),
        lsn => Ok(Lsn::new(lsn)),
    };
    let promotion = Promotion {
        at: lsn("switch_lsn", switch_lsn)?,
        pg_timeline,
        end: lsn("end_lsn", end_lsn)?,
    };
    match pg_timeline {
        0 => Err(InvalidMessageError::missing("pg_timeline")),
        _ => {
            let writer = LeavingWriter {
                timeline: timeline.try_into()?,
                epoch: WriterEpoch::new(epoch),
            };
            Ok((writer, promotion))
        }
    }
}

impl TryFrom<wire::Member> for Member {
    type Error = InvalidMessageError;

    fn try_from(message: wire::Member) -> Result<Self, Self::Error> {
        let role = match message.role() {
            wire::Role::WalIngest => Role::WalIngest,
            wire::Role::PageServe => Role::PageServe,
            wire::Role::RedoWorker => Role::RedoWorker,
            wire::Role::Compactor => Role::Compactor,
            wire::Role::Unspecified => return Err(InvalidMessageError::missing("role")),
        };
        let node = NodeId::from_bytes(id_bytes("node_id", &message.node_id)?);
        Ok(Self {
            node,
            role,
            address: message.address,
            version: message.version,
            tenant_defaults: message.tenant_defaults.unwrap_or_default().into(),
        })
    }
}

pub(crate) const fn state_to_wire(state: TimelineState) -> wire::TimelineState {
    match state {
        TimelineState::Unknown => wire::TimelineState::Unspecified,
        TimelineState::Attaching => wire::TimelineState::Attaching,
        TimelineState::Streaming => wire::TimelineState::Streaming,
        TimelineState::Disconnected => wire::TimelineState::Disconnected,
        TimelineState::Resuming => wire::TimelineState::Resuming,
        TimelineState::Paused => wire::TimelineState::Paused,
        TimelineState::Stopped => wire::TimelineState::Stopped,
        TimelineState::Deleting => wire::TimelineState::Deleting,
        TimelineState::Deleted => wire::TimelineState::Deleted,
        TimelineState::Idle => wire::TimelineState::Idle,
    }
}

pub(crate) const fn state_from_wire(state: wire::TimelineState) -> TimelineState {
    match state {
        wire::TimelineState::Unspecified => TimelineState::Unknown,
        wire::TimelineState::Attaching => TimelineState::Attaching,
        wire::TimelineState::Streaming => TimelineState::Streaming,
        wire::TimelineState::Disconnected => TimelineState::Disconnected,
        wire::TimelineState::Resuming => TimelineState::Resuming,
        wire::TimelineState::Paused => TimelineState::Paused,
        wire::TimelineState::Stopped => TimelineState::Stopped,
        wire::TimelineState::Deleting => TimelineState::Deleting,
        wire::TimelineState::Deleted => TimelineState::Deleted,
        wire::TimelineState::Idle => TimelineState::Idle,
    }
}

/// A timeline's status as a message.
pub(super) fn status_to_wire(
    timeline: TimelineRef,
    status: TimelineStatus,
) -> wire::TimelineStatus {
    let size = status.logical_size;
    wire::TimelineStatus {
        timeline: Some(timeline.into()),
        state: state_to_wire(status.state).into(),
        reason: status.reason,
        writer_epoch: status.epoch.get(),
        received_lsn: status.received.get(),
        flushed_lsn: status.flushed.get(),
        last_record_lsn: status.last_record.get(),
        disk_consistent_lsn: status.disk_consistent.get(),
        remote_consistent_lsn: status.remote_consistent.get(),
        oldest_readable_lsn: status.oldest_readable.get(),
        backup_bytes_done: status.backup_done.get(),
        backup_bytes_total: status.backup_total.get(),
        slot_retained_bytes: status.slot_retained.get(),
        warnings: status.warnings,
        logical_size_lsn: size.as_ref().map_or(0, |size| size.at.get()),
        logical_size_bytes: size.as_ref().map_or(0, |size| size.total.get()),
        database_sizes: size.map_or_else(Vec::new, databases_to_wire),
        lost: status.lost.into_iter().map(Into::into).collect(),
        wal_receiver: status.receiver.map(Into::into),
    }
}

impl From<WalReceiver> for wire::WalReceiver {
    fn from(receiver: WalReceiver) -> Self {
        Self {
            connected_unix_ms: receiver.connected_unix_ms.unwrap_or(0),
            heard_unix_ms: receiver.heard_unix_ms,
            source_lsn: receiver.source_end.get(),
            pg_timeline: receiver.pg_timeline,
        }
    }
}

impl From<wire::WalReceiver> for WalReceiver {
    fn from(message: wire::WalReceiver) -> Self {
        Self {
            connected_unix_ms: Some(message.connected_unix_ms).filter(|at| *at > 0),
            heard_unix_ms: message.heard_unix_ms,
            source_end: Lsn::new(message.source_lsn),
            pg_timeline: message.pg_timeline,
        }
    }
}

impl From<Lost> for wire::LostSpan {
    fn from(lost: Lost) -> Self {
        Self {
            after_lsn: lost.after.get(),
            up_to_lsn: lost.up_to.get(),
        }
    }
}

impl From<wire::LostSpan> for Lost {
    fn from(message: wire::LostSpan) -> Self {
        Self {
            after: Lsn::new(message.after_lsn),
            up_to: Lsn::new(message.up_to_lsn),
        }
    }
}

fn databases_to_wire(size: LogicalSize) -> Vec<wire::DatabaseSize> {
    let database = |DatabaseSize { database, size }| wire::DatabaseSize {
        database_oid: database,
        bytes: size.get(),
    };
    size.databases.into_iter().map(database).collect()
}

/// `None` unless it was added up.
fn size_from_wire(at: u64, total: u64, databases: Vec<wire::DatabaseSize>) -> Option<LogicalSize> {
    let database = |message: wire::DatabaseSize| DatabaseSize {
        database: message.database_oid,
        size: ByteCount::new(message.bytes),
    };
    let listed = databases.into_iter().take(LogicalSize::LISTED);
    (at > 0).then(|| LogicalSize {
        at: Lsn::new(at),
        total: ByteCount::new(total),
        databases: listed.map(database).collect(),
    })
}

/// A timeline's status from its message.
///
/// # Errors
/// If the timeline is missing or malformed.
pub fn status_from_wire(
    message: wire::TimelineStatus,
) -> Result<(TimelineRef, TimelineStatus), InvalidMessageError> {
    let state = state_from_wire(message.state());
    let status = TimelineStatus {
        state,
        reason: message.reason,
        epoch: WriterEpoch::new(message.writer_epoch),
        received: Lsn::new(message.received_lsn),
        flushed: Lsn::new(message.flushed_lsn),
        last_record: Lsn::new(message.last_record_lsn),
        disk_consistent: Lsn::new(message.disk_consistent_lsn),
        remote_consistent: Lsn::new(message.remote_consistent_lsn),
        oldest_readable: Lsn::new(message.oldest_readable_lsn),
        backup_done: ByteCount::new(message.backup_bytes_done),
        backup_total: ByteCount::new(message.backup_bytes_total),
        slot_retained: ByteCount::new(message.slot_retained_bytes),
        warnings: message.warnings,
        logical_size: size_from_wire(
            message.logical_size_lsn,
            message.logical_size_bytes,
            message.database_sizes,
        ),
        lost: message.lost.into_iter().map(Into::into).collect(),
        receiver: message.wal_receiver.map(Into::into),
    };
    Ok((message.timeline.try_into()?, status))
}

/// An assignment as a message.
pub fn assignment_to_wire(assignment: Assignment) -> wire::Assignment {
    let (deleting, leaving, forget_slot) = match assignment.task {
        AssignedTask::Ingest => (false, false, false),
        AssignedTask::Delete { forget_slot } => (true, false, forget_slot),
        AssignedTask::Leave { forget_slot } => (false, true, forget_slot),
    };
    wire::Assignment {
        timeline: Some(assignment.timeline.into()),
        source_conninfo: assignment.source,
        slot_name: assignment.slot,
        deleting,
        forget_slot,
        branch_writer: assignment.writer.map(Into::into),
        reattach: assignment.reattach.map(Into::into),
        settings: Some(assignment.settings.into()),
        leaving,
    }
}

impl From<Reattach> for wire::Reattach {
    fn from(reattach: Reattach) -> Self {
        Self {
            after_lsn: reattach.after.get(),
            request: reattach.request,
        }
    }
}

impl From<wire::Reattach> for Reattach {
    fn from(message: wire::Reattach) -> Self {
        Self {
            after: Lsn::new(message.after_lsn),
            request: message.request,
        }
    }
}

impl From<BranchWriter> for wire::BranchWriter {
    fn from(writer: BranchWriter) -> Self {
        Self {
            system_identifier: writer.system_identifier.get(),
            pg_timeline: writer.pg_timeline,
            begin_lsn: writer.begin.get(),
        }
    }
}

impl From<wire::BranchWriter> for BranchWriter {
    fn from(message: wire::BranchWriter) -> Self {
        Self {
            system_identifier: SystemIdentifier::new(message.system_identifier),
            pg_timeline: message.pg_timeline,
            begin: Lsn::new(message.begin_lsn),
        }
    }
}

impl TryFrom<wire::Assignment> for Assignment {
    type Error = InvalidMessageError;

    fn try_from(message: wire::Assignment) -> Result<Self, Self::Error> {
        let forget_slot = message.forget_slot;
        let task = match (message.deleting, message.leaving) {
            (false, false) => AssignedTask::Ingest,
            (true, _) => AssignedTask::Delete { forget_slot },
            (false, true) => AssignedTask::Leave { forget_slot },
        };
        Ok(Self {
            timeline: message.timeline.try_into()?,
            source: message.source_conninfo,
            slot: message.slot_name,
            task,
            writer: message.branch_writer.map(Into::into),
            reattach: message.reattach.map(Into::into),
            settings: message.settings.unwrap_or_default().into(),
        })
    }
}

/// The whole picture as a message.
pub fn view_to_wire(view: ClusterView) -> wire::WatchClusterResponse {
    wire::WatchClusterResponse {
        members: view.members.into_iter().map(wire::Member::from).collect(),
        timelines: view.timelines.into_iter().map(Into::into).collect(),
        tenants: view.tenants.into_iter().map(Into::into).collect(),
    }
}

impl From<TimelineView> for wire::Timeline {
    fn from(view: TimelineView) -> Self {
        Self {
            tenant_name: view.tenant_name,
            timeline_name: view.timeline_name,
            status: Some(status_to_wire(view.timeline, view.status)),
            writer_address: view.writer.unwrap_or_default(),
            source: view.source,
            slot_name: view.slot,
            branch: view.branch.map(Into::into),
            source_system_identifier: view.source_cluster.map_or(0, SystemIdentifier::get),
        }
    }
}

impl TryFrom<wire::Timeline> for TimelineView {
    type Error = InvalidMessageError;

    fn try_from(message: wire::Timeline) -> Result<Self, Self::Error> {
        let status = message
            .status
            .ok_or_else(|| InvalidMessageError::missing("status"))?;
        let (timeline, status) = status_from_wire(status)?;
        Ok(Self {
            timeline,
            tenant_name: message.tenant_name,
            timeline_name: message.timeline_name,
            status,
            writer: (!message.writer_address.is_empty()).then_some(message.writer_address),
            source: message.source,
            slot: message.slot_name,
            branch: message.branch.map(TryInto::try_into).transpose()?,
            source_cluster: Some(message.source_system_identifier)
                .filter(|cluster| *cluster > 0)
                .map(SystemIdentifier::new),
        })
    }
}

impl From<TenantView> for wire::Tenant {
    fn from(tenant: TenantView) -> Self {
        Self {
            tenant_id: id_to_wire(tenant.tenant.as_bytes()),
            name: tenant.name,
            settings: Some(tenant.settings.into()),
        }
    }
}

impl TryFrom<wire::Tenant> for TenantView {
    type Error = InvalidMessageError;

    fn try_from(message: wire::Tenant) -> Result<Self, Self::Error> {
        Ok(Self {
            tenant: TenantId::from_bytes(id_bytes("tenant_id", &message.tenant_id)?),
            name: message.name,
            settings: message.settings.unwrap_or_default().into(),
        })
    }
}

impl TryFrom<wire::WatchClusterResponse> for ClusterView {
    type Error = InvalidMessageError;

    fn try_from(message: wire::WatchClusterResponse) -> Result<Self, Self::Error> {
        Ok(Self {
            members: message
                .members
                .into_iter()
                .map(Member::try_from)
                .collect::<Result<_, _>>()?,
            timelines: message
                .timelines
                .into_iter()
                .map(TimelineView::try_from)
                .collect::<Result<_, _>>()?,
            tenants: message
                .tenants
                .into_iter()
                .map(TenantView::try_from)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<BranchView> for wire::Branch {
    fn from(point: BranchView) -> Self {
        Self {
            timeline_id: id_to_wire(point.timeline.as_bytes()),
            lsn: point.lsn.get(),
            created_unix_ms: point.created_unix_ms,
            expires_unix_ms: point.expires_unix_ms.unwrap_or(0),
            is_protected: point.is_protected,
        }
    }
}

impl TryFrom<wire::Branch> for BranchView {
    type Error = InvalidMessageError;

    fn try_from(message: wire::Branch) -> Result<Self, InvalidMessageError> {
        let timeline = id_bytes("timeline_id", &message.timeline_id)?;
        Ok(Self {
            timeline: TimelineId::from_bytes(timeline),
            lsn: Lsn::new(message.lsn),
            created_unix_ms: message.created_unix_ms,
            expires_unix_ms: Some(message.expires_unix_ms).filter(|at| *at > 0),
            is_protected: message.is_protected,
        })
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    fn across(status: TimelineStatus) -> TimelineStatus {
        let timeline = TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        };
        let message = status_to_wire(timeline, status);
        status_from_wire(message).unwrap().1
    }

    #[test]
    fn sizes_cross_the_wire_and_unknown_ones_stay_unknown() {
        let sizes = [(0, 8192), (5, 1 << 40)].map(|(oid, size)| (oid, ByteCount::new(size)));
        let status = TimelineStatus {
            logical_size: Some(LogicalSize::of(Lsn::new(8), sizes)),
            ..TimelineStatus::default()
        };
        assert_eq!(across(status.clone()), status);
        let unknown = TimelineStatus::default();
        assert_eq!(across(unknown.clone()), unknown);
    }

    #[test]
    fn the_lag_is_what_the_source_has_and_nobody_can_read() {
        let receiver = WalReceiver {
            connected_unix_ms: None,
            heard_unix_ms: 7,
            source_end: Lsn::new(500),
            pg_timeline: 2,
        };
        let status = TimelineStatus {
            received: Lsn::new(300),
            last_record: Lsn::new(200),
            receiver: Some(receiver),
            ..TimelineStatus::default()
        };
        assert_eq!(across(status.clone()), status);
        assert_eq!(status.lag(), ByteCount::new(300));
        let unheard = TimelineStatus {
            receiver: None,
            ..status.clone()
        };
        assert_eq!(unheard.lag(), ByteCount::new(100));
        let attaching = TimelineStatus {
            last_record: Lsn::ZERO,
            ..status
        };
        assert_eq!(attaching.lag(), ByteCount::ZERO);
    }

    #[test]
    fn no_more_databases_are_taken_in_than_are_listed() {
        let database = wire::DatabaseSize {
            database_oid: 5,
            bytes: 1,
        };
        let size = size_from_wire(8, 1, vec![database; 200]).unwrap();
        assert_eq!(size.databases.len(), LogicalSize::LISTED);
    }
}
