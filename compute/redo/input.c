#include "input.h"

#include <errno.h>
#include <unistd.h>

#define BUFFER_KEPT (1024 * 1024)

StaticAssertDecl(sizeof(PalRequest) == 40, "requests are 8-byte aligned within the stream");
StaticAssertDecl(sizeof(PalRecordHeader) == 24, "records are 8-byte aligned within a request");

/* Bytes head..tail have been read and not consumed. */
static char *buffer;
static size_t capacity;
static size_t head;
static size_t tail;

static void
give_up(const char *why)
{
    write_stderr("palimpsest_redo: %s\n", why);
    _exit(2);
}

static void
resize(size_t size)
{
    buffer = realloc(buffer, size);
    if (buffer == NULL)
        give_up("out of memory for a request");
    capacity = size;
}

/* Makes room for `need` bytes from head on; gives back what a huge request needed. */
static void
make_room(size_t need)
{
    size_t size = Max(need, BUFFER_KEPT);

    if (head > 0)
    {
        memmove(buffer, buffer + head, tail - head);
        tail -= head;
        head = 0;
    }
    if (need > capacity || (capacity > size && tail <= size))
        resize(size);
}

/* Reads once; false at the end of input. */
static bool
fill(void)
{
    for (;;)
    {
        ssize_t count = read(STDIN_FILENO, buffer + tail, capacity - tail);

        if (count > 0)
        {
            tail += count;
            return true;
        }
        if (count == 0)
        {
            if (tail > head)
                give_up("the input ends within a request");
            return false;
        }
        if (errno != EINTR)
            give_up("cannot read requests");
    }
}

static void
check_frame(const PalRequest *request)
{
    if (request->magic != PAL_REQUEST_MAGIC)
        give_up("the input is not a request");
    if (request->total_len < sizeof(PalRequest) || request->total_len > PAL_REQUEST_MAX ||
        request->total_len % 8 != 0)
        give_up("a request's length is out of bounds");
}

const PalRequest *
pal_next_request(void)
{
    for (;;)
    {
        size_t have = tail - head;
        size_t need = sizeof(PalRequest);

        if (have >= need)
        {
            const PalRequest *request = (const PalRequest *) (buffer + head);

            check_frame(request);
            need = request->total_len;
            if (have >= need)
            {
                head += need;
                return request;
            }
        }
        make_room(need);
        if (!fill())
            return NULL;
    }
}
