//! Which versions of what is compacted go into one layer. Pure.

use std::collections::BTreeMap;

use palimpsest_manifest::LsnSpan;
use palimpsest_read::KeyBounds;
use palimpsest_types::{ByteCount, Key, Lsn};

/// A part of what is compacted: it becomes one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Versions of these keys …
    pub keys: KeyBounds,
    /// … at these LSNs.
    pub lsns: LsnSpan,
}

/// A block of versions in one of the layers that are compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its first key.
    pub first: Key,
    /// Its last version.
    pub last: (Key, Lsn),
    /// Bytes that it takes.
    pub size: ByteCount,
}

/// What there is of one key: all blocks that end with it.
#[derive(Debug, Default)]
struct Ending {
    bytes: u64,
    /// Where blocks end that have no other key, with their bytes.
    alone: Vec<(Lsn, u64)>,
}

/// Cuts versions at these LSNs into cells of about `target` bytes, each version into one: between
/// keys, and where one key alone has too much, between its LSNs. Cells are as exact as the pieces are
/// small; no version is looked at.
pub fn cut(pieces: &[Piece], lsns: LsnSpan, target: ByteCount) -> Vec<Cell> {
    let target = target.get().max(1);
    let mut cells = Vec::new();
    let mut open = KeyBounds::default();
    let mut bytes = 0;
    let mut before: Option<Key> = None;
    for (key, ending) in endings(pieces) {
        if bytes > 0 && bytes + ending.bytes > target {
            let keys = KeyBounds {
                up_to: before,
                ..open
            };
            cells.push(Cell { keys, lsns });
            open.after = before;
            bytes = 0;
        }
        bytes += ending.bytes;
        before = Some(key);
        if bytes >= 2 * target {
            let keys = KeyBounds {
                up_to: before,
                ..open
            };
            let spans = split(ending.alone, lsns, target).into_iter();
            cells.extend(spans.map(|lsns| Cell { keys, lsns }));
            open.after = before;
            bytes = 0;
        }
    }
    // The last one takes what is left, and if that is nothing, nobody writes a layer of it.
    cells.push(Cell { keys: open, lsns });
    cells
}

fn endings(pieces: &[Piece]) -> BTreeMap<Key, Ending> {
    let mut endings: BTreeMap<Key, Ending> = BTreeMap::new();
    for Piece { first, last, size } in pieces {
        let ending = endings.entry(last.0).or_default();
        ending.bytes += size.get();
        if *first == last.0 {
            ending.alone.push((last.1, size.get()));
        }
    }
    endings
}

/// Spans that make up `lsns`, with about `target` bytes of the blocks that end at these LSNs in each.
fn split(mut ends: Vec<(Lsn, u64)>, lsns: LsnSpan, target: u64) -> Vec<LsnSpan> {
    ends.sort_unstable();
    let mut spans = Vec::new();
    let (mut after, mut bytes) = (lsns.after, 0);
    // Something must be left for the last span, or nobody writes a layer that ends where it does.
    let last = ends.last().map_or(lsns.up_to, |(end, _)| *end);
    for (end, size) in ends {
        bytes += size;
        if bytes >= target && after < end && end < last {
            spans.push(LsnSpan { after, up_to: end });
            (after, bytes) = (end, 0);
        }
    }
    let up_to = lsns.up_to;
    spans.push(LsnSpan { after, up_to });
    spans
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::fixture::key, *};

    fn lsns(after: u64, up_to: u64) -> LsnSpan {
        LsnSpan {
            after: Lsn::new(after),
            up_to: Lsn::new(up_to),
        }
    }

    fn piece(first: u32, last: u32, lsn: u64, size: u64) -> Piece {
        Piece {
            first: key(first),
            last: (key(last), Lsn::new(lsn)),
            size: ByteCount::new(size),
        }
    }

    fn bounds(after: Option<u32>, up_to: Option<u32>) -> KeyBounds {
        KeyBounds {
            after: after.map(key),
            up_to: up_to.map(key),
        }
    }

    #[test]
    fn what_is_little_stays_together() {
        let whole = Cell {
            keys: KeyBounds::default(),
            lsns: lsns(10, 50),
        };
        let target = ByteCount::new(100);
        assert_eq!(cut(&[], lsns(10, 50), target), [whole]);
        let pieces = [piece(1, 3, 20, 40), piece(3, 9, 30, 60)];
        assert_eq!(cut(&pieces, lsns(10, 50), target), [whole]);
    }

    #[test]
    fn keys_are_cut_apart_at_the_target() {
        let pieces = [
            piece(5, 7, 20, 60),
            piece(1, 3, 20, 60),
            piece(7, 9, 30, 60),
            piece(1, 4, 30, 30),
        ];
        let cells = cut(&pieces, lsns(10, 50), ByteCount::new(100));
        let keys: Vec<_> = cells.iter().map(|cell| cell.keys).collect();
        assert_eq!(
            keys,
            [
                bounds(None, Some(4)),
                bounds(Some(4), Some(7)),
                bounds(Some(7), None)
            ]
        );
        assert!(cells.iter().all(|cell| cell.lsns == lsns(10, 50)));
    }

    #[test]
    fn one_key_that_changes_all_the_time_is_cut_by_lsn() {
        let hot = (1..=5).map(|at| piece(4, 4, 10 * at, 60));
        let pieces: Vec<_> = hot
            .chain([piece(1, 2, 50, 10), piece(5, 6, 50, 10)])
            .collect();
        let cells = cut(&pieces, lsns(0, 50), ByteCount::new(100));
        let hot = bounds(Some(2), Some(4));
        let cell = |keys, lsns| Cell { keys, lsns };
        assert_eq!(
            cells,
            [
                cell(bounds(None, Some(2)), lsns(0, 50)),
                cell(hot, lsns(0, 20)),
                cell(hot, lsns(20, 40)),
                cell(hot, lsns(40, 50)),
                cell(bounds(Some(4), None), lsns(0, 50)),
            ]
        );
    }

    #[test]
    fn what_ends_early_is_not_cut_off_its_end() {
        let once = [piece(4, 4, 20, 500)];
        let cells = cut(&once, lsns(0, 50), ByteCount::new(100));
        assert!(
            cells.iter().all(|cell| cell.lsns == lsns(0, 50)),
            "{cells:?}"
        );
    }

    proptest! {
        #[test]
        fn p5_each_version_is_in_one_cell(
            pieces in prop::collection::vec((0..20u32, 0..4u32, 1..100u64, 1..50u64), 0..60),
            target in 1..300u64,
        ) {
            let pieces: Vec<_> = pieces
                .into_iter()
                .map(|(first, more, lsn, size)| piece(first, first + more, lsn, size))
                .collect();
            let cells = cut(&pieces, lsns(0, 100), ByteCount::new(target));
            for block in 0..25 {
                for lsn in 1..=100 {
                    let lsn = Lsn::new(lsn);
                    let has = |cell: &&Cell| {
                        let LsnSpan { after, up_to } = cell.lsns;
                        cell.keys.contains(key(block)) && after < lsn && lsn <= up_to
                    };
                    prop_assert_eq!(cells.iter().filter(has).count(), 1);
                }
            }
        }
    }
}
