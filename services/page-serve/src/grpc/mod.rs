//! The gRPC adaptor: messages in, one core call, messages out.

mod page;
mod stream;

pub(crate) use page::PageHandler;
