//! What the broker tells: the whole picture to everyone, assignments to a writer.

use palimpsest_api::{
    TimelineRef,
    broker::{
        AssignedTask, Assignment, BranchView, ClusterView, TimelineState, TimelineStatus,
        TimelineView,
    },
};
use palimpsest_types::NodeId;

use super::{
    branch::Branch,
    catalog::Catalog,
    membership::Membership,
    tenant::{Tenant, TenantState},
};

/// The whole picture. Passwords stay here.
pub(super) fn view(catalog: &Catalog, membership: &Membership) -> ClusterView {
    let timelines = catalog.tenants().iter().flat_map(|tenant| {
        let branches = tenant.branches.iter();
        let branches = branches.map(|branch| branch_view(tenant, branch));
        std::iter::once(first_view(tenant, membership)).chain(branches)
    });
    ClusterView {
        members: membership.members().cloned().collect(),
        timelines: timelines.collect(),
    }
}

fn first_view(tenant: &Tenant, membership: &Membership) -> TimelineView {
    let timeline = tenant.timeline();
    let writer = membership.writer(timeline);
    TimelineView {
        timeline,
        tenant_name: tenant.name.to_string(),
        timeline_name: tenant.timeline_name.clone(),
        status: status(tenant.state, membership.status(timeline)),
        writer: writer.map(|member| member.address.clone()),
        source: tenant.source.redacted(),
        slot: tenant.slot.clone(),
        branch: None,
    }
}

/// Nobody writes to a branch, so it is as it was made.
fn branch_view(tenant: &Tenant, branch: &Branch) -> TimelineView {
    let &Branch {
        lsn,
        parent,
        created_unix_ms,
        expires_unix_ms,
        is_protected,
        ..
    } = branch;
    let status = TimelineStatus {
        state: match branch.deleting {
            true => TimelineState::Deleting,
            false => TimelineState::Idle,
        },
        received: lsn,
        flushed: lsn,
        last_record: lsn,
        disk_consistent: lsn,
        remote_consistent: lsn,
        ..TimelineStatus::default()
    };
    TimelineView {
        timeline: TimelineRef {
            tenant: tenant.id,
            timeline: branch.id,
        },
        tenant_name: tenant.name.to_string(),
        timeline_name: branch.name.to_string(),
        status,
        writer: None,
        source: String::new(),
        slot: String::new(),
        branch: Some(BranchView {
            timeline: parent,
            lsn,
            created_unix_ms,
            expires_unix_ms,
            is_protected,
        }),
    }
}

/// What a timeline that is to go was doing before is of no interest, but what hinders it is.
fn status(tenant: TenantState, status: TimelineStatus) -> TimelineStatus {
    let state = match (tenant, status.state) {
        (TenantState::Attached, state) => state,
        (
            TenantState::Deleting { .. },
            state @ (TimelineState::Stopped | TimelineState::Deleting | TimelineState::Deleted),
        ) => state,
        (TenantState::Deleting { .. }, _) => TimelineState::Deleting,
    };
    TimelineStatus { state, ..status }
}

/// What a wal-ingest is to do.
pub(super) fn assignments(
    catalog: &Catalog,
    membership: &Membership,
    node: NodeId,
) -> Vec<Assignment> {
    let assignment = |tenant: &Tenant| Assignment {
        timeline: tenant.timeline(),
        source: tenant.source.expose().to_owned(),
        slot: tenant.slot.clone(),
        task: match tenant.state {
            TenantState::Attached => AssignedTask::Ingest,
            TenantState::Deleting { forget_slot } => AssignedTask::Delete { forget_slot },
        },
    };
    let owned = membership.owned_by(node);
    owned
        .filter_map(|timeline| catalog.tenant(timeline))
        .map(assignment)
        .collect()
}
