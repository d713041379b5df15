//! What the broker tells: the whole picture to everyone, assignments to a writer.

use palimpsest_api::broker::{
    AssignedTask, Assignment, ClusterView, TimelineState, TimelineStatus, TimelineView,
};
use palimpsest_types::NodeId;

use super::{
    catalog::Catalog,
    membership::Membership,
    tenant::{Tenant, TenantState},
};

/// The whole picture. Passwords stay here.
pub(super) fn view(catalog: &Catalog, membership: &Membership) -> ClusterView {
    let timeline = |tenant: &Tenant| {
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
        }
    };
    ClusterView {
        members: membership.members().cloned().collect(),
        timelines: catalog.tenants().iter().map(timeline).collect(),
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
