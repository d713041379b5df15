//! The 512-byte header of one entry.
//!
//! | bytes   | field                                             |
//! |---------|---------------------------------------------------|
//! | 0–99    | name                                              |
//! | 100–107 | mode, octal                                       |
//! | 124–135 | size, octal, or base-256 with the top bit set     |
//! | 136–147 | time of modification, likewise                    |
//! | 148–155 | checksum, octal, counted with spaces in its place |
//! | 156     | type: `0` or NUL file, `5` directory, `2` symlink |
//! | 157–256 | target of a link                                  |
//! | 257–264 | `ustar` NUL `00`                                  |
//! | 345–499 | prefix of the name                                |

use std::ops::Range;

use super::{Block, TarError};

/// One entry.
pub(super) struct Header {
    pub(super) path: String,
    pub(super) entry: Entry,
}

pub(super) enum Entry {
    File { size: u64, mode: u32, modified: u64 },
    Directory,
    Symlink { target: String },
}

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const SIZE: Range<usize> = 124..136;
const MODIFIED: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const PREFIX: Range<usize> = 345..500;

impl Header {
    /// Parses the header that begins at `offset` of its archive.
    pub(super) fn parse(block: &Block, offset: u64) -> Result<Self, TarError> {
        let error = |reason| TarError::Header { offset, reason };
        if octal(&block[CHECKSUM]) != Some(checksum(block)) {
            return Err(TarError::Checksum { offset });
        }
        if &block[MAGIC] != b"ustar\0" {
            return Err(error("it is not ustar"));
        }
        let path = path(block).map_err(error)?;
        let size = number(&block[SIZE]).ok_or_else(|| error("its size is not a number"))?;
        let entry = match block[TYPE] {
            b'0' | 0 => {
                let mode = octal(&block[MODE]).and_then(|mode| u32::try_from(mode).ok());
                let mode = mode.ok_or_else(|| error("its mode is not a number"))? & 0o7777;
                let modified = number(&block[MODIFIED]);
                Entry::File {
                    size,
                    mode,
                    modified: modified.ok_or_else(|| error("its time is not a number"))?,
                }
            }
            b'5' => Entry::Directory,
            b'2' => Entry::Symlink {
                target: link_target(block).map_err(error)?,
            },
            _ => {
                return Err(error(
                    "its type is neither file nor directory nor symbolic link",
                ));
            }
        };
        if size != 0 && !matches!(entry, Entry::File { .. }) {
            return Err(error("it has a size and is not a file"));
        }
        Ok(Self { path, entry })
    }
}

/// Sum of all bytes, with spaces where the checksum itself stands.
pub(super) fn checksum(block: &Block) -> u64 {
    let sum = |range: Range<usize>| {
        block[range]
            .iter()
            .map(|byte| u64::from(*byte))
            .sum::<u64>()
    };
    sum(0..CHECKSUM.start)
        + u64::from(b' ') * CHECKSUM.len() as u64
        + sum(CHECKSUM.end..block.len())
}

/// A relative path that stays below where it is unpacked, without slashes around it.
fn path(block: &Block) -> Result<String, &'static str> {
    let (prefix, name) = (text(&block[PREFIX])?, text(&block[NAME])?);
    let whole = if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}/{name}")
    };
    if whole.starts_with('/') {
        return Err("its path is absolute");
    }
    let parts: Vec<&str> = whole
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") {
        return Err("its path leaves the archive by ..");
    }
    // The directory of the archive itself is `.`, and has no name here either.
    if parts.is_empty() && block[TYPE] != b'5' {
        return Err("its path is empty");
    }
    Ok(parts.join("/"))
}

fn link_target(block: &Block) -> Result<String, &'static str> {
    match text(&block[LINK])? {
        "" => Err("its link has no target"),
        target => Ok(target.to_owned()),
    }
}

/// Text up to the first NUL, or the whole field.
fn text(field: &[u8]) -> Result<&str, &'static str> {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    str::from_utf8(&field[..end]).map_err(|_| "its path is not UTF-8")
}

/// Octal, or base-256 if the field begins with the byte 0x80, which PostgreSQL does from 8 GiB on.
fn number(field: &[u8]) -> Option<u64> {
    let Some([0x80, digits @ ..]) = field.get(..) else {
        return octal(field);
    };
    let (high, low) = digits.split_at_checked(digits.len().checked_sub(8)?)?;
    let value = u64::from_be_bytes(low.try_into().ok()?);
    // PostgreSQL's sizes are signed; a larger one is damage.
    let fits = high.iter().all(|byte| *byte == 0) && i64::try_from(value).is_ok();
    fits.then_some(value)
}

/// Octal digits with spaces before and spaces or NULs behind.
fn octal(field: &[u8]) -> Option<u64> {
    let field = field.trim_ascii_start();
    let digits = field
        .iter()
        .take_while(|byte| (b'0'..=b'7').contains(byte))
        .count();
    let (digits, rest) = field.split_at(digits);
    // Fields are at most 12 bytes, so 36 bits: no overflow.
    let value = digits
        .iter()
        .fold(0, |value, digit| value << 3 | u64::from(digit - b'0'));
    let clean = rest.iter().all(|byte| matches!(byte, b' ' | 0));
    (clean && !digits.is_empty()).then_some(value)
}
