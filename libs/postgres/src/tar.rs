//! Reading a tar archive as PostgreSQL writes it (ustar), piece by piece and without trust.

mod header;
#[cfg(test)]
mod tests;

use bytes::{Buf, Bytes};
use palimpsest_types::ErrorKind;

use header::{Entry, Header};

/// What an archive consists of, in order. A `File` is followed by its `Data`, none of it empty, and
/// by `FileEnd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarEvent {
    /// A file begins.
    File {
        /// Relative, without `..`.
        path: String,
        /// How many bytes follow.
        size: u64,
        /// Permission bits.
        mode: u32,
        /// When it was modified, in seconds since 1970; of what PostgreSQL makes for an archive, when it did.
        modified: u64,
    },
    /// A piece of the file.
    Data(Bytes),
    /// The file is complete.
    FileEnd,
    /// A directory.
    Directory {
        /// Relative, without `..` and without a slash at its end.
        path: String,
    },
    /// A symbolic link, such as one in `pg_tblspc`.
    Symlink {
        /// Relative, without `..`.
        path: String,
        /// Where it points, as written.
        target: String,
    },
}

/// These bytes are not an archive that PostgreSQL writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A header's checksum is not that of its bytes.
    #[error("the tar header at byte {offset} is damaged: its checksum does not fit")]
    Checksum {
        /// Where the header begins in the archive.
        offset: u64,
    },
    /// A header says something that cannot be.
    #[error("the tar header at byte {offset} is not usable: {reason}")]
    Header {
        /// Where the header begins in the archive.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The archive goes on after its end.
    #[error("the tar archive goes on at byte {offset}, after its end mark")]
    Trailing {
        /// Where.
        offset: u64,
    },
    /// The archive ends too early.
    #[error("the tar archive ends at byte {offset}, within {within}")]
    Truncated {
        /// Where.
        offset: u64,
        /// What is cut short.
        within: &'static str,
    },
}

/// Takes an archive apart as its bytes arrive. Holds at most one header; file data is handed out as
/// slices of what came in.
#[derive(Debug)]
pub struct TarDecoder {
    state: State,
    /// Bytes of the archive consumed so far.
    offset: u64,
}

#[derive(Debug)]
enum State {
    Header(Partial),
    /// In a file: bytes of it still to come, and zeros after it up to the next block.
    File {
        remaining: u64,
        padding: u64,
    },
    /// Between a file and the next header.
    Padding(u64),
    /// After the first of two blocks of zeros.
    EndMark(Partial),
    Ended,
    Failed(TarError),
}

/// A block that is being collected.
#[derive(Debug)]
struct Partial {
    block: Box<Block>,
    filled: usize,
}

const BLOCK: usize = 512;
const BLOCK_U64: u64 = 512;

type Block = [u8; BLOCK];

