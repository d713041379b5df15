#include "postgres.h"

#include "storage.h"

#include "replay.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

/* An open relation costs about 100 bytes; past this many they are closed. */
#define MANY_RELATIONS 1024

static PGAlignedBlock bystander;
static bool was_read = false;
static int opened = 0;

static void
storage_nothing(void)
{
}

static void
storage_open(SMgrRelation reln)
{
    opened++;
}

static void
storage_close(SMgrRelation reln, ForkNumber fork)
{
}

static void
storage_create(SMgrRelation reln, ForkNumber fork, bool is_redo)
{
}

static bool
storage_exists(SMgrRelation reln, ForkNumber fork)
{
    return true;
}

static void
storage_unlink(RelFileNodeBackend rel, ForkNumber fork, bool is_redo)
{
}

static void
storage_write(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page, bool skip)
{
}

static bool
storage_prefetch(SMgrRelation reln, ForkNumber fork, BlockNumber blkno)
{
    return true;
}

static void
storage_read(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page)
{
    PalBlock block = {PAL_SMGR_REL(reln), fork, blkno};

    was_read = true;
    switch (pal_replay_role(&block))
    {
        case PAL_ROLE_TARGET:
            elog(ERROR, "the page under reconstruction has left the buffer pool");
            break;
        case PAL_ROLE_BYSTANDER:
            memcpy(page, bystander.data, BLCKSZ);
            break;
        case PAL_ROLE_UNREGISTERED:
            memset(page, 0, BLCKSZ);
            break;
    }
}

static void
storage_writeback(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, BlockNumber count)
{
}

static BlockNumber
storage_nblocks(SMgrRelation reln, ForkNumber fork)
{
    return MaxBlockNumber;
}

static void
storage_truncate(SMgrRelation reln, ForkNumber fork, BlockNumber old_blocks, BlockNumber nblocks)
{
}

static void
storage_immedsync(SMgrRelation reln, ForkNumber fork)
{
}

static const PalSmgrMethods stock_methods = PAL_STOCK_SMGR;

static const PalSmgrMethods our_methods = {
    .init = storage_nothing,
    .shutdown = storage_nothing,
    .open = storage_open,
    .close = storage_close,
    .create = storage_create,
    .exists = storage_exists,
    .unlink = storage_unlink,
    .extend = storage_write,
    .prefetch = storage_prefetch,
    .read = storage_read,
    .write = storage_write,
    .writeback = storage_writeback,
    .nblocks = storage_nblocks,
    .truncate = storage_truncate,
    .immedsync = storage_immedsync,
};

typedef struct Search
{
    char *found;
    int count;
} Search;

/* Looks for the stock table in the writable segments of the first object, the executable. */
static int
search_executable(struct dl_phdr_info *info, size_t size, void *argument)
{
    Search *search = argument;

    for (int i = 0; i < info->dlpi_phnum; i++)
    {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        char *start = (char *) (info->dlpi_addr + segment->p_vaddr);
        char *end = start + segment->p_memsz;

        if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_W))
            continue;
        start = (char *) TYPEALIGN(sizeof(void *), (uintptr_t) start);
        for (char *at = start; at + sizeof(stock_methods) <= end; at += sizeof(void *))
        {
            if (memcmp(at, &stock_methods, sizeof(stock_methods)) == 0)
            {
                search->found = at;
                search->count++;
            }
        }
    }
    return 1;
}

static void
protect(char *table, int protection)
{
    uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE);
    char *start = (char *) TYPEALIGN_DOWN(page, (uintptr_t) table);
    char *end = (char *) TYPEALIGN(page, (uintptr_t) (table + sizeof(PalSmgrMethods)));

    if (mprotect(start, end - start, protection) != 0)
        elog(FATAL, "cannot change the protection of the storage manager's table: %m");
}

void
pal_storage_install(void)
{
    Search search = {NULL, 0};

    dl_iterate_phdr(search_executable, &search);
    if (search.count != 1)
        elog(FATAL, "found %d storage manager tables in this postgres binary instead of 1",
             search.count);

    protect(search.found, PROT_READ | PROT_WRITE);
    memcpy(search.found, &our_methods, sizeof(our_methods));
    protect(search.found, PROT_READ);

    /* A valid page that is newer than any record: redo finds its change done already. */
    PageInit(bystander.data, BLCKSZ, 0);
    PageSetLSN(bystander.data, PG_UINT64_MAX);
}

bool
pal_storage_was_read(void)
{
    bool result = was_read;

    was_read = false;
    return result;
}

void
pal_storage_close(bool all)
{
    if (!all && opened < MANY_RELATIONS)
        return;
    smgrcloseall();
    opened = 0;
}
