use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use palimpsest_api::{InvalidMessageError, TimelineRef, error_status, lease::lease_id, request_id};
use palimpsest_postgres::SlotName;
use palimpsest_proto::admin::v1::{
    AttachTenantRequest, AttachTenantResponse, CreateBranchRequest, CreateBranchResponse,
    DeleteBranchRequest, DeleteBranchResponse, DeleteTenantRequest, DeleteTenantResponse,
    DropLeaseRequest, DropLeaseResponse, GetTenantSettingsRequest, GetTenantSettingsResponse,
    GetTimelineRequest, GetTimelineResponse, GetTimelineSizesRequest, GetTimelineSizesResponse,
    LeaseLsnRequest, LeaseLsnResponse, LeaveSourceRequest, LeaveSourceResponse,
    ListComputesRequest, ListComputesResponse, ListLeasesRequest, ListLeasesResponse,
    ListTenantsRequest, ListTenantsResponse, ListTimelinesRequest, ListTimelinesResponse,
    PatchTenantSettingsRequest, PatchTenantSettingsResponse, ReattachRequest, ReattachResponse,
    SetBranchSourceRequest, SetBranchSourceResponse, UpdateBranchRequest, UpdateBranchResponse,
    WatchTimelinesRequest, WatchTimelinesResponse,
    admin_service_server::{AdminService, AdminServiceServer},
};
use palimpsest_proto::common::v1 as common;
use palimpsest_runtime::TaskScope;
use palimpsest_types::{ErrorKind, Fault, Lsn, Reason, SystemIdentifier};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::core::{
    BranchSource, Broker, CatalogError, ChangeError, InspectError, LeaseError, Name, NewBranch,
    NewLease, NewTenant, SettingsChange, TIMELINES_AT_ONCE, TenantError,
};

/// `AdminService`.
#[derive(Debug)]
pub struct AdminApi {
    broker: Broker,
    /// Held by those who watch timelines.
    watchers: Arc<Semaphore>,
    /// Held while manifests are read.
    measuring: Arc<Semaphore>,
    scope: TaskScope,
}

