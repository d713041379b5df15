//! Settings as the log has them (`xlog_internal.h`).

use bytes::Bytes;
use palimpsest_codec::{Cursor, TruncatedError};

/// Settings of the source that its log depends on, as `xl_parameter_change` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: u32,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

impl Parameters {
    /// Bytes of the encoded form, which is that of the log: six numbers, two flags, padding.
    pub const LEN: usize = 28;

    /// The encoded form.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let numbers = [
            self.max_connections,
            self.max_worker_processes,
            self.max_wal_senders,
            self.max_prepared_transactions,
            self.max_locks_per_transaction,
            self.wal_level,
        ];
        let flags = [self.wal_log_hints, self.track_commit_timestamp];
        let mut bytes = [0; Self::LEN];
        let (of_numbers, of_flags) = bytes.split_at_mut(4 * numbers.len());
        for (to, number) in of_numbers.chunks_exact_mut(4).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        for (to, flag) in of_flags.iter_mut().zip(flags) {
            *to = flag.into();
        }
        bytes
    }

    /// What [`Parameters::to_bytes`] wrote, or the log has.
    ///
    /// # Errors
    /// If it is cut short.
    pub fn decode(bytes: &Bytes) -> Result<Self, TruncatedError> {
        let mut cursor = Cursor::new(bytes.clone());
        Ok(Self {
            max_connections: cursor.u32("max_connections")?,
            max_worker_processes: cursor.u32("max_worker_processes")?,
            max_wal_senders: cursor.u32("max_wal_senders")?,
            max_prepared_transactions: cursor.u32("max_prepared_transactions")?,
            max_locks_per_transaction: cursor.u32("max_locks_per_transaction")?,
            wal_level: cursor.u32("wal_level")?,
            wal_log_hints: cursor.u8("wal_log_hints")? != 0,
            track_commit_timestamp: cursor.u8("track_commit_timestamp")? != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_stand_where_the_log_has_them() {
        let parameters = Parameters {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 5,
            max_locks_per_transaction: 64,
            wal_level: 1,
            wal_log_hints: false,
            track_commit_timestamp: true,
        };
        let bytes = parameters.to_bytes();
        assert_eq!((bytes[0], bytes[12], bytes[20]), (100, 5, 1));
        assert_eq!(bytes[24..], [0, 1, 0, 0]);
        let bytes = Bytes::copy_from_slice(&bytes);
        assert_eq!(Parameters::decode(&bytes), Ok(parameters));
        assert!(Parameters::decode(&bytes.slice(..25)).is_err());
    }
}
