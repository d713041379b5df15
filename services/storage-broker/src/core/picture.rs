//! What the broker tells: the whole picture to everyone, assignments to a writer.

use palimpsest_api::{
    TimelineRef,
    broker::{
        AssignedTask, Assignment, BranchView, ClusterView, TenantView, TimelineState,
        TimelineStatus, TimelineView,
    },
};
use palimpsest_types::{Lsn, NodeId};

use super::{
    branch::Branch,
    catalog::Catalog,
    membership::Membership,
    tenant::{LeavingSource, Tenant, TenantState},
};

/// The whole picture. Passwords stay here.
pub(super) fn view(catalog: &Catalog, membership: &Membership) -> ClusterView {
    let timelines = catalog.tenants().iter().flat_map(|tenant| {
        let branches = tenant.branches.iter();
        let branches = branches.map(|branch| branch_view(tenant, branch, membership));
        std::iter::once(first_view(tenant, membership)).chain(branches)
    });
    let tenants = catalog.tenants().iter().map(|tenant| TenantView {
        tenant: tenant.id,
        name: tenant.name.to_string(),
        settings: tenant.settings,
    });
    ClusterView {
        members: membership.members().cloned().collect(),
        timelines: timelines.collect(),
        tenants: tenants.collect(),
    }
}

fn first_view(tenant: &Tenant, membership: &Membership) -> TimelineView {
    let timeline = tenant.timeline();
    let writer = membership.writer(timeline);
    let told = membership.status(timeline);
    let told = match tenant.left {
        Some(end) if tenant.state == TenantState::Attached => TimelineStatus {
            oldest_readable: told.oldest_readable,
            // What hinders who read it from leaving the source.
            reason: match tenant.leaving_timeline() == Some(timeline) {
                true => told.reason,
                false => String::new(),
            },
            ..unwritten(end)
        },
        Some(_) | None => told,
    };
    let of_source = |text: String| match tenant.left {
        Some(_) => String::new(),
        None => text,
    };
    TimelineView {
        timeline,
        tenant_name: tenant.name.to_string(),
        timeline_name: tenant.timeline_name.clone(),
        status: status(tenant.state, told),
        writer: writer.map(|member| member.address.clone()),
        source: of_source(tenant.source.redacted()),
        slot: of_source(tenant.slot.clone()),
        branch: None,
        source_cluster: None,
    }
}

fn branch_view(tenant: &Tenant, branch: &Branch, membership: &Membership) -> TimelineView {
    let &Branch {
        lsn,
        parent,
        created_unix_ms,
        expires_unix_ms,
        is_protected,
        ..
    } = branch;
    let timeline = TimelineRef {
        tenant: tenant.id,
        timeline: branch.id,
    };
    let state = match branch.deleting {
        true => TenantState::Deleting { forget_slot: true },
        false => TenantState::Attached,
    };
    let told = match &branch.source {
        Some(_) => heard(membership.status(timeline), lsn),
        None => unwritten(branch.left.unwrap_or(lsn)),
    };
    let writer = membership.writer(timeline);
    let source = branch.source.as_ref();
    TimelineView {
        timeline,
        tenant_name: tenant.name.to_string(),
        timeline_name: branch.name.to_string(),
        status: status(state, told),
        writer: writer.map(|member| member.address.clone()),
        source: source.map_or_else(String::new, |source| source.conninfo.redacted()),
        slot: source.map_or_else(String::new, |source| source.slot.clone()),
        branch: Some(BranchView {
            timeline: parent,
            lsn,
            created_unix_ms,
            expires_unix_ms,
            is_protected,
        }),
        source_cluster: source.map(|source| source.cluster),
    }
}

/// A timeline that nobody writes is as it was made, or left.
fn unwritten(lsn: Lsn) -> TimelineStatus {
    TimelineStatus {
        state: TimelineState::Idle,
        received: lsn,
        flushed: lsn,
        last_record: lsn,
        disk_consistent: lsn,
        remote_consistent: lsn,
        ..TimelineStatus::default()
    }
}

/// What its writer said, or what is so until it has.
fn heard(told: TimelineStatus, lsn: Lsn) -> TimelineStatus {
    match told.state {
        TimelineState::Unknown => TimelineStatus {
            state: TimelineState::Unknown,
            ..unwritten(lsn)
        },
        _ => told,
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
    let owned = membership.owned_by(node);
    owned
        .filter_map(|timeline| {
            let tenant = catalog.tenant_of(timeline.tenant)?;
            match () {
                () if tenant.leaving_timeline() == Some(timeline) => leave_assignment(tenant),
                () if tenant.timeline() == timeline => {
                    first_assignment(catalog, tenant, membership)
                }
                () => branch_assignment(catalog, timeline),
            }
        })
        .collect()
}

/// What the source was read to ends.
fn leave_assignment(tenant: &Tenant) -> Option<Assignment> {
    let LeavingSource {
        timeline,
        forget_slot,
    } = tenant.leaving?;
    Some(Assignment {
        timeline: TimelineRef {
            tenant: tenant.id,
            timeline,
        },
        source: tenant.source.expose().to_owned(),
        slot: tenant.slot.clone(),
        task: AssignedTask::Leave { forget_slot },
        writer: None,
        reattach: None,
        settings: tenant.settings,
    })
}

fn first_assignment(
    catalog: &Catalog,
    tenant: &Tenant,
    membership: &Membership,
) -> Option<Assignment> {
    // All that is stored of a tenant goes with its first timeline, so nobody may be writing any more.
    let writes = |branch: &Branch| {
        let timeline = TimelineRef {
            tenant: tenant.id,
            timeline: branch.id,
        };
        branch.source.is_some() && membership.status(timeline).state != TimelineState::Deleted
    };
    let task = match tenant.state {
        TenantState::Attached => AssignedTask::Ingest,
        TenantState::Deleting { .. } if tenant.branches.iter().any(writes) => return None,
        TenantState::Deleting { forget_slot } => AssignedTask::Delete {
            // Where there is no source, there is none: it was left before.
            forget_slot: forget_slot || !tenant.has_source(),
        },
    };
    Some(Assignment {
        timeline: tenant.timeline(),
        source: tenant.source.expose().to_owned(),
        slot: tenant.slot.clone(),
        task,
        writer: None,
        reattach: catalog.reattach(tenant.timeline()),
        settings: tenant.settings,
    })
}

fn branch_assignment(catalog: &Catalog, timeline: TimelineRef) -> Option<Assignment> {
    let tenant = catalog.tenant_of(timeline.tenant)?;
    let branch = tenant.find_branch(timeline.timeline)?;
    let source = branch.source.as_ref()?;
    let forget_slot = match tenant.state {
        // It is at the tenant's source.
        TenantState::Deleting { forget_slot } if tenant.goes_on(branch) => forget_slot,
        // The slot goes with the PostgreSQL that was started for the branch.
        TenantState::Attached | TenantState::Deleting { .. } => true,
    };
    let goes = branch.deleting || tenant.state != TenantState::Attached;
    Some(Assignment {
        timeline,
        source: source.conninfo.expose().to_owned(),
        slot: source.slot.clone(),
        task: match goes {
            true => AssignedTask::Delete { forget_slot },
            false => AssignedTask::Ingest,
        },
        writer: Some(source.writer()),
        reattach: catalog.reattach(timeline),
        settings: tenant.settings,
    })
}
