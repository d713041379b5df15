//! The storage-broker without its transport.

mod broker;
mod catalog;
mod catalog_store;
mod catalog_writer;
mod membership;
mod picture;
mod tenant;

pub use broker::{Broker, BrokerError};
pub use catalog::{Catalog, CatalogError, Change};
pub use catalog_store::{CatalogStore, CatalogStoreError};
pub use catalog_writer::ChangeError;
pub use membership::{Membership, Timing, TooManyMembersError};
pub use tenant::{NewTenant, Source, Tenant, TenantError, TenantName, TenantState};
