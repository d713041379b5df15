//! When changes in memory are to become a layer.

use palimpsest_types::{ByteCount, TenantId};

/// A timeline's growing piece of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growing {
    /// Memory it takes.
    pub(super) size: ByteCount,
    /// Its first change came so long ago that it is to be a layer, however small.
    pub(super) is_old: bool,
    /// Whose it is.
    pub(super) tenant: TenantId,
    /// Memory that there may be for that one's.
    pub(super) tenant_memory: ByteCount,
}

/// Of the timelines of a node, those whose piece is to be frozen now, by their place in `growing`.
///
/// Old ones, so that an idle timeline's last changes reach the object store as well; and while all
/// pieces together take more than half of the memory there may be, the largest first; so, too, those of a tenant, of the
/// memory that there may be for them. (One that has
/// reached the size of a layer is frozen as it grows.) What is frozen already does not count: when
/// that can't be written, more and smaller layers would not help.
pub(super) fn due(growing: &[Growing], memory: ByteCount) -> Vec<usize> {
    let all: Vec<_> = growing.iter().enumerate().collect();
    let mut due: Vec<usize> = (all.iter())
        .filter(|(_, piece)| piece.is_old)
        .map(|(at, _)| *at)
        .collect();
    let mut by_size: Vec<_> = all
        .into_iter()
        .filter(|(_, piece)| !piece.is_old && piece.size.get() > 0)
        .collect();
    by_size.sort_by_key(|(_, piece)| std::cmp::Reverse(piece.size));
    let mut tenants: Vec<_> = by_size
        .iter()
        .map(|(_, piece)| (piece.tenant, piece.tenant_memory))
        .collect();
    tenants.sort();
    tenants.dedup();
    for (tenant, memory) in tenants {
        let of_tenant = by_size.iter().filter(|(_, piece)| piece.tenant == tenant);
        due.extend(beyond_half(of_tenant, memory));
    }
    let left: Vec<_> = by_size
        .into_iter()
        .filter(|(at, _)| !due.contains(at))
        .collect();
    due.extend(beyond_half(left.iter(), memory));
    due
}

/// The places of the first of these without which the others take no more than half of the memory.
fn beyond_half<'a>(
    pieces: impl Iterator<Item = &'a (usize, &'a Growing)> + Clone,
    memory: ByteCount,
) -> Vec<usize> {
    let half = memory.get() / 2;
    let mut left: u64 = pieces.clone().map(|(_, piece)| piece.size.get()).sum();
    let too_much = |(_, piece): &&(usize, &Growing)| {
        let is = left > half;
        left = left.saturating_sub(piece.size.get());
        is
    };
    pieces.take_while(too_much).map(|(at, _)| *at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: ByteCount = ByteCount::new(100);

    fn growing(size: u64, is_old: bool) -> Growing {
        Growing {
            size: ByteCount::new(size),
            is_old,
            tenant: TenantId::from_bytes([1; 16]),
            tenant_memory: MEMORY,
        }
    }

    fn of_other(size: u64, tenant_memory: u64) -> Growing {
        Growing {
            tenant: TenantId::from_bytes([2; 16]),
            tenant_memory: ByteCount::new(tenant_memory),
            ..growing(size, false)
        }
    }

    fn due_of(pieces: &[Growing]) -> Vec<usize> {
        due(pieces, MEMORY)
    }

    #[test]
    fn old_pieces_are_frozen_however_small() {
        let pieces = [growing(1, false), growing(0, true), growing(1, true)];
        assert_eq!(due_of(&pieces), [1, 2]);
    }

    #[test]
    fn the_largest_go_first_when_memory_is_short_and_no_more_than_needed() {
        let growing = |size| growing(size, false);
        let pieces = [growing(10), growing(30), growing(10)];
        assert!(due_of(&pieces).is_empty());
        let pieces = [growing(10), growing(30), growing(20)];
        assert_eq!(due_of(&pieces), [1]);
        let pieces = [growing(30), growing(60), growing(40)];
        assert_eq!(due_of(&pieces), [1, 2]);
    }

    #[test]
    fn what_is_old_counts_as_gone() {
        let pieces = [growing(30, true), growing(30, false)];
        assert_eq!(due_of(&pieces), [0]);
    }

    #[test]
    fn p7_a_tenant_with_a_smaller_share_freezes_its_own_sooner() {
        let pieces = [growing(30, false), of_other(6, 20), of_other(8, 20)];
        assert_eq!(due_of(&pieces), [2], "6 of its 20 are left");
        let pieces = [growing(45, false), of_other(10, 20)];
        assert_eq!(due_of(&pieces), [0], "half of its own it may have");
    }
}