impl TarDecoder {
    /// A decoder at the beginning of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header(Partial::new()),
            offset: 0,
        }
    }

    /// The next event that `chunk` completes; what was used is taken off its front. `None` means
    /// that all of it is used and the next chunk is wanted.
    ///
    /// # Errors
    /// If the archive is damaged; every later call gives the same error.
    pub fn decode(&mut self, chunk: &mut Bytes) -> Result<Option<TarEvent>, TarError> {
        loop {
            // Checked first, because a file of no bytes ends without any.
            if let State::File {
                remaining: 0,
                padding,
            } = self.state
            {
                self.state = State::Padding(padding);
                return Ok(Some(TarEvent::FileEnd));
            }
            if chunk.is_empty() {
                return Ok(None);
            }
            match self.step(chunk) {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(error) => {
                    self.state = State::Failed(error.clone());
                    return Err(error);
                }
            }
        }
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// If it is not complete with its end mark.
    pub fn finish(self) -> Result<(), TarError> {
        self.check_end()
    }

    /// Whether the archive is complete with its end mark.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_end(&self) -> Result<(), TarError> {
        let within = match &self.state {
            State::Ended => return Ok(()),
            State::Failed(error) => return Err(error.clone()),
            State::Header(_) => "a header, before the end mark",
            State::File { .. } => "a file",
            State::Padding(_) => "the padding after a file",
            State::EndMark(_) => "the end mark",
        };
        Err(TarError::Truncated {
            offset: self.offset,
            within,
        })
    }

    /// Uses some of `chunk`, which is not empty.
    fn step(&mut self, chunk: &mut Bytes) -> Result<Option<TarEvent>, TarError> {
        let before = chunk.len();
        let result = match &mut self.state {
            State::Header(partial) => match partial.fill(chunk) {
                Some(block) => self.header(&block),
                None => Ok(None),
            },
            State::File { remaining, .. } => {
                let data = chunk.split_to(clamp(*remaining, chunk.len()));
                *remaining -= data.len() as u64;
                Ok(Some(TarEvent::Data(data)))
            }
            State::Padding(0) => {
                self.state = State::Header(Partial::new());
                Ok(None)
            }
            State::Padding(remaining) => {
                let skipped = clamp(*remaining, chunk.len());
                chunk.advance(skipped);
                *remaining -= skipped as u64;
                Ok(None)
            }
            State::EndMark(partial) => match partial.fill(chunk) {
                Some(block) => self.end_mark(&block),
                None => Ok(None),
            },
            State::Ended if chunk.iter().all(|byte| *byte == 0) => {
                chunk.clear();
                Ok(None)
            }
            State::Ended => Err(TarError::Trailing {
                offset: self.offset,
            }),
            State::Failed(error) => Err(error.clone()),
        };
        self.offset = self.offset.saturating_add((before - chunk.len()) as u64);
        result
    }

    fn header(&mut self, block: &Block) -> Result<Option<TarEvent>, TarError> {
        if is_zero(block) {
            self.state = State::EndMark(Partial::new());
            return Ok(None);
        }
        // `offset` still is where the piece that completed the block began; the block itself began
        // at the last multiple of its size.
        let offset = self.offset / BLOCK_U64 * BLOCK_U64;
        let Header { path, entry } = Header::parse(block, offset)?;
        let event = match entry {
            Entry::File {
                size,
                mode,
                modified,
            } => {
                let padding = (BLOCK_U64 - size % BLOCK_U64) % BLOCK_U64;
                self.state = State::File {
                    remaining: size,
                    padding,
                };
                return Ok(Some(TarEvent::File {
                    path,
                    size,
                    mode,
                    modified,
                }));
            }
            Entry::Directory => TarEvent::Directory { path },
            Entry::Symlink { target } => TarEvent::Symlink { path, target },
        };
        self.state = State::Header(Partial::new());
        Ok(Some(event))
    }

    fn end_mark(&mut self, block: &Block) -> Result<Option<TarEvent>, TarError> {
        if !is_zero(block) {
            let offset = self.offset / BLOCK_U64 * BLOCK_U64;
            return Err(TarError::Header {
                offset,
                reason: "it follows a block of zeros",
            });
        }
        self.state = State::Ended;
        Ok(None)
    }
}

impl Default for TarDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl TarError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

impl Partial {
    fn new() -> Self {
        Self {
            block: Box::new([0; BLOCK]),
            filled: 0,
        }
    }

    /// Moves bytes from `chunk`; gives the block once it is full.
    fn fill(&mut self, chunk: &mut Bytes) -> Option<Box<Block>> {
        let room = &mut self.block[self.filled..];
        let taken = room.len().min(chunk.len());
        chunk.split_to(taken).copy_to_slice(&mut room[..taken]);
        self.filled += taken;
        (self.filled == BLOCK).then(|| std::mem::take(self).block)
    }
}

impl Default for Partial {
    fn default() -> Self {
        Self::new()
    }
}

fn is_zero(block: &Block) -> bool {
    block.iter().all(|byte| *byte == 0)
}

fn clamp(wanted: u64, available: usize) -> usize {
    usize::try_from(wanted).map_or(available, |wanted| wanted.min(available))
}
