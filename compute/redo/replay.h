/*
 * Applies records to one page by the redo routines of this very PostgreSQL.
 *
 * A request is pal_replay_begin, any number of pal_replay_record, pal_replay_page, pal_replay_end.
 * Each may raise ERROR; then pal_replay_abort makes the process fit for the next request.
 */
#ifndef PAL_REPLAY_H
#define PAL_REPLAY_H

#include "pages.h"

/* What a block is to the record that is being applied. */
typedef enum PalRole
{
    PAL_ROLE_TARGET,
    PAL_ROLE_BYSTANDER,
    PAL_ROLE_UNREGISTERED,
} PalRole;

/* One record; `bytes` is aligned to 8 and holds header and body without WAL page headers. */
typedef struct PalRecord
{
    XLogRecPtr start;
    XLogRecPtr end;
    uint32 len;
    const char *bytes;
} PalRecord;

/* Comparisons with the page images that wal_consistency_checking leaves in records. */
typedef struct PalVerdict
{
    uint32 compared;
    uint32 differing;
} PalVerdict;

extern void pal_replay_init(void);
extern void pal_replay_begin(const PalBlock *target, const char *base);

/* Applies one record and, if `verdict` is not NULL, compares the result with the record's image. */
extern void pal_replay_record(const PalRecord *record, PalVerdict *verdict);

/* The page, valid until pal_replay_end. ERROR if the records could not have made one. */
extern Page pal_replay_page(void);
extern void pal_replay_end(void);
extern void pal_replay_abort(void);

/* Hides from `page` what need not be equal between a primary's page and a replayed one. */
extern void pal_replay_mask(uint32 rmid, BlockNumber blkno, char *page);

extern PalRole pal_replay_role(const PalBlock *block);

#endif
