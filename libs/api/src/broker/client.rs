use std::time::Duration;

use palimpsest_proto::{admin::v1 as admin, broker::v1 as wire};
use palimpsest_runtime::TaskScope;
use palimpsest_types::{ErrorKind, Lsn, NodeId, RequestId, SystemIdentifier};
use tokio::sync::watch;
use tonic::Streaming;

use super::{
    Assignment, BranchChange, BranchWriter, Branched, ClusterView, LeavingWriter, Member,
    Promotion, TimelineStatus, convert::status_to_wire,
};
use crate::{
    channel::{Channel, MAX_MESSAGE, connect_lazily},
    convert::{InvalidMessageError, TimelineRef, id_to_wire},
    status::RemoteError,
    tenant_settings::EffectiveSetting,
};

/// A client of the storage-broker.
#[derive(Debug, Clone)]
pub struct BrokerClient {
    membership: wire::membership_service_client::MembershipServiceClient<Channel>,
    admin: admin::admin_service_client::AdminServiceClient<Channel>,
}

/// How long a reader of the picture waits before it connects again.
const RETRY: Duration = Duration::from_millis(500);
/// A broker that does not answer within this is as good as down.
const DEADLINE: Duration = Duration::from_secs(10);

impl BrokerClient {
    /// A client of the broker at `address`, connected when first used.
    ///
    /// # Errors
    /// If it is not an address.
    pub fn new(address: &str) -> Result<Self, RemoteError> {
        let channel = connect_lazily(address)?;
        Ok(Self {
            membership: wire::membership_service_client::MembershipServiceClient::new(
                channel.clone(),
            )
            .max_decoding_message_size(MAX_MESSAGE),
            admin: admin::admin_service_client::AdminServiceClient::new(channel),
        })
    }

    /// Says that a node is alive and how far its timelines are; learns what it should write.
    ///
    /// # Errors
    /// If the broker can't be reached.
    pub async fn heartbeat(
        &mut self,
        member: Member,
        timelines: Vec<(TimelineRef, TimelineStatus)>,
    ) -> Result<Vec<Assignment>, RemoteError> {
        let timelines = timelines
            .into_iter()
            .map(|(id, status)| status_to_wire(id, status));
        let request = wire::HeartbeatRequest {
            member: Some(member.into()),
            timelines: timelines.collect(),
        };
        let answer = within_deadline(self.membership.heartbeat(request)).await?;
        let assignments = answer.assignments.into_iter().map(Assignment::try_from);
        assignments.collect::<Result<_, _>>().map_err(malformed)
    }

    /// Says that a node ends, so that nobody chooses it any more.
    ///
    /// # Errors
    /// If the broker can't be reached.
    pub async fn leave(&mut self, node: NodeId) -> Result<(), RemoteError> {
        let request = wire::LeaveRequest {
            node_id: id_to_wire(node.as_bytes()),
        };
        within_deadline(self.membership.leave(request)).await?;
        Ok(())
    }

