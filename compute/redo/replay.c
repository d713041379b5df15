#include "postgres.h"

#include "replay.h"

#include "storage.h"

#include "access/gist.h"
#include "access/gistxlog.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogutils.h"
#include "utils/memutils.h"

/* A decoding buffer larger than this is given back after the request that needed it. */
#define DECODE_BUFFER_KEPT (256 * 1024)

static MemoryContext redo_context;
static XLogReaderState *reader;
static char *decode_buffer;
static size_t decode_buffer_size;

/* The request under way. */
static PalBlock target;
static bool restored_from_image;
static uint32 records_applied;

void
pal_replay_init(void)
{
    reader = XLogReaderAllocate(wal_segment_size, NULL, XL_ROUTINE(), NULL);
    if (reader == NULL)
        elog(FATAL, "out of memory for a WAL decoder");
    redo_context = AllocSetContextCreate(TopMemoryContext, "page redo", ALLOCSET_DEFAULT_SIZES);
    MemoryContextSwitchTo(redo_context);
}

static bool
same_block(const PalBlock *a, const PalBlock *b)
{
    return a->blkno == b->blkno && a->fork == b->fork && PAL_REL_EQUAL(a->rel, b->rel);
}

static PalBlock
block_at(const DecodedBkpBlock *ref)
{
    PalBlock block = {PAL_BLOCK_REL(ref), ref->forknum, ref->blkno};

    return block;
}

PalRole
pal_replay_role(const PalBlock *block)
{
    const DecodedXLogRecord *record = reader->record;

    if (same_block(block, &target))
        return PAL_ROLE_TARGET;
    for (int id = 0; record != NULL && id <= record->max_block_id; id++)
    {
        PalBlock registered = block_at(&record->blocks[id]);

        if (record->blocks[id].in_use && same_block(block, &registered))
            return PAL_ROLE_BYSTANDER;
    }
    return PAL_ROLE_UNREGISTERED;
}

void
pal_replay_begin(const PalBlock *block, const char *base)
{
    if (block->fork < MAIN_FORKNUM || block->fork > MAX_FORKNUM)
        elog(ERROR, "%d is not a fork number", block->fork);
    if (block->blkno >= MaxBlockNumber)
        elog(ERROR, "%u is not a block number", block->blkno);

    target = *block;

    /* Redo flushes a page of an init fork at once; as a main fork's page it gets the same bytes. */
    if (target.fork == INIT_FORKNUM)
        target.fork = MAIN_FORKNUM;
    restored_from_image = false;
    records_applied = 0;
    pal_target_load(&target, base);
}

static void
reserve_decode_buffer(size_t size)
{
    if (size <= decode_buffer_size)
        return;
    if (decode_buffer != NULL)
        pfree(decode_buffer);
    decode_buffer = NULL;
    decode_buffer_size = 0;
    decode_buffer = MemoryContextAllocHuge(TopMemoryContext, size);
    decode_buffer_size = size;
}

/* Makes `record` the reader's current one. */
static DecodedXLogRecord *
decode(const PalRecord *record)
{
    XLogRecord *header = (XLogRecord *) record->bytes;
    DecodedXLogRecord *decoded;
    char *problem = NULL;

    if (record->len < SizeOfXLogRecord || header->xl_tot_len != record->len)
        elog(ERROR, "%u bytes are not one WAL record", record->len);

    reserve_decode_buffer(DecodeXLogRecordRequiredSpace(record->len));
    decoded = (DecodedXLogRecord *) decode_buffer;
    reader->ReadRecPtr = record->start;
    reader->EndRecPtr = record->end;
    if (!DecodeXLogRecord(reader, decoded, header, record->start, &problem))
        elog(ERROR, "cannot decode the WAL record: %s", problem);
    decoded->oversized = false;
    decoded->next_lsn = record->end;
    reader->record = decoded;
    return decoded;
}

/* Checks and prepares the record's block references; returns the target's, or -1. */
static int
prepare_references(DecodedXLogRecord *record, bool *has_bystanders)
{
    int target_id = -1;

    *has_bystanders = false;
    for (int id = 0; id <= record->max_block_id; id++)
    {
        DecodedBkpBlock *ref = &record->blocks[id];
        PalBlock block;

        if (!ref->in_use)
            continue;
        /* Either number would take the storage and buffer managers out of bounds. */
        if (ref->forknum < MAIN_FORKNUM || ref->forknum > MAX_FORKNUM)
            elog(ERROR, "block reference %d names fork %d", id, ref->forknum);
        if (ref->blkno >= MaxBlockNumber)
            elog(ERROR, "block reference %d names block %u", id, ref->blkno);
        if (ref->forknum == INIT_FORKNUM)
            ref->forknum = MAIN_FORKNUM;

        block = block_at(ref);
        if (same_block(&block, &target))
            target_id = id;
        else
            *has_bystanders = true;
    }
    return target_id;
}

/* Records change free space and visibility maps without registering them. */
static bool
is_map(ForkNumber fork)
{
    return fork == FSM_FORKNUM || fork == VISIBILITYMAP_FORKNUM;
}

static void
restore_image(int id, char *page)
{
    if (!RestoreBlockImage(reader, id, page))
        elog(ERROR, "cannot restore the page image: %s", reader->errormsg_buf);
}

