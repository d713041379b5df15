//! `global/pg_control` of PostgreSQL 15 on a little-endian 64-bit machine.
//!
//! | bytes   | field                                                      |
//! |---------|------------------------------------------------------------|
//! | 0–7     | system identifier                                          |
//! | 8–11    | version of this format, 1300                               |
//! | 12–15   | catalog version                                            |
//! | 16–31   | state, time of the last change                             |
//! | 32–39   | position of the last checkpoint record                     |
//! | 40–127  | copy of that record                                        |
//! | 128–171 | recovery positions                                         |
//! | 172–203 | settings that a standby needs: `wal_level`, `wal_log_hints`… |
//! | 204–255 | what the server was built with, checksum version           |
//! | 256–287 | nonce                                                      |
//! | 288–291 | CRC-32C of all before                                      |
//!
//! The file is padded with zeros to 8 KiB. The version stands near the front so that every version
//! of PostgreSQL finds it there.

use bytes::{BufMut as _, Bytes, BytesMut};
use palimpsest_codec::{Cursor, TruncatedError, crc32c};
use palimpsest_types::{ErrorKind, Lsn, Oid, SystemIdentifier};

use crate::Tli;

/// What a control file says about its cluster, as far as following it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// Version of the control file's format.
    pub control_version: u32,
    /// Version of the system catalogues.
    pub catalog_version: u32,
    /// Position of the last checkpoint record.
    pub checkpoint: Lsn,
    /// The record itself.
    pub checkpoint_copy: CheckPoint,
    /// What a standby needs: minimal 0, replica 1, logical 2.
    pub wal_level: u32,
    /// Whether hint bits are WAL-logged without checksums.
    pub wal_log_hints: bool,
    /// Connections at most.
    pub max_connections: u32,
    /// Background workers at most.
    pub max_worker_processes: u32,
    /// WAL senders at most.
    pub max_wal_senders: u32,
    /// Prepared transactions at most.
    pub max_prepared_transactions: u32,
    /// Locks of a transaction, on average at most.
    pub max_locks_per_transaction: u32,
    /// Whether commit times are kept.
    pub track_commit_timestamp: bool,
    /// Bytes of a data page.
    pub block_size: u32,
    /// Pages of a segment file of a relation.
    pub relation_segment_size: u32,
    /// Bytes of a WAL page.
    pub wal_block_size: u32,
    /// Bytes of a WAL segment; a power of two from 1 MiB to 1 GiB.
    pub wal_segment_size: u32,
    /// Version of the data pages' checksums; 0 is none.
    pub data_checksum_version: u32,
}

/// A checkpoint record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckPoint {
    /// Where replay begins.
    pub redo: Lsn,
    /// The timeline.
    pub timeline: Tli,
    /// The timeline before; the same unless this record begins a new one.
    pub previous_timeline: Tli,
    /// Whether full page writes are on.
    pub full_page_writes: bool,
    /// Next transaction id, with its epoch in the upper half.
    pub next_xid: u64,
    /// Next object id.
    pub next_oid: Oid,
    /// Next multixact id.
    pub next_multi: u32,
    /// Next offset in the members of multixacts.
    pub next_multi_offset: u32,
    /// Oldest transaction id that is not frozen anywhere.
    pub oldest_xid: u32,
    /// The database that holds it.
    pub oldest_xid_db: Oid,
    /// Oldest multixact id in use anywhere.
    pub oldest_multi: u32,
    /// The database that holds it.
    pub oldest_multi_db: Oid,
    /// When, in seconds of Unix time.
    pub time: i64,
    /// Oldest transaction id with a commit time stamp; 0 is none.
    pub oldest_commit_ts_xid: u32,
    /// Newest transaction id with a commit time stamp; 0 is none.
    pub newest_commit_ts_xid: u32,
    /// Oldest transaction id that was running; 0 in a shutdown checkpoint.
    pub oldest_active_xid: u32,
}