    /// Claims a cluster for the tenant of a timeline. If another tenant has it, that one's name.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn claim_cluster(
        &mut self,
        timeline: TimelineRef,
        cluster: SystemIdentifier,
    ) -> Result<Option<String>, RemoteError> {
        let request = wire::ClaimClusterRequest {
            timeline: Some(timeline.into()),
            system_identifier: cluster.get(),
        };
        let answer = within_deadline(self.membership.claim_cluster(request)).await?;
        Ok(Some(answer.held_by).filter(|name| !name.is_empty()))
    }

    /// Has another timeline read from a server that was promoted, and lacks the end of this one.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn follow_promotion(
        &mut self,
        writer: LeavingWriter,
        promotion: Promotion,
    ) -> Result<TimelineRef, RemoteError> {
        let Promotion {
            at,
            pg_timeline,
            end,
        } = promotion;
        let request = wire::FollowPromotionRequest {
            timeline: Some(writer.timeline.into()),
            switch_lsn: at.get(),
            pg_timeline,
            end_lsn: end.get(),
            epoch: writer.epoch.get(),
        };
        let answer = within_deadline(self.membership.follow_promotion(request)).await?;
        answer.timeline.try_into().map_err(malformed)
    }

    /// The picture as it is now.
    ///
    /// # Errors
    /// If the broker can't be reached.
    pub async fn cluster(&mut self) -> Result<ClusterView, RemoteError> {
        let mut views = self.watch().await?;
        next_view(&mut views).await
    }

    async fn watch(&mut self) -> Result<Streaming<wire::WatchClusterResponse>, RemoteError> {
        within_deadline(self.membership.watch_cluster(wire::WatchClusterRequest {})).await
    }

    /// Makes the intent to attach durable; returns the new timeline.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn attach_tenant(
        &mut self,
        name: &str,
        source: &str,
        slot: Option<&str>,
    ) -> Result<TimelineRef, RemoteError> {
        let request = admin::AttachTenantRequest {
            name: name.to_owned(),
            source_conninfo: source.to_owned(),
            slot_name: slot.unwrap_or_default().to_owned(),
        };
        let answer = within_deadline(self.admin.attach_tenant(request)).await?;
        answer.timeline.try_into().map_err(malformed)
    }

    /// Starts the deletion of a tenant.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn delete_tenant(
        &mut self,
        name: &str,
        forget_slot: bool,
    ) -> Result<TimelineRef, RemoteError> {
        let request = admin::DeleteTenantRequest {
            name: name.to_owned(),
            forget_slot,
        };
        let answer = within_deadline(self.admin.delete_tenant(request)).await?;
        answer.timeline.try_into().map_err(malformed)
    }

    /// Has a tenant's source be read no more.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn leave_source(
        &mut self,
        tenant: &str,
        forget_slot: bool,
    ) -> Result<Branched, RemoteError> {
        let request = admin::LeaveSourceRequest {
            tenant_name: tenant.to_owned(),
            forget_slot,
        };
        let answer = within_deadline(self.admin.leave_source(request)).await?;
        Ok(Branched {
            timeline: answer.timeline.try_into().map_err(malformed)?,
            begins_on: answer.begins_on.try_into().map_err(malformed)?,
            lsn: Lsn::new(answer.lsn),
        })
    }

    /// The settings of a tenant, and what holds where it has none.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn tenant_settings(
        &mut self,
        name: &str,
    ) -> Result<Vec<EffectiveSetting>, RemoteError> {
        let request = admin::GetTenantSettingsRequest {
            name: name.to_owned(),
        };
        let answer = within_deadline(self.admin.get_tenant_settings(request)).await?;
        Ok(answer.settings.into_iter().map(Into::into).collect())
    }

    /// Sets some of a tenant's settings, by name and value, and takes others back; tells what holds then.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn set_tenant_settings(
        &mut self,
        name: &str,
        set: Vec<(String, String)>,
        unset: Vec<String>,
    ) -> Result<Vec<EffectiveSetting>, RemoteError> {
        let setting = |(name, value)| admin::patch_tenant_settings_request::Setting { name, value };
        let request = admin::PatchTenantSettingsRequest {
            name: name.to_owned(),
            set: set.into_iter().map(setting).collect(),
            unset,
        };
        let answer = within_deadline(self.admin.patch_tenant_settings(request)).await?;
        Ok(answer.settings.into_iter().map(Into::into).collect())
    }

    /// Has a timeline that has stopped go on from a base backup; tells where it ended. Asked again by the same id it tells the same,
    /// and nothing more is done.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn reattach(
        &mut self,
        timeline: TimelineRef,
        id: RequestId,
    ) -> Result<Lsn, RemoteError> {
        let request = admin::ReattachRequest {
            timeline: Some(timeline.into()),
            request_id: id_to_wire(id.as_bytes()),
        };
        let answer = within_deadline(self.admin.reattach(request)).await?;
        Ok(Lsn::new(answer.after_lsn))
    }

    /// Makes a branch that begins at an LSN of another timeline, or at the newest of that.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn create_branch(
        &mut self,
        parent: TimelineRef,
        name: &str,
        lsn: Option<Lsn>,
    ) -> Result<Branched, RemoteError> {
        self.create_branch_for(parent, name, lsn, None).await
    }

    /// The same of one that is deleted by itself, at so many milliseconds since 1970.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn create_branch_for(
        &mut self,
        parent: TimelineRef,
        name: &str,
        lsn: Option<Lsn>,
        expires_unix_ms: Option<u64>,
    ) -> Result<Branched, RemoteError> {
        let request = admin::CreateBranchRequest {
            parent: Some(parent.into()),
            name: name.to_owned(),
            lsn: lsn.unwrap_or_default().get(),
            expires_unix_ms: expires_unix_ms.unwrap_or(0),
        };
        let answer = within_deadline(self.admin.create_branch(request)).await?;
        Ok(Branched {
            timeline: answer.timeline.try_into().map_err(malformed)?,
            begins_on: answer.begins_on.try_into().map_err(malformed)?,
            lsn: Lsn::new(answer.lsn),
        })
    }

    /// Changes a branch.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn update_branch(
        &mut self,
        timeline: TimelineRef,
        change: BranchChange,
    ) -> Result<(), RemoteError> {
        let request = admin::UpdateBranchRequest {
            timeline: Some(timeline.into()),
            new_name: change.name.unwrap_or_default(),
            is_protected: change.is_protected,
            expires_unix_ms: change.expires_unix_ms.map(|at| at.unwrap_or(0)),
        };
        within_deadline(self.admin.update_branch(request)).await?;
        Ok(())
    }

    /// Says which PostgreSQL writes a branch from now on; if another does, only in the place of that.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn set_branch_source(
        &mut self,
        timeline: TimelineRef,
        (source, slot): (&str, &str),
        writer: BranchWriter,
        replaces: Option<SystemIdentifier>,
    ) -> Result<(), RemoteError> {
        let request = admin::SetBranchSourceRequest {
            timeline: Some(timeline.into()),
            source_conninfo: source.to_owned(),
            slot_name: slot.to_owned(),
            system_identifier: writer.system_identifier.get(),
            pg_timeline: writer.pg_timeline,
            begin_lsn: writer.begin.get(),
            replaces_system_identifier: replaces.map_or(0, SystemIdentifier::get),
        };
        within_deadline(self.admin.set_branch_source(request)).await?;
        Ok(())
    }

    /// Starts the deletion of a branch.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn delete_branch(&mut self, timeline: TimelineRef) -> Result<(), RemoteError> {
        let request = admin::DeleteBranchRequest {
            timeline: Some(timeline.into()),
        };
        within_deadline(self.admin.delete_branch(request)).await?;
        Ok(())
    }
}

