//! The gRPC adaptor: messages in, one core call, messages out.

mod base_backup;
mod hold;
mod listing;
mod page;
mod stream;

pub(crate) use hold::Holding;
pub(crate) use page::PageHandler;
