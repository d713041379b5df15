/*
 * Framed requests from descriptor 0, read in as large pieces as the sender provides.
 */
#ifndef PAL_INPUT_H
#define PAL_INPUT_H

#include "postgres.h"

#define PAL_REQUEST_MAGIC 0x31515250 /* "PRQ1" */
#define PAL_REQUEST_MAX (64 * 1024 * 1024)

/* The fixed part of a request. */
typedef struct PalRequest
{
    uint32 magic;
    uint32 total_len;
    uint32 op;
    uint32 flags;
    uint32 spc;
    uint32 db;
    uint32 rel;
    uint32 fork;
    uint32 blkno;
    uint32 nrecs;
} PalRequest;

/* What precedes each record of a request. */
typedef struct PalRecordHeader
{
    uint64 start_lsn;
    uint64 end_lsn;
    uint32 len;
    uint32 pad;
} PalRecordHeader;

/*
 * The next whole request, aligned to 8 and valid until the next call; NULL at the end of input.
 * Ends the process if the input is not a sequence of requests: there is no next one to find.
 */
extern const PalRequest *pal_next_request(void);

#endif
