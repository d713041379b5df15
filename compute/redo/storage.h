/*
 * A storage manager without storage, put in the place of PostgreSQL's file-backed one.
 *
 * Redo routines see relations of unlimited size. A read of a block that the record registers gives
 * a page that redo leaves alone; a read of any other block (free space and visibility maps, which
 * redo touches without registering them) gives zeros. Writes vanish.
 */
#ifndef PAL_STORAGE_H
#define PAL_STORAGE_H

#include "pg_version.h"

/* Replaces the table of storage manager methods of this process; FATAL if it is not found. */
extern void pal_storage_install(void);

/* Whether any page was read since the last call. */
extern bool pal_storage_was_read(void);

/* Closes the relations that redo opened, if there are many or if `all`. None may be in use. */
extern void pal_storage_close(bool all);

#endif
