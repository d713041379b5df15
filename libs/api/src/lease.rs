//! Leases: LSNs that stay readable while somebody needs them.

mod held;

use std::time::Duration;

use palimpsest_proto::admin::v1::{self as wire, admin_service_client::AdminServiceClient};
use palimpsest_types::{ErrorKind, LeaseId, Lsn};

use crate::{
    broker::{malformed, within_deadline},
    channel::{Channel, connect_lazily},
    convert::{InvalidMessageError, TimelineRef, id_bytes, id_to_wire},
    status::RemoteError,
};

pub use held::HeldLease;

/// An LSN that stays readable for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Chosen by who took it.
    pub id: LeaseId,
    /// The timeline whose history the LSN is of.
    pub timeline: TimelineRef,
    /// What may be read at.
    pub lsn: Lsn,
    /// Until when, in milliseconds since 1970.
    pub expires_unix_ms: u64,
}

/// Takes and drops leases at the storage-broker. Clones share a connection.
#[derive(Debug, Clone)]
pub struct LeaseClient {
    admin: AdminServiceClient<Channel>,
}

impl LeaseClient {
    /// A client of the storage-broker at `address`, connected when first used.
    ///
    /// # Errors
    /// If it is not an address.
    pub fn new(address: &str) -> Result<Self, RemoteError> {
        let admin = AdminServiceClient::new(connect_lazily(address)?);
        Ok(Self { admin })
    }

    /// Takes a lease, or extends the one with this id. Without an LSN it is that of the lease, or the newest;
    /// without a length it lasts as long as the storage-broker likes. An LSN may be yet to come.
    ///
    /// # Errors
    /// What the storage-broker says.
    pub async fn take(
        &self,
        timeline: TimelineRef,
        id: LeaseId,
        lsn: Option<Lsn>,
        length: Option<Duration>,
    ) -> Result<Lease, RemoteError> {
        if lsn == Some(Lsn::ZERO) {
            return Err(RemoteError::new(
                ErrorKind::Invalid,
                "there is nothing at 0/0",
            ));
        }
        let length = length.map_or(0, |length| length.as_millis().max(1));
        let request = wire::LeaseLsnRequest {
            timeline: Some(timeline.into()),
            lease_id: id_to_wire(id.as_bytes()),
            lsn: lsn.unwrap_or_default().get(),
            length_ms: u64::try_from(length).unwrap_or(u64::MAX),
        };
        let mut admin = self.admin.clone();
        let answer = within_deadline(admin.lease_lsn(request)).await?;
        let missing = || InvalidMessageError::missing("lease");
        let lease = answer.lease.ok_or_else(missing).and_then(Lease::try_from);
        lease.map_err(malformed)
    }

    /// Ends a lease; whether there was one.
    ///
    /// # Errors
    /// What the storage-broker says.
    pub async fn drop_lease(
        &self,
        timeline: TimelineRef,
        id: LeaseId,
    ) -> Result<bool, RemoteError> {
        let request = wire::DropLeaseRequest {
            timeline: Some(timeline.into()),
            lease_id: id_to_wire(id.as_bytes()),
        };
        let mut admin = self.admin.clone();
        let answer = within_deadline(admin.drop_lease(request)).await?;
        Ok(answer.existed)
    }

    /// The leases of a timeline's own LSNs.
    ///
    /// # Errors
    /// What the storage-broker says.
    pub async fn list(&self, timeline: TimelineRef) -> Result<Vec<Lease>, RemoteError> {
        let request = wire::ListLeasesRequest {
            timeline: Some(timeline.into()),
        };
        let mut admin = self.admin.clone();
        let answer = within_deadline(admin.list_leases(request)).await?;
        let leases = answer.leases.into_iter().map(Lease::try_from);
        leases.collect::<Result<_, _>>().map_err(malformed)
    }
}

/// The id in a request or an answer.
///
/// # Errors
/// If it has not 16 bytes.
pub fn lease_id(bytes: &[u8]) -> Result<LeaseId, InvalidMessageError> {
    id_bytes("lease_id", bytes).map(LeaseId::from_bytes)
}

impl From<Lease> for wire::Lease {
    fn from(lease: Lease) -> Self {
        Self {
            lease_id: id_to_wire(lease.id.as_bytes()),
            timeline: Some(lease.timeline.into()),
            lsn: lease.lsn.get(),
            expires_unix_ms: lease.expires_unix_ms,
        }
    }
}

impl TryFrom<wire::Lease> for Lease {
    type Error = InvalidMessageError;

    fn try_from(message: wire::Lease) -> Result<Self, Self::Error> {
        Ok(Self {
            id: lease_id(&message.lease_id)?,
            timeline: message.timeline.try_into()?,
            lsn: Lsn::new(message.lsn),
            expires_unix_ms: message.expires_unix_ms,
        })
    }
}
