//! When changes in memory are to become a layer.

use std::time::Duration;

use palimpsest_types::ByteCount;

use super::node::Limits;

/// A timeline's growing piece of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growing {
    /// Memory it takes.
    pub(super) size: ByteCount,
    /// Since its first change.
    pub(super) age: Duration,
}

/// Of the timelines of a node, those whose piece is to be frozen now, by their place in `growing`.
///
/// Old ones, so that an idle timeline's last changes reach the object store as well; and while all
/// pieces together take more than half of the memory there may be, the largest first. (One that has
/// reached the size of a layer is frozen as it grows.) What is frozen already does not count: when
/// that can't be written, more and smaller layers would not help.
pub(super) fn due(growing: &[Growing], limits: &Limits) -> Vec<usize> {
    let mut due: Vec<usize> = (0..growing.len())
        .filter(|at| {
            growing
                .get(*at)
                .is_some_and(|piece| piece.age >= limits.layer_age)
        })
        .collect();
    let mut by_size: Vec<(usize, &Growing)> = growing
        .iter()
        .enumerate()
        .filter(|(at, piece)| !due.contains(at) && piece.size.get() > 0)
        .collect();
    by_size.sort_by_key(|(_, piece)| std::cmp::Reverse(piece.size));
    let half = limits.memory.get() / 2;
    let mut left: u64 = by_size.iter().map(|(_, piece)| piece.size.get()).sum();
    for (at, piece) in by_size {
        if left <= half {
            break;
        }
        left = left.saturating_sub(piece.size.get());
        due.push(at);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growing(size: u64, age: u64) -> Growing {
        Growing {
            size: ByteCount::new(size),
            age: Duration::from_secs(age),
        }
    }

    fn due_of(pieces: &[Growing]) -> Vec<usize> {
        let limits = Limits {
            memory: ByteCount::new(100),
            layer_age: Duration::from_secs(300),
            ..Limits::default()
        };
        due(pieces, &limits)
    }

    #[test]
    fn old_pieces_are_frozen_however_small() {
        let pieces = [growing(1, 299), growing(0, 300), growing(1, 301)];
        assert_eq!(due_of(&pieces), [1, 2]);
    }

    #[test]
    fn the_largest_go_first_when_memory_is_short_and_no_more_than_needed() {
        let pieces = [growing(10, 0), growing(30, 0), growing(10, 0)];
        assert!(due_of(&pieces).is_empty());
        let pieces = [growing(10, 0), growing(30, 0), growing(20, 0)];
        assert_eq!(due_of(&pieces), [1]);
        let pieces = [growing(30, 0), growing(60, 0), growing(40, 0)];
        assert_eq!(due_of(&pieces), [1, 2]);
    }

    #[test]
    fn what_is_old_counts_as_gone() {
        let pieces = [growing(30, 400), growing(30, 0)];
        assert_eq!(due_of(&pieces), [0]);
    }
}
