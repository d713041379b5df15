#include "serve.h"

#include "input.h"
#include "replay.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#define ANSWER_MAGIC 0x31415250 /* "PRA1" */
#define ANSWER_OK 0
#define ANSWER_ERROR 1
#define ERROR_TEXT_MAX 4096

#define OP_APPLY 1
#define OP_MASK 2
#define OP_APPLY_VERIFY 3
#define OP_WALLS 4

#define FLAG_BASE 1

typedef struct Answer
{
    uint32 magic;
    uint32 status;
    uint32 len;
    uint32 pad;
} Answer;

/* The unread rest of a request. */
typedef struct Body
{
    const char *at;
    const char *end;
} Body;

/* The request and record being worked on, for error texts. */
static const PalRequest *current;
static XLogRecPtr current_record;
static bool answered;

/* Constant. */
static uint32 standing_walls;

static void
write_all(struct iovec *parts, int count)
{
    while (count > 0)
    {
        ssize_t written = writev(STDOUT_FILENO, parts, count);

        if (written < 0)
        {
            if (errno == EINTR)
                continue;
            /* Nobody is left to answer. */
            _exit(3);
        }
        while (count > 0 && (size_t) written >= parts->iov_len)
        {
            written -= parts->iov_len;
            parts++;
            count--;
        }
        if (count > 0)
        {
            parts->iov_base = (char *) parts->iov_base + written;
            parts->iov_len -= written;
        }
    }
}

/* Sends the answer whose body is `prefix` followed by `body`. */
static void
answer(uint32 status, struct iovec prefix, struct iovec body)
{
    Answer header = {ANSWER_MAGIC, status, prefix.iov_len + body.iov_len, 0};
    struct iovec parts[3] = {{&header, sizeof(header)}, prefix, body};

    write_all(parts, lengthof(parts));
    answered = true;
}

static const char *
take(Body *body, size_t size)
{
    const char *result = body->at;

    if (size > (size_t) (body->end - body->at))
        elog(ERROR, "the request is shorter than its contents");
    body->at += size;
    return result;
}

static Body
body_of(const PalRequest *request)
{
    Body body = {(const char *) (request + 1), (const char *) request + request->total_len};

    return body;
}

static PalRecord
take_record(Body *body)
{
    const PalRecordHeader *header = (const PalRecordHeader *) take(body, sizeof(*header));
    PalRecord record = {header->start_lsn, header->end_lsn, header->len, NULL};

    record.bytes = take(body, TYPEALIGN64(8, (uint64) header->len));
    return record;
}

static void
serve_apply(const PalRequest *request, PalVerdict *verdict)
{
    Body body = body_of(request);
    const char *base = (request->flags & FLAG_BASE) ? take(&body, BLCKSZ) : NULL;
    PalBlock block = {pal_rel(request->spc, request->db, request->rel), request->fork,
                      request->blkno};
    struct iovec prefix = {verdict, verdict == NULL ? 0 : sizeof(*verdict)};
    struct iovec page = {NULL, BLCKSZ};

    pal_replay_begin(&block, base);
    for (uint32 i = 0; i < request->nrecs; i++)
    {
        PalRecord record = take_record(&body);

        current_record = record.start;
        pal_replay_record(&record, verdict);
    }
    if (body.at != body.end)
        elog(ERROR, "the request is longer than its contents");

    page.iov_base = pal_replay_page();
    answer(ANSWER_OK, prefix, page);
    /* After the answer, where nobody waits for it. */
    pal_replay_end();
}

static void
serve_mask(const PalRequest *request)
{
    Body body = body_of(request);
    PGAlignedBlock masked;
    struct iovec page = {masked.data, BLCKSZ};

    memcpy(masked.data, take(&body, BLCKSZ), BLCKSZ);
    pal_replay_mask(request->spc, request->blkno, masked.data);
    answer(ANSWER_OK, (struct iovec){NULL, 0}, page);
}

static void
serve_one(const PalRequest *request)
{
    PalVerdict verdict = {0, 0};

    switch (request->op)
    {
        case OP_APPLY:
            serve_apply(request, NULL);
            break;
        case OP_MASK:
            serve_mask(request);
            break;
        case OP_APPLY_VERIFY:
            serve_apply(request, &verdict);
            break;
        case OP_WALLS:
            answer(ANSWER_OK, (struct iovec){NULL, 0},
                   (struct iovec){&standing_walls, sizeof(standing_walls)});
            break;
        default:
            elog(ERROR, "no operation has number %u", request->op);
    }
}

/* Answers the current request with the ERROR just raised, and gets ready for the next one. */
static void
recover(void)
{
    StringInfoData message;
    ErrorData *error;
    struct iovec body;

    /* Two answers to one request would shift every later one. */
    if (answered)
    {
        write_stderr("palimpsest_redo: cannot clean up after a request\n");
        _exit(4);
    }
    MemoryContextSwitchTo(TopMemoryContext);
    error = CopyErrorData();
    FlushErrorState();
    initStringInfo(&message);
    appendStringInfoString(&message, error->message);
    if (error->detail != NULL)
        appendStringInfo(&message, " (%s)", error->detail);
    appendStringInfo(&message, "; operation %u on %u/%u/%u fork %u block %u", current->op,
                     current->spc, current->db, current->rel, current->fork, current->blkno);
    if (current_record != InvalidXLogRecPtr)
        appendStringInfo(&message, ", record at %X/%X", LSN_FORMAT_ARGS(current_record));

    body.iov_base = message.data;
    body.iov_len = Min(message.len, ERROR_TEXT_MAX);
    answer(ANSWER_ERROR, (struct iovec){NULL, 0}, body);
    pfree(message.data);
    FreeErrorData(error);
    pal_replay_abort();
}

void
pal_serve(uint32 walls)
{
    sigjmp_buf on_error;

    standing_walls = walls;
    answer(ANSWER_OK, (struct iovec){NULL, 0}, (struct iovec){NULL, 0});
    if (sigsetjmp(on_error, 0) != 0)
    {
        /* An ERROR while recovering from one must end the process, not come back here. */
        PG_exception_stack = NULL;
        recover();
    }
    PG_exception_stack = &on_error;

    for (;;)
    {
        current = pal_next_request();
        if (current == NULL)
            _exit(0);
        current_record = InvalidXLogRecPtr;
        answered = false;
        serve_one(current);
    }
}
