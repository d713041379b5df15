//! One redo of a record that is made up here: does this installation work at all?

use bytes::{BufMut as _, Bytes, BytesMut};
use palimpsest_types::{BlockNumber, Fork, Lsn, RelTag};

use crate::{ApplyRequest, Engine, EngineSettings, RedoError, RedoRecord, StartError, Walls};

/// Redo does not work on this machine.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No process starts.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A process starts, but does not answer as it should.
    #[error("a redo process that has just started fails")]
    Redo(#[from] RedoError),
    /// The page is not what every PostgreSQL makes of the record.
    #[error(
        "redo of a single row gives another page than it should; is the library built for this postgres?"
    )]
    WrongPage,
}

const RM_HEAP: u8 = 10;
/// Insert, on a page that begins with it.
const INSERT_INIT: u8 = 0x80;
/// Of a block reference: its data follow, and the page begins here.
const BLOCK_FLAGS: u8 = 0x20 | 0x40;
const SHORT_MAIN_DATA: u8 = 255;
/// Of a row: a header of 23 bytes, padded.
const ROW_HEADER: u8 = 24;
const ROW: [u8; 4] = *b"row!";
const END: Lsn = Lsn::new(0x0123_4567_89AB_CDE8);
const REL: RelTag = RelTag {
    spc: 1663,
    db: 5,
    rel: 16384,
    fork: Fork::Main,
};

/// Starts a process, has it replay a record, and ends it. Returns the walls around it.
///
/// # Errors
/// What does not work.
pub async fn probe(settings: EngineSettings) -> Result<Walls, ProbeError> {
    let engine = Engine::start(settings).await?;
    let outcome = examine(&engine).await;
    engine.stop().await;
    outcome
}

async fn examine(engine: &Engine) -> Result<Walls, ProbeError> {
    let record = RedoRecord {
        start_lsn: Lsn::new(END.get() - 96),
        end_lsn: END,
        bytes: insert(),
    };
    let request = ApplyRequest {
        rel: REL,
        block: BlockNumber::ZERO,
        base: None,
        records: vec![record],
    };
    let page = engine.apply(request).await?;
    if !is_right(&page) {
        return Err(ProbeError::WrongPage);
    }
    Ok(engine.walls().await?)
}

/// The insertion of one row on an empty page, as a heap logs it.
fn insert() -> Bytes {
    let mut blocks = BytesMut::new();
    blocks.put_slice(&[0, BLOCK_FLAGS]);
    // Two infomasks and the header's length, a byte of padding, the row.
    let data = [&[1, 0, 0, 8, ROW_HEADER, 0], &ROW[..]].concat();
    blocks.put_u16_le(u16::try_from(data.len()).unwrap_or(u16::MAX));
    for id in [REL.spc, REL.db, REL.rel, 0] {
        blocks.put_u32_le(id);
    }
    // Main data: line pointer 1, no flags.
    blocks.put_slice(&[SHORT_MAIN_DATA, 3]);
    blocks.put_slice(&data);
    blocks.put_slice(&[1, 0, 0]);

    const HEADER: usize = 24;
    let mut record = BytesMut::new();
    record.put_u32_le(u32::try_from(HEADER + blocks.len()).unwrap_or(u32::MAX));
    // Transaction, previous record.
    record.put_u32_le(3);
    record.put_u64_le(0);
    record.put_slice(&[INSERT_INIT, RM_HEAP, 0, 0]);
    // Redo does not look at the checksum.
    record.put_u32_le(0);
    record.put_slice(&blocks);
    record.freeze()
}

/// The record's LSN, one line pointer, the row at the end.
fn is_right(page: &[u8]) -> bool {
    let high = u32::try_from(END.get() >> 32).unwrap_or_default();
    let low = u32::try_from(END.get() & 0xFFFF_FFFF).unwrap_or_default();
    let lsn = [high.to_le_bytes(), low.to_le_bytes()].concat();
    let lower = 28_u16.to_le_bytes();
    let row = page.len().saturating_sub(8)..page.len().saturating_sub(4);
    page.get(..8) == Some(&lsn[..])
        && page.get(12..14) == Some(&lower[..])
        && page.get(row) == Some(&ROW[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_page_is_not_right() {
        assert!(!is_right(&[0; 8192]));
        assert!(!is_right(&[]));
    }

    #[test]
    fn the_record_says_how_long_it_is() {
        let record = insert();
        assert_eq!(usize::from(record[0]), record.len());
    }
}