/* Whether the page is the left half of a GiST split that the record completes. */
static bool
completes_gist_split(const XLogRecord *record, int id)
{
    uint8 info = record->xl_info & ~XLR_INFO_MASK;

    if (record->xl_rmid != RM_GIST_ID)
        return false;
    return (info == XLOG_GIST_PAGE_UPDATE && id == 1) || (info == XLOG_GIST_PAGE_SPLIT && id == 0);
}

/*
 * Applies the target's full-page image. Right for every resource manager, and the only way for
 * XLOG_FPI, whose redo routine would want to read the other blocks. One page is changed besides, as
 * by gistRedoClearFollowRight: the primary does so when it has the record's LSN, after the image
 * was taken.
 */
static void
apply_image(const DecodedXLogRecord *record, int id)
{
    Page page = pal_target_page(&target);

    restore_image(id, page);
    if (!PageIsNew(page))
        PageSetLSN(page, reader->EndRecPtr);
    if (completes_gist_split(&record->header, id) &&
        ((PageHeader) page)->pd_special == BLCKSZ - MAXALIGN(sizeof(GISTPageOpaqueData)))
    {
        GistPageSetNSN(page, reader->EndRecPtr);
        GistClearFollowRight(page);
    }
    restored_from_image = true;
}

static void
apply_by_redo(const DecodedXLogRecord *record)
{
    RmgrId rmid = record->header.xl_rmid;

    if (!RmgrIdExists(rmid))
        elog(ERROR, "no resource manager has number %u", rmid);
    /* The built-in ones without a mask own no pages; their redo works on files. */
    if (RmgrIdIsBuiltin(rmid) && (rmid == RM_XLOG_ID || RmgrTable[rmid].rm_mask == NULL))
        elog(ERROR, "a record of resource manager %s changes no page", RmgrTable[rmid].rm_name);
    RmgrTable[rmid].rm_redo(reader);
}

static void
mask(RmgrId rmid, BlockNumber blkno, char *page)
{
    if (RmgrIdExists(rmid) && RmgrTable[rmid].rm_mask != NULL)
        RmgrTable[rmid].rm_mask(page, blkno);
}

/* The comparison that a standby makes under wal_consistency_checking, but for the target only. */
static void
verify(const DecodedXLogRecord *record, int id, PalVerdict *verdict)
{
    PGAlignedBlock replayed;
    PGAlignedBlock primary;

    /* An image that was applied would be compared with itself. */
    if (id < 0 || !record->blocks[id].has_image || record->blocks[id].apply_image)
        return;

    memcpy(replayed.data, pal_target_page(&target), BLCKSZ);
    if (PageGetLSN(replayed.data) > reader->EndRecPtr)
        return;
    restore_image(id, primary.data);
    mask(record->header.xl_rmid, target.blkno, replayed.data);
    mask(record->header.xl_rmid, target.blkno, primary.data);
    verdict->compared++;
    if (memcmp(replayed.data, primary.data, BLCKSZ) != 0)
        verdict->differing++;
}

void
pal_replay_record(const PalRecord *raw, PalVerdict *verdict)
{
    DecodedXLogRecord *record = decode(raw);
    bool has_bystanders;
    int id = prepare_references(record, &has_bystanders);

    if (id < 0 && !is_map(target.fork))
        elog(ERROR, "the record does not refer to the page under reconstruction");

    if (id >= 0 && record->blocks[id].apply_image)
        apply_image(record, id);
    else
        apply_by_redo(record);
    if (verdict != NULL)
        verify(record, id, verdict);

    /*
     * A scratch page must not survive into the next record: one that this record initialised
     * would miss the changes made to it in between, and redo would trip over it.
     */
    if (pal_storage_was_read() || has_bystanders)
        pal_forget_pages(&target);
    records_applied++;
}

Page
pal_replay_page(void)
{
    Page page = pal_target_page(&target);

    /* Redo silently skips a page of zeros. An image may be one; maps begin as one. */
    if (PageIsNew(page) && records_applied > 0 && !restored_from_image && !is_map(target.fork))
        elog(ERROR, "%u records found no page to change: the chain needs a base page, or a first "
             "record that initialises the page", records_applied);
    return page;
}

void
pal_replay_end(void)
{
    reader->record = NULL;
    pal_forget_pages(NULL);
    if (XLogHaveInvalidPages())
        XLogDropRelation(target.rel, target.fork);
    pal_storage_close(false);
    MemoryContextReset(redo_context);
    if (decode_buffer_size > DECODE_BUFFER_KEPT)
    {
        pfree(decode_buffer);
        decode_buffer = NULL;
        decode_buffer_size = 0;
    }
}

void
pal_replay_abort(void)
{
    pal_release_after_error();
    /* Before the reset: an open relation may point back into a relcache entry in redo_context. */
    pal_storage_close(true);
    MemoryContextSwitchTo(redo_context);
    pal_storage_was_read();
    pal_replay_end();
}

void
pal_replay_mask(uint32 rmid, BlockNumber blkno, char *page)
{
    if (rmid > RM_MAX_ID || !RmgrIdExists(rmid) || RmgrTable[rmid].rm_mask == NULL)
        elog(ERROR, "no resource manager that can mask pages has number %u", rmid);
    mask(rmid, blkno, page);
}
