/*
 * The buffer pool as a workbench: the page under reconstruction (the target), scratch pages for
 * whatever else a redo routine asks for, and nothing that outlives a request.
 */
#ifndef PAL_PAGES_H
#define PAL_PAGES_H

#include "pg_version.h"

/* The address of one page. */
typedef struct PalBlock
{
    PalRel rel;
    ForkNumber fork;
    BlockNumber blkno;
} PalBlock;

/* Puts the target into the pool: `base`, or zeros if it is NULL. Leaves it unpinned. */
extern void pal_target_load(const PalBlock *target, const char *base);

/* The target's page. ERROR if it is not in the pool, which would be a defect. */
extern Page pal_target_page(const PalBlock *target);

/* Empties the pool, but for `keep` if that is not NULL. No page may be pinned. */
extern void pal_forget_pages(const PalBlock *keep);

/* After an ERROR: releases every lock, pin and unfinished read. */
extern void pal_release_after_error(void);

#endif
