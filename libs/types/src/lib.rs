//! The vocabulary of Palimpsest: log positions, identifiers, keys, ranges, sizes and error kinds.
//!
//! Everything here is a plain value: no async, no I/O, no wire format but the fixed key encoding.
//! Other crates may depend on this one freely; it depends on nothing of ours.

mod byte_count;
mod epoch;
mod error_kind;
mod ids;
mod key;
mod lsn;
mod percent;
mod reason;
mod rel;
mod unix_ms;

pub use byte_count::{ByteCount, ParseByteCountError};
pub use epoch::WriterEpoch;
pub use error_kind::ErrorKind;
pub use ids::{LeaseId, NodeId, ParseIdError, RequestId, SystemIdentifier, TenantId, TimelineId};
pub use key::{InvalidKeyError, Key, KeyRange, SlruKind};
pub use lsn::{Lsn, ParseLsnError};
pub use percent::{ParsePercentError, Percent};
pub use reason::{Fault, Reason};
pub use rel::{BlockNumber, Fork, InvalidForkError, Oid, ParseRelTagError, RelTag};
pub use unix_ms::unix_ms;

/// Size of a PostgreSQL page (`BLCKSZ`); clusters built with another size are refused at attach.
pub const PAGE_SIZE: usize = 8192;