/// What a control file must say so that a server starts from it without recovery, as after a shutdown; all else
/// is as in the one it is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutDown {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// Position of the checkpoint record.
    pub checkpoint: Lsn,
    /// The record itself.
    pub record: CheckPoint,
    /// What a standby needs: minimal 0, replica 1, logical 2.
    pub wal_level: u32,
    /// Whether hint bits are WAL-logged without checksums.
    pub wal_log_hints: bool,
    /// Connections, worker processes, WAL senders, prepared transactions and locks of a transaction at most.
    pub limits: [u32; 5],
    /// Whether commit times are kept.
    pub track_commit_timestamp: bool,
}

/// These bytes are not a usable control file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    /// Too short.
    #[error("the control file is cut short")]
    Truncated(#[source] TruncatedError),
    /// Of a server that this crate does not know.
    #[error(
        "the control file has version {found}; only {VERSION}, of PostgreSQL 13 to 16, is read"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// Damaged.
    #[error(
        "the control file is damaged: its checksum is {found:08x} and should be {computed:08x}"
    )]
    Checksum {
        /// The checksum in the file.
        found: u32,
        /// That of its bytes.
        computed: u32,
    },
    /// A size that PostgreSQL cannot be built with.
    #[error(
        "the control file gives a WAL segment size of {found}, which is not a power of two from 1 MiB to 1 GiB"
    )]
    SegmentSize {
        /// The size.
        found: u32,
    },
}

/// `PG_CONTROL_VERSION`, unchanged from PostgreSQL 13 to 16.
const VERSION: u32 = 1300;
/// Bytes before the checksum.
const CHECKED: usize = 288;
/// `PG_CONTROL_FILE_SIZE`.
const FILE_LEN: usize = 8192;
/// Where fields stand that are written.
const STATE: usize = 16;
const CHECKPOINT: usize = 32;
const SETTINGS: usize = 172;
/// `DB_SHUTDOWNED`.
const SHUT_DOWN: u32 = 1;
/// `FirstNormalUnloggedLSN`: relations that are not logged begin anew.
const FIRST_UNLOGGED: u64 = 1000;

impl ControlFile {
    /// Bytes that say something; the rest of the file is zeros.
    pub const LEN: usize = CHECKED + 4;

    /// Reads a control file. Bytes after the checksum do not matter.
    ///
    /// # Errors
    /// If it is of another version (kind `Invalid`) or damaged (kind `Corrupt`).
    pub fn parse(bytes: &Bytes) -> Result<Self, ControlFileError> {
        let mut head = Cursor::new(bytes.clone());
        head.skip(8, "system identifier")?;
        // Before the checksum: in another version that stands elsewhere.
        let found = head.u32("version")?;
        if found != VERSION {
            return Err(ControlFileError::Version { found });
        }
        let mut whole = Cursor::new(bytes.clone());
        let computed = crc32c(&whole.bytes(CHECKED, "control file")?);
        let found = whole.u32("checksum")?;
        if found != computed {
            return Err(ControlFileError::Checksum { found, computed });
        }
        let control = Self::fields(Cursor::new(bytes.clone()))?;
        match control.wal_segment_size {
            size if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => Ok(control),
            found => Err(ControlFileError::SegmentSize { found }),
        }
    }

