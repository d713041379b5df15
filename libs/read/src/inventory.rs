//! What exists at an LSN, of all keys of which there are images: what has to be in one.

use std::ops::Range;

use palimpsest_manifest::KeySpan;
use palimpsest_types::{BlockNumber, ByteCount, Key, Lsn, PAGE_SIZE, RelTag, SlruKind};
use palimpsest_wal::Value;

/// All keys of which there are images and that exist at an LSN. Takes memory for each fork and segment,
/// not for their pages.
#[derive(Debug)]
pub struct Inventory {
    lsn: Lsn,
    /// In the order of keys.
    runs: Vec<Run>,
}

/// Keys that follow each other, without one that does not exist between them.
#[derive(Debug)]
pub(crate) enum Run {
    /// One key, whose value is known.
    Value(Key, Value),
    /// The first blocks of a fork.
    Blocks(RelTag, u32),
    /// Pages of an SLRU area.
    SlruPages(SlruKind, Range<u32>),
}

/// Keys for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it is. All keys there that exist are in it.
    pub keys: KeySpan,
    /// What these take before they are compressed.
    pub size: ByteCount,
}

/// Some keys that exist, whose values are found together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// One that is known.
    Value(Key, Value),
    /// Pages of a fork.
    Blocks(RelTag, Vec<BlockNumber>),
    /// Pages of an SLRU area.
    SlruPages(SlruKind, Vec<u32>),
}

/// What an entry takes beside its value.
const ENTRY: u64 = 28;

impl Inventory {
    /// What exists at an LSN, in any order.
    pub(crate) fn new(lsn: Lsn, mut runs: Vec<Run>) -> Self {
        runs.retain(|run| run.len() > 0);
        runs.sort_unstable_by_key(|run| run.key(0));
        Self { lsn, runs }
    }

    /// At which LSN.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Cuts keys into parts that lie next to each other, with about as many bytes in each as there should
    /// be. There is at least one, be it empty.
    pub fn parts(&self, keys: KeySpan, target: ByteCount) -> Vec<Part> {
        let mut parts = Vec::new();
        let (mut first, mut size) = (keys.first, 0);
        let mut before: Option<Key> = None;
        for (run, mut positions) in self.within(keys) {
            while positions.start < positions.end {
                let room = target.get().saturating_sub(size) / run.weight();
                if let Some(last) = before.filter(|_| room == 0 && size > 0) {
                    let keys = KeySpan { first, last };
                    parts.push(Part::new(keys, size));
                    first = last.next().unwrap_or(run.key(positions.start));
                    size = 0;
                    continue;
                }
                let more = u32::try_from(room).unwrap_or(u32::MAX).max(1);
                let more = more.min(positions.end - positions.start);
                positions.start += more;
                size += u64::from(more) * run.weight();
                before = Some(run.key(positions.start - 1));
            }
        }
        let last = keys.last;
        parts.push(Part::new(KeySpan { first, last }, size));
        parts
    }

    /// The keys of a span that exist, in order; so many of pages at once, at most.
    pub fn batches(&self, keys: KeySpan, pages: u32) -> impl Iterator<Item = Batch> {
        let pages = pages.max(1);
        self.within(keys).flat_map(move |(run, positions)| {
            let starts = positions.clone().step_by(pages as usize);
            let end = positions.end;
            starts.map(move |start| run.batch(start..start.saturating_add(pages).min(end)))
        })
    }

    /// The runs that have keys of a span, with the positions of those.
    fn within(&self, keys: KeySpan) -> impl Iterator<Item = (&Run, Range<u32>)> {
        let from = self.runs.partition_point(|run| run.last() < keys.first);
        let runs = self.runs.get(from..).unwrap_or_default().iter();
        let runs = runs.take_while(move |run| run.key(0) <= keys.last);
        runs.map(move |run| {
            let end = match run.last() <= keys.last {
                true => run.len(),
                // The last key itself is in.
                false => run.position(keys.last) + 1,
            };
            (run, run.position(keys.first)..end)
        })
    }
}

impl Part {
    fn new(keys: KeySpan, size: u64) -> Self {
        let size = ByteCount::new(size);
        Self { keys, size }
    }
}

impl Run {
    fn len(&self) -> u32 {
        match self {
            Self::Value(..) => 1,
            Self::Blocks(_, len) => *len,
            Self::SlruPages(_, pages) => pages.end.saturating_sub(pages.start),
        }
    }

    /// Its key of this number.
    fn key(&self, position: u32) -> Key {
        match self {
            Self::Value(key, _) => *key,
            Self::Blocks(rel, _) => Key::RelBlock(*rel, BlockNumber::new(position)),
            Self::SlruPages(kind, pages) => {
                Key::SlruBlock(*kind, pages.start.saturating_add(position))
            }
        }
    }

    fn last(&self) -> Key {
        self.key(self.len().saturating_sub(1))
    }

    /// How many of its keys are before this one.
    fn position(&self, key: Key) -> u32 {
        let inside = match (self, key) {
            (Self::Blocks(rel, _), Key::RelBlock(of, block)) if *rel == of => Some(block.get()),
            (Self::SlruPages(kind, pages), Key::SlruBlock(of, page)) if *kind == of => {
                Some(page.saturating_sub(pages.start))
            }
            _ => None,
        };
        let outside = if key <= self.key(0) { 0 } else { self.len() };
        inside.unwrap_or(outside).min(self.len())
    }

    /// What each of its keys takes.
    fn weight(&self) -> u64 {
        let value = match self {
            Self::Value(_, Value::File(content)) => content.len(),
            Self::Value(..) => size_of::<u32>(),
            Self::Blocks(..) | Self::SlruPages(..) => PAGE_SIZE,
        };
        ENTRY + value as u64
    }

    fn batch(&self, positions: Range<u32>) -> Batch {
        match self {
            Self::Value(key, value) => Batch::Value(*key, value.clone()),
            Self::Blocks(rel, _) => Batch::Blocks(*rel, positions.map(BlockNumber::new).collect()),
            Self::SlruPages(kind, pages) => {
                let page = |at: u32| pages.start.saturating_add(at);
                Batch::SlruPages(*kind, positions.map(page).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests;
