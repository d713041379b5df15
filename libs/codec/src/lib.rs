//! Reading untrusted bytes within bounds, and CRC-32C.
//!
//! [`Cursor`] is the one way bytes from outside are taken apart: every read is checked, and an
//! error says what was being read and where. It never allocates and never panics.

mod cursor;

pub use crc32c::{crc32c, crc32c_append};
pub use cursor::{Cursor, TruncatedError};
