/*
 * What a process that runs redo over a tenant's bytes may still do: read requests, write answers
 * and messages, and get anonymous memory up to a limit. Redo is not memory-safe against hostile
 * WAL, so the process is treated as if the tenant owned it.
 */
#ifndef PAL_SANDBOX_H
#define PAL_SANDBOX_H

#include "postgres.h"

/* Dies with its parent, by SIGKILL. To be called early: parents die at any time. */
extern void pal_die_with_parent(void);

/*
 * For work that nobody waits for: low priority, and threads that wake up go first at once. To be
 * called before the sandbox is entered.
 */
extern void pal_give_way(void);

/*
 * Walls behind the system call filter that not every kernel lets a process without privileges
 * build. The filter alone forbids all that they do; they are there in case it has a hole.
 */
#define PAL_WALL_FILES 1   /* no file can be reached, by Landlock or an empty root */
#define PAL_WALL_NETWORK 2 /* no network can be reached */
#define PAL_WALL_SIGNALS 4 /* no process outside can be signalled or traced, even of the same user */

/*
 * Cannot be left again. FATAL if any part of it fails but those walls; returns which of them stand.
 * `empty_directory` becomes the root directory.
 */
extern uint32 pal_sandbox_enter(uint64 address_space_limit, const char *empty_directory);

#endif
