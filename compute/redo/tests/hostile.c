/*
 * A server that was taken over: instead of applying records it tries to get out of the sandbox, or
 * to harm whoever reads its answers. Only for tests; never part of the library that is shipped.
 *
 * The block number of a request says what to try. An attempt that returns is answered by a page
 * that begins with its errno, or 0 if it worked; the tests in libs/redo-postgres know the numbers.
 */
#include "input.h"
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define ANSWER_MAGIC 0x31415250
#define OP_WALLS 4

typedef struct Answer
{
    uint32 magic;
    uint32 status;
    uint32 len;
    uint32 pad;
} Answer;

static char page[BLCKSZ];

static void
send_bytes(const void *bytes, size_t len)
{
    const char *at = bytes;

    while (len > 0)
    {
        ssize_t written = write(STDOUT_FILENO, at, len);

        if (written <= 0)
            _exit(3);
        at += written;
        len -= written;
    }
}

static void
send_answer(uint32 claimed, const void *body, size_t len)
{
    Answer header = {ANSWER_MAGIC, 0, claimed, 0};

    send_bytes(&header, sizeof(header));
    send_bytes(body, len);
}

static long
read_the_parent(void)
{
    char byte;
    struct iovec here = {&byte, 1};
    /* Where programs are mapped; whether there is anything does not matter, the refusal does. */
    struct iovec there = {(void *) 0x400000, 1};
    long result = process_vm_readv(getppid(), &here, 1, &there, 1, 0);

    return result < 0 && errno == EFAULT ? 0 : result;
}

static long
start_a_process(void)
{
    long pid = fork();

    if (pid == 0)
        _exit(0);
    return pid;
}

static long
execute_something(void)
{
    char *arguments[] = {"true", NULL};

    return execv("/bin/true", arguments);
}

static long
raise_a_limit(void)
{
    struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};

    return setrlimit(RLIMIT_AS, &limit);
}

static long
result_of_map(size_t size, int protection)
{
    void *at = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return at == MAP_FAILED ? -1 : 0;
}

/* Calls that would do something outside. */
static long
attempt(uint32 number)
{
    switch (number)
    {
        case 1:
            return open("/etc/passwd", O_RDONLY);
        case 2:
            return open("/tmp/palimpsest-hostile", O_CREAT | O_WRONLY, 0600);
        case 3:
            return mkdir("/tmp/palimpsest-hostile", 0700);
        case 4:
            return execute_something();
        case 5:
            return start_a_process();
        case 6:
            return socket(AF_INET, SOCK_STREAM, 0);
        case 7:
            return socket(AF_UNIX, SOCK_DGRAM, 0);
        case 8:
            return kill(getppid(), 0);
        case 9:
            return ptrace(PTRACE_SEIZE, getppid(), NULL, NULL);
        case 10:
            return read_the_parent();
        case 11:
            return dup(STDIN_FILENO);
        case 12:
            return syscall(SYS_memfd_create, "hostile", 0);
        case 13:
            return raise_a_limit();
        case 14:
            return setuid(0);
        case 15:
            return chroot("..");
        case 16:
            return symlink("/etc", "/tmp/palimpsest-hostile-link");
        case 17:
            return result_of_map((size_t) 1 << 34, PROT_READ | PROT_WRITE);
        case 18:
            return result_of_map(4096, PROT_READ | PROT_EXEC);
        case 19:
            return mprotect(page, 1, PROT_READ | PROT_EXEC);
        case 20:
            return unshare(CLONE_NEWUSER);
        default:
            errno = ENOSYS;
            return -1;
    }
}

static volatile uint32 sink;

/* Deeper than any stack, in a way that no compiler turns into a loop. */
static uint32
descend(uint32 depth)
{
    volatile char frame[4096];

    frame[depth % sizeof(frame)] = depth;
    return depth == PG_UINT32_MAX ? 0 : descend(depth + 1) + frame[0];
}

/* An address that is not mapped, which no compiler can know. */
static volatile uintptr_t nowhere = 8;

static void
take_all_memory(void)
{
    char *piece;

    while ((piece = malloc(1024 * 1024)) != NULL)
        memset(piece, 1, 1024 * 1024);
}

/* Returns if nothing was answered yet. */
static void
misbehave(uint32 number)
{
    switch (number)
    {
        case 100:
            for (;;)
                sink++;
        case 101:
            *(volatile int *) nowhere = 1;
            break;
        case 102:
            sink = descend(0);
            break;
        case 103:
            take_all_memory();
            break;
        case 104:
            send_bytes(page, sizeof(page));
            break;
        case 105:
            send_answer(PG_UINT32_MAX, page, sizeof(page));
            break;
        case 106:
            send_answer(5, page, 5);
            break;
        case 107:
            send_answer(BLCKSZ, page, BLCKSZ);
            break;
        case 108:
            for (int i = 0; i < 1000; i++)
                if (write(STDERR_FILENO, page, sizeof(page)) < 0)
                    break;
            _exit(9);
        case 109:
            send_answer(BLCKSZ, page, 100);
            for (;;)
                sink++;
        default:
            break;
    }
}

void
pal_serve(uint32 walls)
{
    const PalRequest *request;

    send_answer(0, NULL, 0);
    while ((request = pal_next_request()) != NULL)
    {
        int32 outcome = 0;

        memset(page, 0, sizeof(page));
        if (request->op == OP_WALLS)
        {
            send_answer(sizeof(walls), &walls, sizeof(walls));
            continue;
        }
        if (request->blkno >= 100)
            misbehave(request->blkno);
        else if (attempt(request->blkno) < 0)
            outcome = errno;
        memcpy(page, &outcome, sizeof(outcome));
        send_answer(BLCKSZ, page, sizeof(page));
    }
    _exit(0);
}
