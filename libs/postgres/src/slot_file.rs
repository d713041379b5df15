//! A physical replication slot as it is on disk, in `pg_replslot/NAME/state` (`slot.c`, `slot.h`).

use bytes::{BufMut as _, Bytes, BytesMut};
use palimpsest_codec::crc32c;
use palimpsest_types::Lsn;

use crate::slot_name::SlotName;

/// `SLOT_MAGIC`.
const MAGIC: u32 = 0x0105_1CA1;
/// `SLOT_VERSION` of PostgreSQL 15.
const VERSION: u32 = 2;
/// `NAMEDATALEN`: a name is padded with zeros.
const NAME_LEN: usize = 64;
/// Of `ReplicationSlotPersistentData`, padded to 8 bytes.
const LEN: usize = 184;

/// The file of a slot that stays, and keeps the log from this LSN on.
pub fn slot_file(name: &SlotName, restart: Lsn) -> Bytes {
    let mut slot = BytesMut::with_capacity(LEN);
    slot.put_slice(name.as_str().as_bytes());
    slot.put_bytes(0, NAME_LEN.saturating_sub(slot.len()));
    // No database, as it is not logical; persistent; no xmin and no catalog_xmin.
    slot.put_bytes(0, 16);
    slot.put_u64_le(restart.get());
    // Not invalidated; and what only logical slots have.
    slot.put_bytes(0, LEN - slot.len());
    let mut checked = BytesMut::with_capacity(LEN + 8);
    checked.put_u32_le(VERSION);
    checked.put_u32_le(LEN as u32);
    checked.put_slice(&slot);
    let mut file = BytesMut::with_capacity(LEN + 16);
    file.put_u32_le(MAGIC);
    file.put_u32_le(crc32c(&checked));
    file.put_slice(&checked);
    file.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By `slot.h`; that a server takes it, the judge of what is written on branches sees.
    #[test]
    fn is_as_the_server_writes_it() {
        let file = slot_file(&"kept".parse().unwrap(), Lsn::new(0x0123_4567_89AB_CDE8));
        assert_eq!(file.len(), 200);
        assert_eq!(file[..4], [0xA1, 0x1C, 0x05, 0x01]);
        assert_eq!(file[8..16], [2, 0, 0, 0, 0xB8, 0, 0, 0]);
        assert_eq!(file[4..8], crc32c(&file[8..]).to_le_bytes());
        assert_eq!(file[16..20], *b"kept");
        assert_eq!(file[96..104], 0x0123_4567_89AB_CDE8_u64.to_le_bytes());
        let rest = [&file[20..96], &file[104..]].concat();
        assert!(rest.iter().all(|byte| *byte == 0));
    }
}
