//! Files of a PostgreSQL cluster, as a base backup brings them.

use bytes::Bytes;
use palimpsest_codec::crc32c;
use palimpsest_postgres::{
    BackupLabel, ControlFile, ReplicationOrigins, TarDecoder, TarEvent, TimelineHistory,
};

/// Bytes of a control file before its checksum.
const CONTROL_CHECKED: usize = 288;

/// `pg_control`, with a checksum that fits.
pub fn control_file(data: &[u8]) {
    let mut bytes = data.to_vec();
    if let Some((checked, rest)) = bytes.split_at_mut_checked(CONTROL_CHECKED)
        && let Some(stored) = rest.first_chunk_mut()
    {
        *stored = crc32c(checked).to_le_bytes();
    }
    if let Ok(control) = ControlFile::parse(&bytes.into()) {
        assert!(control.wal_segment_size.is_power_of_two());
    }
}

/// The list of replication origins, with a checksum that fits after it.
pub fn replication_origins(data: &[u8]) {
    const MAGIC: u32 = 0x1257_DADE;
    let mut bytes = MAGIC.to_le_bytes().to_vec();
    bytes.extend(data);
    let crc = crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    if let Ok(origins) = ReplicationOrigins::parse(&bytes.into()) {
        assert!(origins.iter().count() <= data.len() / 16);
    }
}

/// `backup_label`, or a timeline history.
pub fn backup_label(data: &[u8]) {
    let _ = BackupLabel::parse(data);
    if let Ok(text) = str::from_utf8(data) {
        let _ = TimelineHistory::parse("00000002.history", text);
    }
}

/// A tar archive that comes in pieces: of the first byte's length, and whole.
pub fn tar(data: &[u8]) {
    let Some((piece, archive)) = data.split_first() else {
        return;
    };
    let piece = usize::from(*piece).max(1);
    let in_pieces = contents(archive.chunks(piece));
    let whole = contents([archive].into_iter());
    assert_eq!(in_pieces, whole, "how it is cut changes what it holds");
}

/// Names and lengths of files, and whether it came to its end.
fn contents<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<String>, u64, bool) {
    let mut decoder = TarDecoder::new();
    let (mut heads, mut data_len) = (Vec::new(), 0);
    for piece in pieces {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match decoder.decode(&mut piece) {
                Ok(Some(TarEvent::Data(data))) => data_len += data.len() as u64,
                Ok(Some(head)) => heads.push(format!("{head:?}")),
                Ok(None) => break,
                Err(_) => return (heads, data_len, false),
            }
        }
    }
    (heads, data_len, decoder.finish().is_ok())
}
