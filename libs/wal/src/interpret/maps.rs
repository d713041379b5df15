//! Where the bits and slots of the visibility and free space maps stand.

use palimpsest_types::BlockNumber;

/// Heap blocks whose bits one visibility map page holds (`visibilitymap.c`): two bits each.
pub(super) const HEAP_BLOCKS_PER_VM_PAGE: u32 = (8192 - 24) * 4;
/// Heap blocks in one byte of the map.
const HEAP_BLOCKS_PER_VM_BYTE: u32 = 4;
/// Slots in a leaf page of the free space map (`fsm_internals.h`).
pub(super) const SLOTS_PER_FSM_PAGE: u32 = 4069;

/// Clears the bits of heap blocks from `heap_blocks` on in the map page that holds its bit.
///
/// As `visibilitymap_prepare_truncate`: the page's LSN stays, and a page never initialised has no
/// bits to clear.
pub fn truncate_visibility_map_page(page: &mut [u8], heap_blocks: BlockNumber) {
    const CONTENTS: usize = 24;
    let inside = heap_blocks.get() % HEAP_BLOCKS_PER_VM_PAGE;
    let byte = CONTENTS + (inside / HEAP_BLOCKS_PER_VM_BYTE) as usize;
    let kept_bits = (inside % HEAP_BLOCKS_PER_VM_BYTE) * 2;
    if let Some((first, rest)) = page.get_mut(byte..).and_then(<[u8]>::split_first_mut) {
        *first &= (1u8 << kept_bits) - 1;
        rest.fill(0);
    }
}

/// Pages that the free space map keeps for a heap of `heap_blocks` (`FreeSpaceMapPrepareTruncateRel`
/// with `fsm_logical_to_physical`): its leaves, and the upper pages between them.
pub(super) fn free_space_map_len(heap_blocks: BlockNumber) -> BlockNumber {
    let leaf = heap_blocks.get() / SLOTS_PER_FSM_PAGE;
    let upper = leaf / SLOTS_PER_FSM_PAGE + 1;
    let root = upper.saturating_sub(1) / SLOTS_PER_FSM_PAGE + 1;
    let physical = leaf + upper + root;
    let keeps_part = !heap_blocks.get().is_multiple_of(SLOTS_PER_FSM_PAGE);
    BlockNumber::new(physical + u32::from(keeps_part))
}
