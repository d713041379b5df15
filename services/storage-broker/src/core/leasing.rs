//! Leases: LSNs that stay readable for a while, each a pin in the manifest of the timeline whose history it is of.
//!
//! They are in no catalog: a manifest says what its timeline must keep, and whoever removes versions looks there.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use palimpsest_api::{TimelineRef, lease::Lease, tenant_settings::TenantSettings};
use palimpsest_manifest::{
    ManifestError, Pin, PinError, PinKind, Publisher, TimelineManifest, TimelineManifests,
    UpdateError, Versioned,
};
use palimpsest_types::{ErrorKind, Fault, LeaseId, Lsn, Reason, unix_ms};

use super::{
    branching::{Arrival, BranchError, end_of},
    broker::Broker,
    catalog_store::CatalogStoreError,
};

/// What is asked for when a lease is taken or extended.
#[derive(Debug, Clone, Copy)]
pub struct NewLease {
    /// The timeline that is to be read.
    pub timeline: TimelineRef,
    /// Chosen by who takes it.
    pub id: LeaseId,
    /// What is to be read at; that of the lease, or else the newest, without it.
    pub lsn: Option<Lsn>,
    /// How long from now it lasts; as the tenant has set it, or ten minutes, without it.
    pub length: Option<Duration>,
}

/// There is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Longer than anybody may keep something.
    #[error("a lease lasts at most {} days; extend it in time", TenantSettings::LONGEST_LEASE.as_secs() / DAY)]
    TooLong,
    /// It is not there.
    #[error("there is no timeline {0}")]
    UnknownTimeline(TimelineRef),
    /// Its id is that of a lease of something else.
    #[error("lease {id} is there already, and keeps {kept}")]
    Taken {
        /// The lease.
        id: LeaseId,
        /// What it keeps.
        kept: Lsn,
    },
    /// The LSN can't be read.
    #[error(transparent)]
    Point(BranchError),
    /// A manifest could not be read or published.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// What is to be kept can't be.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// There are too many.
    #[error(
        "the timeline has {LEASES} leases, which is the limit; drop some, or wait until some end"
    )]
    TooMany,
    /// The catalog can't be read.
    #[error(transparent)]
    Catalog(#[from] CatalogStoreError),
}

/// How long a lease lasts unless one says so, or the tenant has set it.
const LENGTH: Duration = Duration::from_secs(10 * 60);
/// What holds for a tenant that has set nothing.
pub(super) const TENANT_DEFAULTS: TenantSettings = TenantSettings {
    lease_length: Some(LENGTH),
    ..TenantSettings::NONE
};
const DAY: u64 = 24 * 60 * 60;
/// Of one timeline: branches begin on it as well, and each is a pin.
const LEASES: usize = 4096;
/// Clocks of storage-brokers may differ by so much: a lease that ended a shorter while ago stays.
const SLACK: Duration = Duration::from_secs(60);

/// A lease, where it is.
struct Found {
    timeline: TimelineRef,
    manifests: TimelineManifests,
    newest: Versioned<TimelineManifest>,
    pin: Pin,
}