    /// The whole file of a server that was shut down, made from that of the same cluster, which may lack the zeros
    /// at its end.
    ///
    /// # Errors
    /// If that is not a control file.
    pub fn shut_down(from: &Bytes, state: &ShutDown) -> Result<Bytes, ControlFileError> {
        Self::parse(from)?;
        let kept = |range: std::ops::Range<usize>| from.get(range).unwrap_or_default();
        let mut file = BytesMut::with_capacity(FILE_LEN);
        file.put_u64_le(state.system_identifier.get());
        file.put_slice(kept(8..STATE));
        file.put_u32_le(SHUT_DOWN);
        file.put_bytes(0, 4);
        file.put_i64_le(state.record.time);
        debug_assert_eq!(file.len(), CHECKPOINT);
        file.put_u64_le(state.checkpoint.get());
        file.put_slice(&state.record.to_bytes());
        file.put_u64_le(FIRST_UNLOGGED);
        // No recovery, and no backup that it would have to be from.
        file.put_bytes(0, SETTINGS - file.len());
        file.put_u32_le(state.wal_level);
        put_flag(&mut file, state.wal_log_hints, 4);
        for limit in state.limits {
            file.put_u32_le(limit);
        }
        put_flag(&mut file, state.track_commit_timestamp, 4);
        let kept_from = file.len();
        file.put_slice(kept(kept_from..CHECKED));
        let crc = crc32c(&file);
        file.put_u32_le(crc);
        file.put_bytes(0, FILE_LEN - file.len());
        Ok(file.freeze())
    }

    fn fields(mut cursor: Cursor) -> Result<Self, TruncatedError> {
        let system_identifier = SystemIdentifier::new(cursor.u64("system identifier")?);
        let control_version = cursor.u32("version")?;
        let catalog_version = cursor.u32("catalog version")?;
        cursor.skip(16, "state and time")?;
        let checkpoint = Lsn::new(cursor.u64("checkpoint position")?);
        let checkpoint_copy = CheckPoint::fields(&mut cursor)?;
        cursor.skip(44, "recovery positions")?;
        let wal_level = cursor.u32("wal_level")?;
        let wal_log_hints = flag(&mut cursor, 4, "wal_log_hints")?;
        let max_connections = cursor.u32("max_connections")?;
        let max_worker_processes = cursor.u32("max_worker_processes")?;
        let max_wal_senders = cursor.u32("max_wal_senders")?;
        let max_prepared_transactions = cursor.u32("max_prepared_transactions")?;
        let max_locks_per_transaction = cursor.u32("max_locks_per_transaction")?;
        let track_commit_timestamp = flag(&mut cursor, 4, "track_commit_timestamp")?;
        cursor.skip(12, "alignment")?;
        let block_size = cursor.u32("block size")?;
        let relation_segment_size = cursor.u32("relation segment size")?;
        let wal_block_size = cursor.u32("WAL block size")?;
        let wal_segment_size = cursor.u32("WAL segment size")?;
        cursor.skip(20, "name lengths and float passing")?;
        let data_checksum_version = cursor.u32("checksum version")?;
        Ok(Self {
            system_identifier,
            control_version,
            catalog_version,
            checkpoint,
            checkpoint_copy,
            wal_level,
            wal_log_hints,
            max_connections,
            max_worker_processes,
            max_wal_senders,
            max_prepared_transactions,
            max_locks_per_transaction,
            track_commit_timestamp,
            block_size,
            relation_segment_size,
            wal_block_size,
            wal_segment_size,
            data_checksum_version,
        })
    }
}

impl CheckPoint {
    /// Bytes of the record's data.
    pub const LEN: usize = 88;

