/*
 * Turns a stand-alone backend of an unpatched PostgreSQL into a server that applies WAL records to
 * single pages. See README.md.
 *
 * The server takes over at shmem_startup_hook, the last step of setting up shared memory: all that
 * depends on the version before it was done by stock code, and nothing after it (recovery, the
 * catalogs, a session) is wanted. It never returns from there.
 */
#include "postgres.h"

#include "fmgr.h"

#include "replay.h"
#include "sandbox.h"
#include "serve.h"
#include "storage.h"

#include "access/xlog_internal.h"
#include "access/xlogutils.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/pg_shmem.h"
#include "storage/proc.h"
#include "utils/resowner.h"

#include <errno.h>
#include <sys/shm.h>
#include <unistd.h>

PG_MODULE_MAGIC;

/* Presence makes this library act at all; the value is RLIMIT_AS in bytes. */
#define LIMIT_VARIABLE "PALIMPSEST_REDO_ADDRESS_SPACE"

/* Presence says that nobody waits for what is done here. */
#define BACKGROUND_VARIABLE "PALIMPSEST_REDO_BACKGROUND"

/* In the data directory, which is the current one. PostgreSQL needs it, and leaves it empty. */
#define EMPTY_DIRECTORY "pg_notify"

extern PGDLLEXPORT void _PG_init(void);

static uint64 address_space_limit;

/*
 * The segment guards a data directory against a second postmaster. Marked for removal it goes when
 * this process does, however that happens.
 */
static void
abandon_interlock_segment(void)
{
    int id = shmget((key_t) UsedShmemSegID, 0, 0);

    if (id >= 0)
        shmctl(id, IPC_RMID, NULL);
}

static void
take_over(void)
{
    uint32 walls;

    abandon_interlock_segment();

    /* Enough of a backend for light-weight locks, buffers and memory; no catalogs, no recovery. */
    InitProcess();
    pal_storage_install();
    BaseInit();
    SetProcessingMode(NormalProcessing);
    InRecovery = true;
    CurrentResourceOwner = ResourceOwnerCreate(NULL, "page redo");
    RmgrStartup();
    pal_replay_init();

    /* A killed process would leave it, and the directory is used again. */
    unlink("postmaster.pid");

    walls = pal_sandbox_enter(address_space_limit, EMPTY_DIRECTORY);
    pal_serve(walls);
}

static uint64
parse_limit(const char *value)
{
    char *end;
    uint64 limit;

    errno = 0;
    limit = strtou64(value, &end, 10);
    if (errno != 0 || end == value || *end != '\0')
        elog(FATAL, LIMIT_VARIABLE " is not a number of bytes: \"%s\"", value);
    return limit;
}

void
_PG_init(void)
{
    const char *limit = getenv(LIMIT_VARIABLE);

    if (limit == NULL)
        return;
    if (!process_shared_preload_libraries_in_progress || IsUnderPostmaster || IsPostmasterEnvironment)
        elog(FATAL, "palimpsest_redo serves in a stand-alone backend only (postgres --single)");
    address_space_limit = parse_limit(limit);
    pal_die_with_parent();
    if (getenv(BACKGROUND_VARIABLE) != NULL)
        pal_give_way();
    shmem_startup_hook = take_over;
}