impl Broker {
    /// Takes a lease, extends it, or finds the one that there is. An LSN may be yet to come.
    ///
    /// # Errors
    /// If nobody can read there, or the store fails. Dropping the future leaves it open whether there is a lease.
    pub async fn lease(&self, new: NewLease) -> Result<Lease, LeaseError> {
        let NewLease {
            timeline,
            id,
            lsn: asked,
            length,
        } = new;
        let set = self
            .catalog()
            .tenant_of(timeline.tenant)
            .and_then(|tenant| tenant.settings.lease_length);
        let length = length.or(set).unwrap_or(LENGTH);
        if length > TenantSettings::LONGEST_LEASE {
            return Err(LeaseError::TooLong);
        }
        self.expect_timeline(timeline).await?;
        // They would only be in each other's way at the manifest, and in the writer's.
        let _turn = self.branching().acquire().await;
        let (on, manifests, mut newest, lsn) = match self.find_lease(timeline, id).await? {
            // To extend it nothing must be known but the lease.
            Some(found) => {
                let lsn = asked.map_or(found.pin.lsn, |lsn| end_of(&found.newest.state, lsn));
                (found.timeline, found.manifests, found.newest, lsn)
            }
            None => {
                let point = self.point(timeline, asked, Arrival::Expected).await;
                let point = point.map_err(|error| LeaseError::of(timeline, error))?;
                (point.timeline, point.manifests, point.newest, point.lsn)
            }
        };
        let now = SystemTime::now();
        let (ends, ended) = (unix_ms(now + length), unix_ms(now - SLACK));
        let set = |manifest: &mut TimelineManifest| {
            let same = manifest.pin(pin_id(id)).copied();
            let differs = |same: &Pin| asked.is_some() && same.lsn != lsn;
            if let Some(same) = same.filter(|same| differs(same) || same.kind != PinKind::Lease) {
                let kept = same.lsn;
                return Err(LeaseError::Taken { id, kept });
            }
            // One that lasts longer, or is there after an answer of the store was lost.
            let lasts = |pin: &Pin| pin.expires_unix_ms.is_none_or(|end| end >= ends);
            if same.as_ref().is_some_and(lasts) {
                return Ok(false);
            }
            if same.is_none() && leases_of(manifest).count() >= LEASES {
                // They go with this change, or else there is none.
                manifest.remove_ended_leases(ended);
                if leases_of(manifest).count() >= LEASES {
                    return Err(LeaseError::TooMany);
                }
            }
            manifest.add_pin(Pin {
                id: pin_id(id),
                kind: PinKind::Lease,
                // Of two that ask at once for the newest one is first.
                lsn: same.map_or(lsn, |same| same.lsn),
                expires_unix_ms: Some(ends),
            })?;
            // Not before: what one of them keeps is there for this one.
            manifest.remove_ended_leases(ended);
            Ok(true)
        };
        let set = update(&manifests, &mut newest, set).await;
        set.map_err(|error| error.unless_gone(timeline))?;
        let pin = newest.state.pin(pin_id(id));
        Ok(Lease {
            id,
            timeline: on,
            lsn: pin.map_or(lsn, |pin| pin.lsn),
            expires_unix_ms: pin.and_then(|pin| pin.expires_unix_ms).unwrap_or(ends),
        })
    }