/// Keeps the newest picture. With the broker down it stays as it was: nothing known is forgotten.
///
/// # Errors
/// If `broker` is not an address.
pub fn watch_cluster(
    broker: &str,
    scope: &TaskScope,
) -> Result<watch::Receiver<ClusterView>, RemoteError> {
    let mut client = BrokerClient::new(broker)?;
    let (sender, receiver) = watch::channel(ClusterView::default());
    let token = scope.token().clone();
    scope.spawn("cluster view", async move {
        // Cancel-safe: a picture that is dropped half read comes again whole.
        tokio::select! {
            () = token.cancelled() => {}
            () = follow(&mut client, &sender) => {}
        }
    });
    Ok(receiver)
}

async fn follow(client: &mut BrokerClient, sender: &watch::Sender<ClusterView>) {
    loop {
        if let Err(error) = follow_once(client, sender).await {
            tracing::debug!(%error, "the storage-broker is not there; going on with what is known");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow_once(
    client: &mut BrokerClient,
    sender: &watch::Sender<ClusterView>,
) -> Result<(), RemoteError> {
    let mut views = client.watch().await?;
    loop {
        let view = next_view(&mut views).await?;
        sender.send_replace(view);
    }
}

async fn next_view(
    views: &mut Streaming<wire::WatchClusterResponse>,
) -> Result<ClusterView, RemoteError> {
    let message = views
        .message()
        .await?
        .ok_or_else(|| RemoteError::unreachable("the storage-broker ended the stream"))?;
    ClusterView::try_from(message).map_err(malformed)
}

pub(crate) async fn within_deadline<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, RemoteError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(RemoteError::unreachable(
            "the storage-broker does not answer",
        )),
    }
}

pub(crate) fn malformed(error: InvalidMessageError) -> RemoteError {
    RemoteError::new(ErrorKind::Internal, format!("malformed answer: {error}"))
}
