//! The gRPC adaptor: messages in, one core call, messages out.

mod feed;

pub(crate) use feed::FeedHandler;