    /// The record's data.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::LEN);
        bytes.put_u64_le(self.redo.get());
        bytes.put_u32_le(self.timeline);
        bytes.put_u32_le(self.previous_timeline);
        put_flag(&mut bytes, self.full_page_writes, 8);
        bytes.put_u64_le(self.next_xid);
        for number in [
            self.next_oid,
            self.next_multi,
            self.next_multi_offset,
            self.oldest_xid,
            self.oldest_xid_db,
            self.oldest_multi,
            self.oldest_multi_db,
        ] {
            bytes.put_u32_le(number);
        }
        bytes.put_bytes(0, 4);
        bytes.put_i64_le(self.time);
        bytes.put_u32_le(self.oldest_commit_ts_xid);
        bytes.put_u32_le(self.newest_commit_ts_xid);
        bytes.put_u32_le(self.oldest_active_xid);
        bytes.put_bytes(0, 4);
        bytes.freeze()
    }

    /// All of the record's data, trailing padding included. Fields stand in the order of reading.
    fn fields(cursor: &mut Cursor) -> Result<Self, TruncatedError> {
        let record = Self {
            redo: Lsn::new(cursor.u64("redo position")?),
            timeline: cursor.u32("timeline")?,
            previous_timeline: cursor.u32("previous timeline")?,
            full_page_writes: flag(cursor, 8, "full page writes")?,
            next_xid: cursor.u64("next transaction id")?,
            next_oid: cursor.u32("next OID")?,
            next_multi: cursor.u32("next multixact")?,
            next_multi_offset: cursor.u32("next multixact offset")?,
            oldest_xid: cursor.u32("oldest transaction id")?,
            oldest_xid_db: cursor.u32("its database")?,
            oldest_multi: cursor.u32("oldest multixact")?,
            oldest_multi_db: cursor.u32("its database")?,
            time: {
                cursor.skip(4, "padding")?;
                cursor.array("checkpoint time").map(i64::from_le_bytes)?
            },
            oldest_commit_ts_xid: cursor.u32("oldest commit time")?,
            newest_commit_ts_xid: cursor.u32("newest commit time")?,
            oldest_active_xid: cursor.u32("oldest running transaction")?,
        };
        cursor.skip(4, "padding")?;
        Ok(record)
    }
}

impl ControlFileError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Version { .. } => ErrorKind::Invalid,
            Self::Truncated(_) | Self::Checksum { .. } | Self::SegmentSize { .. } => {
                ErrorKind::Corrupt
            }
        }
    }
}

impl From<TruncatedError> for ControlFileError {
    fn from(error: TruncatedError) -> Self {
        Self::Truncated(error)
    }
}

/// A `bool` of C and the padding up to the next field, `width` bytes together.
fn flag(cursor: &mut Cursor, width: usize, what: &'static str) -> Result<bool, TruncatedError> {
    let value = cursor.u8(what)? != 0;
    cursor.skip(width - 1, what)?;
    Ok(value)
}

