/*
 * mkcontrol PATH: writes a control file that this major version of PostgreSQL accepts, and prints
 * that version (the contents of PG_VERSION). It describes no cluster: the redo server needs one to
 * get past the checks at start, and never reads WAL or data files.
 */
/* Backend types, but the libraries of client programs, as in pg_resetwal. */
#define FRONTEND 1
#include "postgres.h"

#include "access/heaptoast.h"
#include "access/multixact.h"
#include "access/transam.h"
#include "access/xlog_internal.h"
#include "catalog/catversion.h"
#include "catalog/pg_control.h"
#include "port/pg_crc32c.h"
#include "storage/large_object.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static ControlFileData
control_data(void)
{
    ControlFileData data;

    memset(&data, 0, sizeof(data));
    data.pg_control_version = PG_CONTROL_VERSION;
    data.catalog_version_no = CATALOG_VERSION_NO;
    data.state = DB_SHUTDOWNED;
    data.checkPoint = DEFAULT_MIN_WAL_SEGS * DEFAULT_XLOG_SEG_SIZE + SizeOfXLogLongPHD;
    data.checkPointCopy.redo = data.checkPoint;
    data.checkPointCopy.ThisTimeLineID = 1;
    data.checkPointCopy.PrevTimeLineID = 1;
    data.checkPointCopy.nextXid = FullTransactionIdFromEpochAndXid(0, FirstNormalTransactionId);
    data.checkPointCopy.nextOid = FirstGenbkiObjectId;
    data.checkPointCopy.nextMulti = FirstMultiXactId;
    data.checkPointCopy.oldestXid = FirstNormalTransactionId;
    data.checkPointCopy.oldestMulti = FirstMultiXactId;
    data.maxAlign = MAXIMUM_ALIGNOF;
    data.floatFormat = FLOATFORMAT_VALUE;
    data.blcksz = BLCKSZ;
    data.relseg_size = RELSEG_SIZE;
    data.xlog_blcksz = XLOG_BLCKSZ;
    data.xlog_seg_size = DEFAULT_XLOG_SEG_SIZE;
    data.nameDataLen = NAMEDATALEN;
    data.indexMaxKeys = INDEX_MAX_KEYS;
    data.toast_max_chunk_size = TOAST_MAX_CHUNK_SIZE;
    data.loblksize = LOBLKSIZE;
    data.float8ByVal = FLOAT8PASSBYVAL;

    /* Scratch pages have no checksums; the caller owns pd_checksum. */
    data.data_checksum_version = 0;

    INIT_CRC32C(data.crc);
    COMP_CRC32C(data.crc, &data, offsetof(ControlFileData, crc));
    FIN_CRC32C(data.crc);
    return data;
}

int
main(int argc, char **argv)
{
    char file[PG_CONTROL_FILE_SIZE] = {0};
    ControlFileData data = control_data();
    int fd;

    if (argc != 2)
    {
        fprintf(stderr, "usage: mkcontrol PATH\n");
        return 64;
    }
    memcpy(file, &data, sizeof(data));
    fd = open(argv[1], O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || write(fd, file, sizeof(file)) != sizeof(file) || close(fd) != 0)
    {
        fprintf(stderr, "mkcontrol: cannot write %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    printf("%s\n", PG_MAJORVERSION);
    return 0;
}
