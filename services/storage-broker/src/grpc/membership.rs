use std::pin::Pin;

use futures::StreamExt as _;
use palimpsest_api::{
    InvalidMessageError, TimelineRef,
    broker::{
        Member, TimelineStatus, assignment_to_wire, claim_from_wire, leaving_from_wire,
        promotion_from_wire, status_from_wire, view_to_wire,
    },
    error_status,
};
use palimpsest_proto::broker::v1::{
    ClaimClusterRequest, ClaimClusterResponse, FollowPromotionRequest, FollowPromotionResponse,
    HeartbeatRequest, HeartbeatResponse, LeaveRequest, LeaveResponse, WatchClusterRequest,
    WatchClusterResponse,
    membership_service_server::{MembershipService, MembershipServiceServer},
};
use palimpsest_runtime::CancellationToken;
use tokio_stream::{Stream, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use crate::core::Broker;

/// `MembershipService`.
#[derive(Debug)]
pub struct MembershipApi {
    broker: Broker,
    token: CancellationToken,
}

impl MembershipApi {
    /// Serves this broker; watchers are let go when the token is cancelled.
    pub fn new(broker: Broker, token: CancellationToken) -> Self {
        Self { broker, token }
    }

    /// The service with its limits.
    pub fn into_server(self) -> MembershipServiceServer<Self> {
        MembershipServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl MembershipService for MembershipApi {
    type WatchClusterStream =
        Pin<Box<dyn Stream<Item = Result<WatchClusterResponse, Status>> + Send>>;

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let (member, statuses) =
            decode(request.into_inner()).map_err(|error| error_status(error.fault(), &error))?;
        let answer = self.broker.heartbeat(member, statuses).await;
        let assignments = answer.map_err(|error| error_status(error.kind(), &error))?;
        Ok(Response::new(HeartbeatResponse {
            assignments: assignments.into_iter().map(assignment_to_wire).collect(),
        }))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let node = leaving_from_wire(request.get_ref());
        let node = node.map_err(|error| error_status(error.fault(), &error))?;
        let left = self.broker.leave(node).await;
        left.map_err(|error| error_status(error.kind(), &error))?;
        Ok(Response::new(LeaveResponse {}))
    }

    async fn claim_cluster(
        &self,
        request: Request<ClaimClusterRequest>,
    ) -> Result<Response<ClaimClusterResponse>, Status> {
        let claim = claim_from_wire(request.into_inner());
        let (timeline, cluster) = claim.map_err(|error| error_status(error.fault(), &error))?;
        let claimed = self.broker.claim(timeline, cluster).await;
        let holder = claimed.map_err(|error| error_status(error.fault(), &error))?;
        Ok(Response::new(ClaimClusterResponse {
            held_by: holder.map(String::from).unwrap_or_default(),
        }))
    }

    async fn follow_promotion(
        &self,
        request: Request<FollowPromotionRequest>,
    ) -> Result<Response<FollowPromotionResponse>, Status> {
        let told = promotion_from_wire(request.into_inner());
        let (writer, promotion) = told.map_err(|error| error_status(error.fault(), &error))?;
        let next = self.broker.follow_promotion(writer, promotion).await;
        let next = next.map_err(|error| error_status(error.fault(), &error))?;
        Ok(Response::new(FollowPromotionResponse {
            timeline: Some(next.timeline.into()),
        }))
    }

    async fn watch_cluster(
        &self,
        _: Request<WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        // Reads the watch only when the last picture has left, so slow readers skip to the latest.
        let views = WatchStream::new(self.broker.watch())
            .map(|view| Ok(view_to_wire(view)))
            .take_until(self.token.clone().cancelled_owned());
        Ok(Response::new(Box::pin(views)))
    }
}

type Heartbeat = (Member, Vec<(TimelineRef, TimelineStatus)>);

fn decode(message: HeartbeatRequest) -> Result<Heartbeat, InvalidMessageError> {
    let missing = || InvalidMessageError {
        field: "member",
        problem: "is required".to_owned(),
    };
    let member = message.member.ok_or_else(missing)?.try_into()?;
    let statuses = message.timelines.into_iter().map(status_from_wire);
    Ok((member, statuses.collect::<Result<_, _>>()?))
}