/// Who watches timelines at the same time, at most.
const WATCHERS: usize = 64;
/// For how many the manifests of all timelines are read at the same time; others wait for their turn.
const MEASURING: usize = 2;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl AdminApi {
    /// Serves this broker; watchers are let go when the scope's token is cancelled.
    pub fn new(broker: Broker, scope: TaskScope) -> Self {
        Self {
            broker,
            watchers: Arc::new(Semaphore::new(WATCHERS)),
            measuring: Arc::new(Semaphore::new(MEASURING)),
            scope,
        }
    }

    /// The service with its limits.
    pub fn into_server(self) -> AdminServiceServer<Self> {
        AdminServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    type ListTimelinesStream = Answers<ListTimelinesResponse>;
    type GetTimelineSizesStream = Answers<GetTimelineSizesResponse>;
    type WatchTimelinesStream = Answers<WatchTimelinesResponse>;

    async fn list_tenants(
        &self,
        _: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        let tenants = self.broker.tenants().into_iter().map(Into::into).collect();
        Ok(Response::new(ListTenantsResponse { tenants }))
    }

    async fn list_timelines(
        &self,
        request: Request<ListTimelinesRequest>,
    ) -> Result<Response<Self::ListTimelinesStream>, Status> {
        let tenant = some_tenant(&request.into_inner().tenant_name)?;
        let timelines = self.broker.timelines(tenant.as_ref());
        let timelines = timelines.map_err(|error| untold(&error))?;
        let pieces = stream::iter(timelines).chunks(TIMELINES_AT_ONCE);
        let pieces = pieces.map(|piece| {
            let timelines = piece.into_iter().map(Into::into).collect();
            Ok(ListTimelinesResponse { timelines })
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn get_timeline(
        &self,
        request: Request<GetTimelineRequest>,
    ) -> Result<Response<GetTimelineResponse>, Status> {
        let timeline = timeline(request.into_inner().timeline)?;
        let found = self.broker.timeline(timeline).await;
        let details = found.map_err(|error| untold(&error))?;
        Ok(Response::new(details.into()))
    }

    async fn get_timeline_sizes(
        &self,
        request: Request<GetTimelineSizesRequest>,
    ) -> Result<Response<Self::GetTimelineSizesStream>, Status> {
        let tenant = some_tenant(&request.into_inner().tenant_name)?;
        let timelines = self.broker.timelines(tenant.as_ref());
        let timelines = timelines.map_err(|error| untold(&error))?;
        let (broker, measuring) = (self.broker.clone(), Arc::clone(&self.measuring));
        // Within the stream, so that it ends with the call.
        let sizes = stream::once(async move {
            let _turn = measuring.acquire().await;
            stream::iter(broker.sizes(&timelines).await)
        });
        let pieces = sizes.flatten().chunks(TIMELINES_AT_ONCE).map(|piece| {
            let sizes = piece.into_iter().map(Into::into).collect();
            Ok(GetTimelineSizesResponse { sizes })
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn watch_timelines(
        &self,
        request: Request<WatchTimelinesRequest>,
    ) -> Result<Response<Self::WatchTimelinesStream>, Status> {
        let tenant = some_tenant(&request.into_inner().tenant_name)?;
        let told = self.broker.told_nothing(tenant);
        let told = told.map_err(|error| untold(&error))?;
        let permit = Arc::clone(&self.watchers).try_acquire_owned();
        let permit =
            permit.map_err(|_| untold(&InspectError::TooManyWatchers { limit: WATCHERS }))?;
        let (reader, messages) = mpsc::channel(1);
        let (telling, token) = (
            told.tell_on(self.broker.watch(), reader),
            self.scope.token(),
        );
        let token = token.clone();
        self.scope.spawn("timeline watch", async move {
            let _held = permit;
            // Cancel-safe: whoever watches begins anew.
            token.run_until_cancelled(telling).await;
        });
        let messages = ReceiverStream::new(messages).map(|changes| Ok(changes.into()));
        Ok(Response::new(Box::pin(messages)))
    }

    async fn list_computes(
        &self,
        request: Request<ListComputesRequest>,
    ) -> Result<Response<ListComputesResponse>, Status> {
        let tenant = some_tenant(&request.into_inner().tenant_name)?;
        let computes = self.broker.computes(tenant.as_ref());
        let computes = computes.map_err(|error| untold(&error))?;
        let computes = computes.into_iter().map(Into::into).collect();
        Ok(Response::new(ListComputesResponse { computes }))
    }

    async fn attach_tenant(
        &self,
        request: Request<AttachTenantRequest>,
    ) -> Result<Response<AttachTenantResponse>, Status> {
        let request = request.into_inner();
        let slot = Some(request.slot_name.as_str()).filter(|slot| !slot.is_empty());
        let new = NewTenant::parse(&request.name, &request.source_conninfo, slot)
            .map_err(|error| invalid(&error))?;
        let attached = self.broker.attach(new).await;
        let timeline = attached.map_err(|error| failed(&error))?;
        Ok(Response::new(AttachTenantResponse {
            timeline: Some(timeline.into()),
        }))
    }

    async fn delete_tenant(
        &self,
        request: Request<DeleteTenantRequest>,
    ) -> Result<Response<DeleteTenantResponse>, Status> {
        let DeleteTenantRequest { name, forget_slot } = request.into_inner();
        let name = name.parse().map_err(|error| invalid(&error))?;
        let deleted = self.broker.delete(name, forget_slot).await;
        let timeline = deleted.map_err(|error| failed(&error))?;
        Ok(Response::new(DeleteTenantResponse {
            timeline: Some(timeline.into()),
        }))
    }

    async fn leave_source(
        &self,
        request: Request<LeaveSourceRequest>,
    ) -> Result<Response<LeaveSourceResponse>, Status> {
        let LeaveSourceRequest {
            tenant_name: name,
            forget_slot,
        } = request.into_inner();
        let name = tenant_name(&name)?;
        let left = self.broker.leave_source(&name, forget_slot).await;
        let left = left.map_err(|error| error_status(error.fault(), &error))?;
        Ok(Response::new(LeaveSourceResponse {
            timeline: Some(left.timeline.into()),
            begins_on: Some(left.begins_on.into()),
            lsn: left.lsn.get(),
        }))
    }

    async fn get_tenant_settings(
        &self,
        request: Request<GetTenantSettingsRequest>,
    ) -> Result<Response<GetTenantSettingsResponse>, Status> {
        let name = tenant_name(&request.into_inner().name)?;
        let settings = self
            .broker
            .settings(&name)
            .map_err(|error| refused(&error))?;
        Ok(Response::new(GetTenantSettingsResponse {
            settings: settings.into_iter().map(Into::into).collect(),
        }))
    }

    async fn patch_tenant_settings(
        &self,
        request: Request<PatchTenantSettingsRequest>,
    ) -> Result<Response<PatchTenantSettingsResponse>, Status> {
        let PatchTenantSettingsRequest { name, set, unset } = request.into_inner();
        let name = tenant_name(&name)?;
        let set = set.into_iter().map(|setting| (setting.name, setting.value));
        let set = set.collect();
        let changed = self
            .broker
            .configure(name.clone(), SettingsChange { set, unset });
        changed.await.map_err(|error| failed(&error))?;
        let settings = self
            .broker
            .settings(&name)
            .map_err(|error| refused(&error))?;
        Ok(Response::new(PatchTenantSettingsResponse {
            settings: settings.into_iter().map(Into::into).collect(),
        }))
    }

    async fn reattach(
        &self,
        request: Request<ReattachRequest>,
    ) -> Result<Response<ReattachResponse>, Status> {
        let ReattachRequest {
            timeline: of,
            request_id: id,
        } = request.into_inner();
        let id = request_id(&id).map_err(|error| malformed(&error))?;
        let asked = self.broker.reattach(timeline(of)?, id).await;
        let asked = asked.map_err(|error| error_status(error.fault(), &error))?;
        Ok(Response::new(ReattachResponse {
            after_lsn: asked.after.get(),
        }))
    }

    async fn create_branch(
        &self,
        request: Request<CreateBranchRequest>,
    ) -> Result<Response<CreateBranchResponse>, Status> {
        let CreateBranchRequest {
            parent,
            name,
            lsn,
            expires_unix_ms,
        } = request.into_inner();
        let new = NewBranch {
            parent: timeline(parent)?,
            name: name.parse().map_err(|error| invalid(&error))?,
            lsn: (lsn > 0).then(|| Lsn::new(lsn)),
            expires_unix_ms: some_time(expires_unix_ms),
        };
        let branched = self.broker.branch(new).await;
        let branched = branched.map_err(|error| error_status(error.fault(), &error))?;
        Ok(Response::new(CreateBranchResponse {
            timeline: Some(branched.timeline.into()),
            begins_on: Some(branched.begins_on.into()),
            lsn: branched.lsn.get(),
        }))
    }

    async fn update_branch(
        &self,
        request: Request<UpdateBranchRequest>,
    ) -> Result<Response<UpdateBranchResponse>, Status> {
        let request = request.into_inner();
        let timeline = timeline(request.timeline)?;
        let name = Some(request.new_name).filter(|name| !name.is_empty());
        let name = name.map(|name| name.parse()).transpose();
        let name = name.map_err(|error| invalid(&error))?;
        let expires = request.expires_unix_ms.map(some_time);
        let updated = (self.broker).update_branch(timeline, name, request.is_protected, expires);
        updated.await.map_err(|error| failed(&error))?;
        Ok(Response::new(UpdateBranchResponse {}))
    }

    async fn set_branch_source(
        &self,
        request: Request<SetBranchSourceRequest>,
    ) -> Result<Response<SetBranchSourceResponse>, Status> {
        let request = request.into_inner();
        let timeline = timeline(request.timeline.clone())?;
        for (field, number) in [
            ("system_identifier", request.system_identifier),
            ("pg_timeline", request.pg_timeline.into()),
            ("begin_lsn", request.begin_lsn),
        ] {
            if number == 0 {
                return Err(malformed(&InvalidMessageError {
                    field,
                    problem: "is required".to_owned(),
                }));
            }
        }
        let replaces = Some(request.replaces_system_identifier).filter(|cluster| *cluster > 0);
        let source = branch_source(&request).map_err(|error| invalid(&error))?;
        let set =
            self.broker
                .set_branch_source(timeline, source, replaces.map(SystemIdentifier::new));
        set.await.map_err(|error| failed(&error))?;
        Ok(Response::new(SetBranchSourceResponse {}))
    }

    async fn delete_branch(
        &self,
        request: Request<DeleteBranchRequest>,
    ) -> Result<Response<DeleteBranchResponse>, Status> {
        let timeline = timeline(request.into_inner().timeline)?;
        let deleted = self.broker.delete_branch(timeline).await;
        deleted.map_err(|error| failed(&error))?;
        Ok(Response::new(DeleteBranchResponse {}))
    }

    async fn lease_lsn(
        &self,
        request: Request<LeaseLsnRequest>,
    ) -> Result<Response<LeaseLsnResponse>, Status> {
        let LeaseLsnRequest {
            timeline: of,
            lease_id: id,
            lsn,
            length_ms,
        } = request.into_inner();
        let new = NewLease {
            timeline: timeline(of)?,
            id: lease_id(&id).map_err(|error| malformed(&error))?,
            lsn: (lsn > 0).then(|| Lsn::new(lsn)),
            length: (length_ms > 0).then(|| Duration::from_millis(length_ms)),
        };
        let lease = self
            .broker
            .lease(new)
            .await
            .map_err(|error| unleased(&error))?;
        Ok(Response::new(LeaseLsnResponse {
            lease: Some(lease.into()),
        }))
    }

    async fn drop_lease(
        &self,
        request: Request<DropLeaseRequest>,
    ) -> Result<Response<DropLeaseResponse>, Status> {
        let DropLeaseRequest {
            timeline: of,
            lease_id: id,
        } = request.into_inner();
        let id = lease_id(&id).map_err(|error| malformed(&error))?;
        let dropped = self.broker.drop_lease(timeline(of)?, id).await;
        let existed = dropped.map_err(|error| unleased(&error))?;
        Ok(Response::new(DropLeaseResponse { existed }))
    }

    async fn list_leases(
        &self,
        request: Request<ListLeasesRequest>,
    ) -> Result<Response<ListLeasesResponse>, Status> {
        let leases = self
            .broker
            .leases(timeline(request.into_inner().timeline)?)
            .await;
        let leases = leases.map_err(|error| unleased(&error))?;
        let leases = leases.into_iter().map(Into::into).collect();
        Ok(Response::new(ListLeasesResponse { leases }))
    }
}

fn branch_source(request: &SetBranchSourceRequest) -> Result<BranchSource, TenantError> {
    let slot: SlotName = request.slot_name.parse()?;
    Ok(BranchSource {
        conninfo: request.source_conninfo.parse()?,
        slot: slot.to_string(),
        cluster: SystemIdentifier::new(request.system_identifier),
        pg_timeline: request.pg_timeline,
        begin: Lsn::new(request.begin_lsn),
    })
}

/// Empty is all.
fn some_tenant(name: &str) -> Result<Option<Name>, Status> {
    (!name.is_empty()).then(|| tenant_name(name)).transpose()
}

fn tenant_name(name: &str) -> Result<Name, Status> {
    name.parse().map_err(|error| invalid(&error))
}

/// 0 is never.
fn some_time(unix_ms: u64) -> Option<u64> {
    (unix_ms > 0).then_some(unix_ms)
}

fn timeline(message: Option<common::TimelineRef>) -> Result<TimelineRef, Status> {
    TimelineRef::try_from(message).map_err(|error| malformed(&error))
}

fn malformed(error: &InvalidMessageError) -> Status {
    error_status(error.fault(), error)
}

fn untold(error: &InspectError) -> Status {
    error_status(error.fault(), error)
}

fn unleased(error: &LeaseError) -> Status {
    error_status(error.fault(), error)
}

fn refused(error: &CatalogError) -> Status {
    error_status(error.fault(), error)
}

fn invalid(error: &TenantError) -> Status {
    error_status(Fault::new(ErrorKind::Invalid, Reason::Malformed), error)
}

fn failed(error: &ChangeError) -> Status {
    error_status(error.fault(), error)
}
