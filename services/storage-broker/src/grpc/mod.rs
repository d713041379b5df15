//! The storage-broker's gRPC services.

mod admin;
mod membership;

pub use admin::AdminApi;
pub use membership::MembershipApi;
