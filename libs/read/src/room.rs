//! How much of layers one read has in memory side by side, whatever their indexes claim.

use palimpsest_layer::delta_file::{BlockNo, DeltaLayerError, DeltaLayerIndex};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Room for blocks larger than [`USUAL`] that one read looks into side by side.
///
/// Blocks have to fit before they are read, and what they take is given back when they were looked
/// into. Who has room never asks for more, so nobody waits for ever.
#[derive(Debug)]
pub(crate) struct Room(Semaphore);

/// An entry block with a block of records that it refers to, in memory. All that is read side by side
/// is bounded by number; as long as it is not larger than this, that is enough. No block of more than
/// one item is larger.
pub(crate) const USUAL: u64 = 64 << 10;

/// All room there is.
const ROOM: u32 = 16 << 20;

impl Room {
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(ROOM as usize))
    }

    /// Waits until there is room for so many bytes. What needs more than all gets all, so that any
    /// block can be read, though by itself.
    pub(crate) async fn take(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        if bytes <= USUAL {
            return None;
        }
        let permits = u32::try_from(bytes).map_or(ROOM, |bytes| bytes.min(ROOM));
        // Apart, as the rare case. Nobody closes it.
        Box::pin(self.0.acquire_many(permits)).await.ok()
    }
}

/// Memory that looking into an entry block takes: itself, and the largest block of records of its
/// file, to which it may refer.
pub(crate) fn needed(index: &DeltaLayerIndex, no: BlockNo) -> Result<u64, DeltaLayerError> {
    let entries = index.place(no)?.raw_len;
    Ok(u64::from(entries) + u64::from(index.largest_record_block()))
}

/// Cuts what is to be read into portions to be in memory together: of at most `count`, which need at
/// most `limit` bytes, unless it is one.
pub(crate) fn portions<T>(
    blocks: &[(T, u64)],
    (count, limit): (usize, u64),
) -> impl Iterator<Item = &[(T, u64)]> {
    let mut taken = (1, blocks.first().map_or(0, |(_, bytes)| *bytes));
    blocks.chunk_by(move |_, (_, bytes)| {
        let with = (taken.0 + 1, taken.1.saturating_add(*bytes));
        let fits = with.0 <= count && with.1 <= limit;
        taken = if fits { with } else { (1, *bytes) };
        fits
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_larger_than_all_room_gets_it_and_others_wait() {
        let room = Room::new();
        let take = |bytes| room.take(bytes).now_or_never();
        let usual: Vec<_> = (0..1000).map(|_| take(USUAL)).collect();
        assert!(usual.iter().all(Option::is_some), "not counted");
        let all = take(u64::MAX).unwrap();
        assert!(take(USUAL + 1).is_none());
        assert!(take(USUAL).is_some());
        drop(all);
        let half = u64::from(ROOM / 2);
        let (one, other) = (take(half).unwrap(), take(half).unwrap());
        assert!(take(half).is_none());
        drop((one, other));
        assert!(take(half).is_some());
    }

    proptest! {
        #[test]
        fn portions_are_bounded_and_nothing_is_lost(
            blocks in prop::collection::vec((0..9_u8, 0..100_u64), 0..50),
            count in 1..9_usize,
            limit in 0..150_u64,
        ) {
            let found: Vec<_> = portions(&blocks, (count, limit)).collect();
            prop_assert_eq!(&found.concat(), &blocks);
            let bytes = |portion: &[(u8, u64)]| portion.iter().map(|(_, len)| len).sum::<u64>();
            for portion in &found {
                prop_assert!(portion.len() <= count);
                prop_assert!(portion.len() == 1 || bytes(portion) <= limit);
            }
            for pair in found.windows(2) {
                let with_next = bytes(pair[0]) + pair[1][0].1;
                prop_assert!(pair[0].len() == count || with_next > limit, "as large as may be");
            }
        }
    }
}
