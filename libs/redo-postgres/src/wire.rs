//! The bytes on the pipes, little-endian. The other side is `compute/redo`, whose README has the
//! same tables.
//!
//! ```text
//! request  0  u32 magic "PRQ1"     16 u32 tablespace (mask: resource manager)
//!          4  u32 total length     20 u32 database
//!          8  u32 operation        24 u32 relation
//!         12  u32 flags            28 u32 fork
//!                                  32 u32 block
//!                                  36 u32 number of records
//!         40  8192 bytes base page if flag 1 is set, then the records:
//!          0  u64 start LSN, u64 end LSN, u32 length, u32 zero
//!         24  the record, padded with zeros to a multiple of 8
//!
//! answer   0  u32 magic "PRA1", u32 status, u32 length, u32 zero
//!         16  a page; or u32 compared, u32 differing, a page; or u32 walls; or an error text
//! ```
//!
//! Everything is a multiple of 8 long so that the process can use records where they lie.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use palimpsest_types::{BlockNumber, PAGE_SIZE};

use crate::{ApplyRequest, RedoError, RedoRecord, Verified};

/// The longest request in bytes; the process ends itself when it sees a longer one.
pub const REQUEST_MAX: usize = 64 << 20;

const REQUEST_MAGIC: u32 = u32::from_le_bytes(*b"PRQ1");
const ANSWER_MAGIC: u32 = u32::from_le_bytes(*b"PRA1");
const REQUEST_HEADER: usize = 40;
const RECORD_HEADER: usize = 24;
const ANSWER_HEADER: usize = 16;
const VERDICT: usize = 8;
const FLAG_BASE: u32 = 1;
const STATUS_OK: u32 = 0;
const STATUS_ERROR: u32 = 1;

/// The longest body of an answer; error texts are cut off by the process well below it.
const ANSWER_MAX: usize = VERDICT + PAGE_SIZE;

/// The fixed part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RequestHeader {
    total_len: u32,
    operation: Operation,
    flags: u32,
    spc: u32,
    db: u32,
    rel: u32,
    fork: u32,
    block: u32,
    records: u32,
}

/// What to do with the page of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Operation {
    Apply = 1,
    Mask = 2,
    ApplyVerify = 3,
    Walls = 4,
}

/// What the process answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Done(Bytes),
    Refused(String),
}

/// The process sent something that is not an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error("an answer begins with {0:#010x}")]
    Magic(u32),
    #[error("an answer has status {0}")]
    Status(u32),
    #[error("an answer claims {0} bytes")]
    Length(u32),
}

/// The encoded length of an apply request.
pub(crate) fn apply_len(request: &ApplyRequest) -> usize {
    let records: usize = request.records.iter().map(record_len).sum();
    REQUEST_HEADER + request.base.as_ref().map_or(0, |_| PAGE_SIZE) + records
}

/// The encoded length of a mask request.
pub(crate) const MASK_LEN: usize = REQUEST_HEADER + PAGE_SIZE;

/// Encodes a request to apply records and, with [`Operation::ApplyVerify`], to compare.
///
/// # Errors
/// If it is too long, or the base is no page.
pub(crate) fn encode_apply(
    operation: Operation,
    request: &ApplyRequest,
) -> Result<Bytes, RedoError> {
    request.base.as_ref().map_or(Ok(()), check_page)?;
    let len = apply_len(request);
    let header = RequestHeader {
        total_len: bounded(len)?,
        operation,
        flags: u32::from(request.base.is_some()) * FLAG_BASE,
        spc: request.rel.spc,
        db: request.rel.db,
        rel: request.rel.rel,
        fork: request.rel.fork.number().into(),
        block: request.block.get(),
        records: bounded(request.records.len())?,
    };
    let mut out = BytesMut::with_capacity(len);
    header.put(&mut out);
    if let Some(base) = &request.base {
        out.put_slice(base);
    }
    for record in &request.records {
        put_record(&mut out, record)?;
    }
    Ok(out.freeze())
}

/// Encodes a request to mask a page as the resource manager `rmid` does.
///
/// # Errors
/// If it is no page.
pub(crate) fn encode_mask(rmid: u8, block: BlockNumber, page: &Bytes) -> Result<Bytes, RedoError> {
    check_page(page)?;
    let header = RequestHeader {
        total_len: bounded(MASK_LEN)?,
        operation: Operation::Mask,
        flags: FLAG_BASE,
        spc: rmid.into(),
        db: 0,
        rel: 0,
        fork: 0,
        block: block.get(),
        records: 0,
    };
    let mut out = BytesMut::with_capacity(MASK_LEN);
    header.put(&mut out);
    out.put_slice(page);
    Ok(out.freeze())
}

