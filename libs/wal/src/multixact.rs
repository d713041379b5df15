//! Pages of `pg_multixact`: several transactions that together hold a row (`multixact.c`).
//!
//! A multixact is a number. Page by page, `offsets` has for each where its members begin; `members`
//! has them, in groups of four: four bytes with a status each, then four transaction ids. A multixact
//! ends where the next one begins.

use std::collections::BTreeMap;

use palimpsest_types::PAGE_SIZE;

use crate::{
    clog::Xid,
    patches::{PagePatches, PatchWriter},
};

/// A multixact's number. It wraps around, and 0 is none.
pub type MultiXactId = u32;

/// A new multixact with its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewMultiXact {
    pub(crate) id: MultiXactId,
    /// Its first member's place among all members.
    pub(crate) offset: u32,
    pub(crate) members: Vec<MultiXactMember>,
}

/// A transaction of a multixact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultiXactMember {
    /// The transaction.
    pub xid: Xid,
    /// What it does to the row (`MultiXactStatus`): locks it, or, from
    /// [`MultiXactMember::FIRST_UPDATE`] on, changes it.
    pub status: u8,
}

/// Multixacts whose offset one page of `offsets` holds.
pub const OFFSETS_PER_PAGE: u32 = (PAGE_SIZE / OFFSET_LEN) as u32;
/// Members that one page of `members` holds.
pub const MEMBERS_PER_PAGE: u32 = GROUPS_PER_PAGE * MEMBERS_PER_GROUP;

const OFFSET_LEN: usize = 4;
const FIRST_MULTIXACT: MultiXactId = 1;
const MEMBERS_PER_GROUP: u32 = 4;
/// Four status bytes, four transaction ids.
const GROUP_LEN: usize = 4 + 4 * 4;
const GROUPS_PER_PAGE: u32 = (PAGE_SIZE / GROUP_LEN) as u32;

impl MultiXactMember {
    /// The least status of a member that updates or deletes the row.
    pub const FIRST_UPDATE: u8 = 4;
}

impl NewMultiXact {
    /// What pages of `offsets` get: where its members begin, and where they end, which is where those
    /// of the next multixact begin. Older minor versions write the second only with the next
    /// multixact; to all that read it is the same number then.
    pub(crate) fn offsets(&self) -> impl Iterator<Item = (u32, PagePatches)> + use<> {
        let next = next_multixact(self.id);
        // Offset 0 is never used: it means that there is none yet.
        let end = self.offset.wrapping_add(self.members.len() as u32).max(1);
        let mut pages = BTreeMap::<u32, PatchWriter>::new();
        for (id, offset) in [(self.id, self.offset), (next, end)] {
            let (page, at) = offset_place(id);
            let page = pages.entry(page).or_default();
            page.write(at, &offset.to_le_bytes());
        }
        pages.into_iter().map(|(page, it)| (page, it.finish()))
    }

    /// What pages of `members` get.
    pub(crate) fn members(&self) -> impl Iterator<Item = (u32, PagePatches)> + use<> {
        let mut pages = BTreeMap::<u32, PatchWriter>::new();
        for (index, member) in self.members.iter().enumerate() {
            let place = member_place(self.offset.wrapping_add(index as u32));
            let page = pages.entry(place.page).or_default();
            page.write(place.status, &[member.status]);
            page.write(place.xid, &member.xid.to_le_bytes());
        }
        pages.into_iter().map(|(page, it)| (page, it.finish()))
    }
}

/// The multixact after one, 0 being none.
pub const fn next_multixact(id: MultiXactId) -> MultiXactId {
    match id.wrapping_add(1) {
        0 => FIRST_MULTIXACT,
        next => next,
    }
}

/// The page of `offsets` that has the offset of a multixact, and where on the page.
pub const fn offset_place(id: MultiXactId) -> (u32, usize) {
    let on_page = (id % OFFSETS_PER_PAGE) as usize;
    (id / OFFSETS_PER_PAGE, on_page * OFFSET_LEN)
}

/// Where a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberPlace {
    /// Its page of `members`.
    pub page: u32,
    /// Its status byte on the page.
    pub status: usize,
    /// The first byte of its transaction id on the page.
    pub xid: usize,
}

/// Where the member with this offset stands.
pub const fn member_place(offset: u32) -> MemberPlace {
    let group = offset / MEMBERS_PER_GROUP % GROUPS_PER_PAGE;
    let in_group = (offset % MEMBERS_PER_GROUP) as usize;
    let group = group as usize * GROUP_LEN;
    MemberPlace {
        page: offset / MEMBERS_PER_PAGE,
        status: group + in_group,
        xid: group + 4 + in_group * 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multixact(id: u32, offset: u32, members: u32) -> NewMultiXact {
        let member = |at| MultiXactMember {
            xid: 0x0101_0101 * (at + 1),
            status: at as u8,
        };
        let members = (0..members).map(member).collect();
        NewMultiXact {
            id,
            offset,
            members,
        }
    }

    fn pages(patches: impl Iterator<Item = (u32, PagePatches)>) -> Vec<(u32, Vec<u8>)> {
        let page = |(number, patches): (u32, PagePatches)| {
            let mut page = vec![0; PAGE_SIZE];
            patches.apply(&mut page);
            (number, page)
        };
        patches.map(page).collect()
    }

    #[test]
    fn members_stand_in_groups_of_four() {
        assert_eq!(MEMBERS_PER_PAGE, 1636);
        let found = pages(multixact(1, 1634, 4).members());
        assert_eq!(
            found.iter().map(|(page, _)| *page).collect::<Vec<_>>(),
            [0, 1]
        );
        // The last group of a page begins at 408 * 20.
        assert_eq!(found[0].1[8160..8164], [0, 0, 0, 1]);
        assert_eq!(found[0].1[8172..8180], [1, 1, 1, 1, 2, 2, 2, 2]);
        assert_eq!(found[1].1[..4], [2, 3, 0, 0]);
        assert_eq!(found[1].1[4..12], [3, 3, 3, 3, 4, 4, 4, 4]);
    }

    #[test]
    fn the_offset_after_is_written_too() {
        let found = pages(multixact(2047, 10, 3).offsets());
        assert_eq!(found[0].1[8188..], [10, 0, 0, 0]);
        assert_eq!(
            (found[1].0, &found[1].1[..4]),
            (1, [13, 0, 0, 0].as_slice())
        );
    }

    #[test]
    fn numbers_wrap_around_zero() {
        let last = multixact(u32::MAX, u32::MAX - 1, 2);
        let offsets = pages(last.offsets());
        // The next multixact is 1, and offset 0 is not used.
        assert_eq!(offsets[0].0, 0);
        assert_eq!(offsets[0].1[..8], [0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(offsets[1].0, u32::MAX / OFFSETS_PER_PAGE);
        let members: Vec<_> = multixact(5, u32::MAX, 2).members().map(|it| it.0).collect();
        assert_eq!(members, [0, u32::MAX / MEMBERS_PER_PAGE]);
    }
}
