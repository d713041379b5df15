/*
 * Everything that depends on the PostgreSQL major version.
 *
 * Ported: 15. A port to another version answers the questions below for it and nothing else:
 *
 *   16, 17  RelFileNode is RelFileLocator (spcOid, dbOid, relNumber); BufferTag is flat and has
 *           BufferTagsEqual/ClearBufferTag; an ERROR's buffer I/O is aborted by the resource owner;
 *           the storage manager's table has more entries (zeroextend; 17: readv, writev,
 *           registersync).
 *   18      buffer reads go through asynchronous I/O, so a replaced read callback is not enough.
 */
#ifndef PAL_PG_VERSION_H
#define PAL_PG_VERSION_H

#include "postgres.h"

#include "access/xlogreader.h"
#include "storage/buf_internals.h"
#include "storage/bufmgr.h"
#include "storage/md.h"
#include "storage/relfilenode.h"
#include "storage/smgr.h"

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 160000
#error "only PostgreSQL 15 is ported; see the list at the top of pg_version.h"
#endif

/* The physical name of a relation. */
typedef RelFileNode PalRel;

static inline PalRel
pal_rel(Oid spc, Oid db, Oid rel)
{
    PalRel result = {.spcNode = spc, .dbNode = db, .relNode = rel};

    return result;
}

#define PAL_REL_EQUAL(a, b) RelFileNodeEquals(a, b)

/* Of a DecodedBkpBlock and of an SMgrRelation. */
#define PAL_BLOCK_REL(block) ((block)->rnode)
#define PAL_SMGR_REL(smgr) ((smgr)->smgr_rnode.node)

static inline BufferTag
pal_buffer_tag(PalRel rel, ForkNumber fork, BlockNumber blkno)
{
    BufferTag tag;

    INIT_BUFFERTAG(tag, rel, fork, blkno);
    return tag;
}

#define PAL_TAGS_EQUAL(a, b) BUFFERTAGS_EQUAL(*(a), *(b))
#define PAL_CLEAR_TAG(tag) CLEAR_BUFFERTAG(*(tag))

/* What must be called after an ERROR to forget a read that was under way. */
#define PAL_ABORT_BUFFER_IO() AbortBufferIO()

/* The layout of `f_smgr`, which is private to smgr.c. */
typedef struct PalSmgrMethods
{
    void (*init)(void);
    void (*shutdown)(void);
    void (*open)(SMgrRelation reln);
    void (*close)(SMgrRelation reln, ForkNumber fork);
    void (*create)(SMgrRelation reln, ForkNumber fork, bool is_redo);
    bool (*exists)(SMgrRelation reln, ForkNumber fork);
    void (*unlink)(RelFileNodeBackend rel, ForkNumber fork, bool is_redo);
    void (*extend)(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page, bool skip);
    bool (*prefetch)(SMgrRelation reln, ForkNumber fork, BlockNumber blkno);
    void (*read)(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page);
    void (*write)(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page, bool skip);
    void (*writeback)(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, BlockNumber count);
    BlockNumber (*nblocks)(SMgrRelation reln, ForkNumber fork);
    void (*truncate)(SMgrRelation reln, ForkNumber fork, BlockNumber old_blocks, BlockNumber nblocks);
    void (*immedsync)(SMgrRelation reln, ForkNumber fork);
} PalSmgrMethods;

/* The table as the stock binary holds it. */
#define PAL_STOCK_SMGR                                                                             \
    {                                                                                              \
        mdinit, NULL, mdopen, mdclose, mdcreate, mdexists, mdunlink, mdextend, mdprefetch, mdread, \
            mdwrite, mdwriteback, mdnblocks, mdtruncate, mdimmedsync                               \
    }

#endif