    /// Ends a lease; whether there was one.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn drop_lease(&self, timeline: TimelineRef, id: LeaseId) -> Result<bool, LeaseError> {
        let Some(found) = self.find_lease(timeline, id).await? else {
            return Ok(false);
        };
        let Found {
            manifests,
            mut newest,
            ..
        } = found;
        let remove = |manifest: &mut TimelineManifest| Ok(manifest.remove_pin(pin_id(id)));
        match update(&manifests, &mut newest, remove).await {
            // What is gone keeps nothing.
            Ok(_) | Err(LeaseError::Manifest(ManifestError::Gone)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The leases of a timeline's own LSNs.
    ///
    /// # Errors
    /// If there is no such timeline, or the store fails.
    pub async fn leases(&self, timeline: TimelineRef) -> Result<Vec<Lease>, LeaseError> {
        self.expect_timeline(timeline).await?;
        let Some(newest) = self.manifests(timeline).newest().await? else {
            return Ok(Vec::new());
        };
        let leases = leases_of(&newest.state).filter_map(|pin| {
            Some(Lease {
                id: LeaseId::from_bytes(pin.id.to_be_bytes()),
                timeline,
                lsn: pin.lsn,
                expires_unix_ms: pin.expires_unix_ms?,
            })
        });
        Ok(leases.collect())
    }

    /// A lease of a timeline, on it or on one that it begins on.
    async fn find_lease(
        &self,
        mut timeline: TimelineRef,
        id: LeaseId,
    ) -> Result<Option<Found>, LeaseError> {
        loop {
            let manifests = self.manifests(timeline);
            let Some(newest) = manifests.newest().await? else {
                return Ok(None);
            };
            let pin = newest.state.pin(pin_id(id)).copied();
            if let Some(pin) = pin.filter(|pin| pin.kind == PinKind::Lease) {
                return Ok(Some(Found {
                    timeline,
                    manifests,
                    newest,
                    pin,
                }));
            }
            match newest.state.ancestor {
                None => return Ok(None),
                Some(ancestor) => timeline.timeline = ancestor.timeline,
            }
        }
    }

    async fn expect_timeline(&self, timeline: TimelineRef) -> Result<(), LeaseError> {
        // Another storage-broker may have made it.
        match self.catalog().has(timeline) || self.newest_catalog().await?.has(timeline) {
            true => Ok(()),
            false => Err(LeaseError::UnknownTimeline(timeline)),
        }
    }
}

fn leases_of(manifest: &TimelineManifest) -> impl Iterator<Item = &Pin> {
    let pins = manifest.pins().iter();
    pins.filter(|pin| pin.kind == PinKind::Lease)
}

/// Removes leases that are over from a manifest, if there are any.
pub(super) async fn remove_ended(
    manifests: &TimelineManifests,
    newest: &mut Versioned<TimelineManifest>,
) -> Result<(), ManifestError> {
    let ended = unix_ms(SystemTime::now() - SLACK);
    // Looked at anew whenever another publisher is first: it may have been extended.
    let remove =
        |manifest: &mut TimelineManifest| Ok::<_, Infallible>(manifest.remove_ended_leases(ended));
    let removed = manifests.update(Publisher::Broker, newest, remove).await;
    match removed {
        Ok(_) | Err(UpdateError::Manifest(ManifestError::Gone)) => Ok(()),
        Err(UpdateError::Manifest(error)) => Err(error),
        Err(UpdateError::Edit(never)) => match never {},
    }
}

async fn update(
    manifests: &TimelineManifests,
    newest: &mut Versioned<TimelineManifest>,
    edit: impl Fn(&mut TimelineManifest) -> Result<bool, LeaseError>,
) -> Result<bool, LeaseError> {
    let updated = manifests.update(Publisher::Broker, newest, edit).await;
    updated.map_err(|error| match error {
        UpdateError::Edit(error) => error,
        UpdateError::Manifest(error) => LeaseError::Manifest(error),
    })
}

fn pin_id(lease: LeaseId) -> u128 {
    u128::from_be_bytes(*lease.as_bytes())
}

impl LeaseError {
    fn of(timeline: TimelineRef, error: BranchError) -> Self {
        match error {
            BranchError::Manifest(error) => Self::from(error).unless_gone(timeline),
            error => Self::Point(error),
        }
    }

    /// A timeline that goes meanwhile is not there.
    fn unless_gone(self, timeline: TimelineRef) -> Self {
        match self {
            Self::Manifest(ManifestError::Gone) => Self::UnknownTimeline(timeline),
            error => error,
        }
    }

    /// What the caller may do, and what is so, for programs.
    pub fn fault(&self) -> Fault {
        match self {
            Self::TooLong => Fault::new(ErrorKind::Invalid, Reason::Malformed),
            Self::UnknownTimeline(_) => Fault::new(ErrorKind::NotFound, Reason::UnknownTimeline),
            Self::Taken { .. } => Fault::new(ErrorKind::AlreadyExists, Reason::NameTaken),
            Self::Point(error) => error.fault(),
            Self::Manifest(error) => error.kind().into(),
            Self::Pin(PinError::BelowCutoff { .. }) => {
                Fault::new(ErrorKind::Invalid, Reason::BelowHorizon)
            }
            Self::TooMany | Self::Pin(PinError::TooMany) => {
                Fault::new(ErrorKind::Throttled, Reason::LimitReached)
            }
            Self::Catalog(error) => error.fault(),
        }
    }
}

#[cfg(test)]
mod tests;