/// Encodes the question which walls stand.
pub(crate) fn encode_walls() -> Bytes {
    let header = RequestHeader {
        total_len: REQUEST_HEADER as u32,
        operation: Operation::Walls,
        flags: 0,
        spc: 0,
        db: 0,
        rel: 0,
        fork: 0,
        block: 0,
        records: 0,
    };
    let mut out = BytesMut::with_capacity(REQUEST_HEADER);
    header.put(&mut out);
    out.freeze()
}

/// Takes the first answer off `input`; `None` if it has not arrived as a whole.
///
/// # Errors
/// If the bytes are not an answer. There is no way to find the next one then.
pub(crate) fn decode_answer(input: &mut BytesMut) -> Result<Option<Answer>, AnswerError> {
    let Some(mut header) = input.get(..ANSWER_HEADER) else {
        return Ok(None);
    };
    let (magic, status, len) = (
        header.get_u32_le(),
        header.get_u32_le(),
        header.get_u32_le(),
    );
    if magic != ANSWER_MAGIC {
        return Err(AnswerError::Magic(magic));
    }
    if status != STATUS_OK && status != STATUS_ERROR {
        return Err(AnswerError::Status(status));
    }
    let body_len = usize::try_from(len).unwrap_or(usize::MAX);
    if body_len > ANSWER_MAX {
        return Err(AnswerError::Length(len));
    }
    let Some(body) = input.get(ANSWER_HEADER..ANSWER_HEADER + body_len) else {
        return Ok(None);
    };
    // Copied, so that a page kept for long does not keep the whole input buffer alive.
    let answer = match status {
        STATUS_OK => Answer::Done(Bytes::copy_from_slice(body)),
        _ => Answer::Refused(String::from_utf8_lossy(body).into_owned()),
    };
    input.advance(ANSWER_HEADER + body_len);
    Ok(Some(answer))
}

/// The page in the body of an answer to an apply or mask request.
pub(crate) fn decode_page(body: Bytes) -> Result<Bytes, RedoError> {
    match body.len() {
        PAGE_SIZE => Ok(body),
        len => Err(RedoError::UnexpectedAnswer { len }),
    }
}

/// The body of an answer to a request to apply and compare.
pub(crate) fn decode_verified(mut body: Bytes) -> Result<Verified, RedoError> {
    if body.len() != VERDICT + PAGE_SIZE {
        return Err(RedoError::UnexpectedAnswer { len: body.len() });
    }
    Ok(Verified {
        compared: body.get_u32_le(),
        differing: body.get_u32_le(),
        page: body,
    })
}

/// The walls that stand, as bits.
pub(crate) fn decode_walls(mut body: Bytes) -> Result<u32, RedoError> {
    match body.len() {
        4 => Ok(body.get_u32_le()),
        len => Err(RedoError::UnexpectedAnswer { len }),
    }
}

impl RequestHeader {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(REQUEST_MAGIC);
        out.put_u32_le(self.total_len);
        out.put_u32_le(self.operation as u32);
        out.put_u32_le(self.flags);
        out.put_u32_le(self.spc);
        out.put_u32_le(self.db);
        out.put_u32_le(self.rel);
        out.put_u32_le(self.fork);
        out.put_u32_le(self.block);
        out.put_u32_le(self.records);
    }
}

fn put_record(out: &mut BytesMut, record: &RedoRecord) -> Result<(), RedoError> {
    out.put_u64_le(record.start_lsn.get());
    out.put_u64_le(record.end_lsn.get());
    out.put_u32_le(bounded(record.bytes.len())?);
    out.put_u32_le(0);
    out.put_slice(&record.bytes);
    out.put_bytes(0, record_len(record) - RECORD_HEADER - record.bytes.len());
    Ok(())
}

fn record_len(record: &RedoRecord) -> usize {
    RECORD_HEADER + record.bytes.len().next_multiple_of(8)
}

fn check_page(page: &Bytes) -> Result<(), RedoError> {
    match page.len() {
        PAGE_SIZE => Ok(()),
        len => Err(RedoError::PageLength { len }),
    }
}

/// A length or count as it goes on the wire, if a request may have it.
fn bounded(len: usize) -> Result<u32, RedoError> {
    let too_large = RedoError::TooLarge {
        len,
        max: REQUEST_MAX,
    };
    if len > REQUEST_MAX {
        return Err(too_large);
    }
    u32::try_from(len).map_err(|_| too_large)
}

#[cfg(test)]
mod tests;
