use palimpsest_api::error_status;
use palimpsest_proto::admin::v1::{
    AttachTenantRequest, AttachTenantResponse, DeleteTenantRequest, DeleteTenantResponse,
    admin_service_server::{AdminService, AdminServiceServer},
};
use palimpsest_types::ErrorKind;
use tonic::{Request, Response, Status};

use crate::core::{Broker, ChangeError, NewTenant, TenantError};

/// `AdminService`.
#[derive(Debug)]
pub struct AdminApi {
    broker: Broker,
}

impl AdminApi {
    /// Serves this broker.
    pub fn new(broker: Broker) -> Self {
        Self { broker }
    }

    /// The service with its limits.
    pub fn into_server(self) -> AdminServiceServer<Self> {
        AdminServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl AdminService for AdminApi {
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
}

fn invalid(error: &TenantError) -> Status {
    error_status(ErrorKind::Invalid, error)
}

fn failed(error: &ChangeError) -> Status {
    error_status(error.kind(), error)
}
