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

/* Cannot be left again. FATAL if any part of it fails. */
extern void pal_sandbox_enter(uint64 address_space_limit);

#endif
