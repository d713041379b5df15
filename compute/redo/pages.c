#include "postgres.h"

#include "pages.h"

#include "miscadmin.h"
#include "storage/lwlock.h"
#include "utils/resowner.h"

void
pal_target_load(const PalBlock *target, const char *base)
{
    /* This mode never reads, and gives a page of zeros. */
    Buffer buffer = ReadBufferWithoutRelcache(target->rel, target->fork, target->blkno,
                                              RBM_ZERO_AND_LOCK, NULL, true);

    if (base != NULL)
        memcpy(BufferGetPage(buffer), base, BLCKSZ);

    /* No pin is kept: a redo routine that wants a cleanup lock waits for a pin count of one. */
    UnlockReleaseBuffer(buffer);
}

Page
pal_target_page(const PalBlock *target)
{
    BufferTag tag = pal_buffer_tag(target->rel, target->fork, target->blkno);
    int id = BufTableLookup(&tag, BufTableHashCode(&tag));

    if (id < 0)
        elog(ERROR, "the page under reconstruction has left the buffer pool");
    return BufferGetPage(BufferDescriptorGetBuffer(GetBufferDescriptor(id)));
}

/* No locks are taken here: no other process is attached to this pool. */
void
pal_forget_pages(const PalBlock *keep)
{
    BufferTag keep_tag;

    if (keep != NULL)
        keep_tag = pal_buffer_tag(keep->rel, keep->fork, keep->blkno);

    for (int id = 0; id < NBuffers; id++)
    {
        BufferDesc *buffer = GetBufferDescriptor(id);
        uint32 state = pg_atomic_read_u32(&buffer->state);

        if (!(state & BM_TAG_VALID))
            continue;
        if (keep != NULL && PAL_TAGS_EQUAL(&buffer->tag, &keep_tag))
            continue;
        if (BUF_STATE_GET_REFCOUNT(state) != 0)
            elog(PANIC, "buffer %d is still pinned after redo", id);

        BufTableDelete(&buffer->tag, BufTableHashCode(&buffer->tag));
        PAL_CLEAR_TAG(&buffer->tag);
        state &= ~(BUF_FLAG_MASK | BUF_USAGECOUNT_MASK);
        pg_atomic_write_u32(&buffer->state, state);
        StrategyFreeBuffer(buffer);
    }
}

void
pal_release_after_error(void)
{
    InterruptHoldoffCount = 0;
    CritSectionCount = 0;
    LWLockReleaseAll();
    UnlockBuffers();
    PAL_ABORT_BUFFER_IO();
    ResourceOwnerRelease(CurrentResourceOwner, RESOURCE_RELEASE_BEFORE_LOCKS, false, true);
}
