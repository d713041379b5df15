//! The gRPC adaptor: messages in, one core call, messages out.

mod page;

pub(crate) use page::PageHandler;
