//! Generated from `proto/`: messages, clients and servers of every gRPC service.
//!
//! Nothing but the codec is written by hand here. Domain types and conversions are in `palimpsest-api`.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::large_futures,
    clippy::too_many_lines,
    clippy::doc_markdown,
    reason = "generated code; its documentation is in the proto files"
)]

macro_rules! packages {
    ($($area:ident)*) => {
        $(
            #[doc = concat!("Protocols of the area `", stringify!($area), "`.")]
            pub mod $area {
                #[doc = concat!("Package `palimpsest.", stringify!($area), ".v1`.")]
                pub mod v1 {
                    include!(concat!(env!("OUT_DIR"), "/palimpsest.", stringify!($area), ".v1.rs"));
                }
            }
        )*
    };
}

pub mod codec;

packages!(admin broker common compaction ingest page redo);

/// The encoded file descriptor set, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