/// The same, written.
fn put_flag(bytes: &mut BytesMut, flag: bool, width: usize) {
    bytes.put_u8(flag.into());
    bytes.put_bytes(0, width - 1);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A control file with recognisable values at the offsets that the C compiler gives them.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &77u64.to_le_bytes());
        put(8, &VERSION.to_le_bytes());
        put(12, &202_209_061u32.to_le_bytes());
        put(32, &0x300_0060u64.to_le_bytes());
        put(40, &0x300_0028u64.to_le_bytes());
        put(48, &3u32.to_le_bytes());
        put(52, &2u32.to_le_bytes());
        put(56, &[1]);
        put(64, &(1u64 << 32 | 740).to_le_bytes());
        put(72, &16_390u32.to_le_bytes());
        put(104, &1_700_000_000i64.to_le_bytes());
        put(120, &739u32.to_le_bytes());
        put(172, &2u32.to_le_bytes());
        put(176, &[1]);
        for (index, value) in [100u32, 8, 10, 5, 64].into_iter().enumerate() {
            put(180 + 4 * index, &value.to_le_bytes());
        }
        put(200, &[1]);
        for (at, value) in [
            (216, 8192),
            (220, 131_072),
            (224, 8192),
            (228, 1 << 24),
            (252, 1u32),
        ] {
            put(at, &value.to_le_bytes());
        }
        seal(&mut bytes);
        bytes
    }

    fn seal(bytes: &mut [u8]) {
        let crc = crc32c(&bytes[..CHECKED]);
        bytes[CHECKED..CHECKED + 4].copy_from_slice(&crc.to_le_bytes());
    }

    fn parse(bytes: &[u8]) -> Result<ControlFile, ControlFileError> {
        ControlFile::parse(&Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn reads_fields_where_the_c_struct_has_them() {
        let control = parse(&sample()).unwrap();
        assert_eq!(control.system_identifier, SystemIdentifier::new(77));
        assert_eq!(control.checkpoint, Lsn::new(0x300_0060));
        let copy = &control.checkpoint_copy;
        assert_eq!((copy.redo, copy.timeline), (Lsn::new(0x300_0028), 3));
        assert_eq!((copy.previous_timeline, copy.full_page_writes), (2, true));
        assert_eq!((copy.next_xid, copy.next_oid), (1 << 32 | 740, 16_390));
        assert_eq!((copy.time, copy.oldest_active_xid), (1_700_000_000, 739));
        assert_eq!((control.wal_level, control.wal_log_hints), (2, true));
        assert_eq!(
            (control.max_connections, control.max_worker_processes),
            (100, 8)
        );
        assert_eq!(
            (control.max_wal_senders, control.max_prepared_transactions),
            (10, 5)
        );
        assert_eq!(control.max_locks_per_transaction, 64);
        assert!(control.track_commit_timestamp);
        assert_eq!(
            (control.block_size, control.wal_segment_size),
            (8192, 1 << 24)
        );
        assert_eq!(
            (control.relation_segment_size, control.data_checksum_version),
            (131_072, 1)
        );
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_found() {
        let bytes = sample();
        for bit in 0..(CHECKED + 4) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&damaged).is_err(), "bit {bit}");
        }
        for end in 0..CHECKED + 4 {
            let error = parse(&bytes[..end]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn another_version_or_segment_size_is_refused() {
        let mut bytes = sample();
        bytes[8..12].copy_from_slice(&1700u32.to_le_bytes());
        assert_eq!(
            parse(&bytes),
            Err(ControlFileError::Version { found: 1700 })
        );
        let mut bytes = sample();
        bytes[228..232].copy_from_slice(&3u32.to_le_bytes());
        seal(&mut bytes);
        assert_eq!(
            parse(&bytes),
            Err(ControlFileError::SegmentSize { found: 3 })
        );
    }

    #[test]
    fn a_server_that_was_shut_down_has_all_that_it_was_given_and_the_rest_of_before() {
        let from = Bytes::from(sample());
        let before = ControlFile::parse(&from).unwrap();
        let record = CheckPoint {
            redo: Lsn::new(0x500_0028),
            timeline: 9,
            previous_timeline: 9,
            oldest_active_xid: 0,
            time: 1_800_000_000,
            ..before.checkpoint_copy.clone()
        };
        let state = ShutDown {
            system_identifier: SystemIdentifier::new(78),
            checkpoint: Lsn::new(0x500_0028),
            record: record.clone(),
            wal_level: 1,
            wal_log_hints: false,
            limits: [1, 2, 3, 4, 5],
            track_commit_timestamp: false,
        };
        // What is kept of a base ends with the checksum.
        for from in [from.slice(..ControlFile::LEN), from.clone()] {
            let file = ControlFile::shut_down(&from, &state).unwrap();
            assert_eq!(file.len(), FILE_LEN);
            assert_eq!((file[16], &file[128..136]), (1, &1000u64.to_le_bytes()[..]));
            let expected = ControlFile {
                system_identifier: state.system_identifier,
                checkpoint: state.checkpoint,
                checkpoint_copy: record.clone(),
                wal_level: 1,
                wal_log_hints: false,
                max_connections: 1,
                max_worker_processes: 2,
                max_wal_senders: 3,
                max_prepared_transactions: 4,
                max_locks_per_transaction: 5,
                track_commit_timestamp: false,
                ..before.clone()
            };
            assert_eq!(ControlFile::parse(&file), Ok(expected));
        }
        assert!(ControlFile::shut_down(&from.slice(..200), &state).is_err());
    }

    proptest! {
        #[test]
        fn any_sealed_bytes_are_a_control_file_or_an_error(noise: [u8; 32], at in 0usize..256) {
            let mut bytes = sample();
            bytes[at..at + 32].copy_from_slice(&noise);
            seal(&mut bytes);
            let _ = parse(&bytes);
        }
    }
}
