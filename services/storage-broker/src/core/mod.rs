//! The storage-broker without its transport.

mod branch;
mod branching;
mod broker;
mod catalog;
mod catalog_store;
mod catalog_writer;
mod configuring;
#[cfg(test)]
mod fixture;
mod inspecting;
mod leasing;
mod leaving;
mod membership;
mod picture;
mod reattaching;
mod sizing;
mod sweeper;
mod tenant;

pub use branch::{Branch, BranchSource};
pub use branching::{BranchError, NewBranch};
pub use broker::{Broker, BrokerError};
pub use catalog::{Catalog, CatalogError, Change, SettingsChange};
pub use catalog_store::{CatalogStore, CatalogStoreError};
pub use catalog_writer::ChangeError;
pub use inspecting::{InspectError, TIMELINES_AT_ONCE, ToldTimelines};
pub use leasing::{LeaseError, NewLease};
pub use membership::{Membership, Timing, TooManyMembersError};
pub use reattaching::ReattachError;
pub use tenant::{AskedReattach, Name, NewTenant, Source, Tenant, TenantError, TenantState};
