#include "sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__) && defined(__AARCH64EL__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#else
#error "the system call filter is written for little-endian x86_64 and aarch64"
#endif

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_restrict_self 446
#endif

/*
 * Landlock as of its sixth version. The kernel's own header may be older than the kernel, so what
 * is needed of it stands here.
 */
#define LANDLOCK_VERSION_QUESTION 1
#define LANDLOCK_SIGNALS_SINCE 6
#define LANDLOCK_SCOPES 3 /* abstract sockets, signals */
#define LANDLOCK_TCP 3    /* bind, connect */

typedef struct LandlockRuleset
{
    uint64 files;
    uint64 network;
    uint64 scopes;
} LandlockRuleset;

/* The argument of sched_setattr as of its first version; the header of libc has none. */
typedef struct SchedulingAttributes
{
    uint32 size;
    uint32 policy;
    uint64 flags;
    int32 nice;
    uint32 priority;
    uint64 runtime;
    uint64 deadline;
    uint64 period;
} SchedulingAttributes;

#define BACKGROUND_NICE 10
#define BACKGROUND_SLICE UINT64CONST(100000000) /* nanoseconds; the longest there is */

/* All that each version can forbid: the number of its kinds of access to files, and the rest. */
static const struct
{
    int file_kinds;
    uint64 network;
    uint64 scopes;
    size_t size;
} landlock_versions[] = {
    {13, 0, 0, 8},
    {14, 0, 0, 8},
    {15, 0, 0, 8},
    {15, LANDLOCK_TCP, 0, 16},
    {16, LANDLOCK_TCP, 0, 16},
    {16, LANDLOCK_TCP, LANDLOCK_SCOPES, 24},
};

/* Arguments are 64 bits wide, but the kernel takes descriptors and flags from the low half. */
#define FIELD(name) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, name))
#define EQUAL(value, then, otherwise)                                                              \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32) (value), then, otherwise)
#define ANY_BIT(bits, then, otherwise)                                                             \
    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (uint32) (bits), then, otherwise)
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define KILL BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

/* Each rule expects the call's number in the accumulator, and falls through if it is another. */
#define ALLOW_CALL(call) EQUAL(__NR_##call, 0, 1), ALLOW
#define ALLOW_ON_INPUT(call)                                                                       \
    EQUAL(__NR_##call, 0, 4), FIELD(args[0]), EQUAL(STDIN_FILENO, 0, 1), ALLOW, KILL
#define ALLOW_ON_OUTPUT(call)                                                                      \
    EQUAL(__NR_##call, 0, 5), FIELD(args[0]), EQUAL(STDOUT_FILENO, 1, 0),                          \
        EQUAL(STDERR_FILENO, 0, 1), ALLOW, KILL
#define ALLOW_ANONYMOUS_DATA(call)                                                                 \
    EQUAL(__NR_##call, 0, 6), FIELD(args[2]), ANY_BIT(PROT_EXEC, 3, 0), FIELD(args[3]),            \
        ANY_BIT(MAP_ANONYMOUS, 0, 1), ALLOW, KILL

static struct sock_filter rules[] = {
    FIELD(arch), EQUAL(NATIVE_ARCH, 1, 0), KILL,
    FIELD(nr),
    ALLOW_ON_INPUT(read),
    ALLOW_ON_OUTPUT(writev),
    ALLOW_ON_OUTPUT(write),
    ALLOW_CALL(brk),
    ALLOW_ANONYMOUS_DATA(mmap),
    ALLOW_CALL(munmap),
    ALLOW_CALL(mremap),
    ALLOW_CALL(clock_gettime),
    ALLOW_CALL(exit),
    ALLOW_CALL(exit_group),
    KILL,
};

static void
set_limit(int resource, uint64 value, const char *name)
{
    struct rlimit limit = {.rlim_cur = value, .rlim_max = value};

    if (setrlimit(resource, &limit) != 0)
        elog(FATAL, "cannot set the resource limit %s: %m", name);
}

void
pal_die_with_parent(void)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0)
        elog(FATAL, "cannot ask to be killed when the parent dies: %m");
}

/*
 * A low priority alone is not enough. Since Linux 6.6 a thread that wakes up may have to wait until
 * the one that runs has used up its slice, which is noticed at a tick, up to 4 ms later; unless the
 * one that runs has asked for a longer slice than its own, which it can since 6.12. Older kernels
 * don't look at the slice.
 */
void
pal_give_way(void)
{
    /* Who is nicer already may not become less nice. */
    int nice = Max(getpriority(PRIO_PROCESS, 0), BACKGROUND_NICE);
    SchedulingAttributes attributes = {
        .size = sizeof(attributes),
        .policy = SCHED_OTHER,
        .nice = nice,
        .runtime = BACKGROUND_SLICE,
    };

    /* If neither is allowed, the work is done at the usual priority. */
    if (syscall(SYS_sched_setattr, 0, &attributes, 0) != 0)
        (void) setpriority(PRIO_PROCESS, 0, nice);
}

/*
 * Moves into a user namespace of its own, where a process without privileges may give up more than
 * outside: the network, and every file below an empty root. Returns the walls that stand then.
 */
static uint32
enter_namespaces(const char *empty_directory)
{
    struct __user_cap_header_struct version = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct nothing[_LINUX_CAPABILITY_U32S_3] = {{0}};
    uint32 walls = 0;

    if (unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC) == 0)
        walls |= PAL_WALL_NETWORK;
    else if (unshare(CLONE_NEWUSER) != 0)
        return 0;
    if (chroot(empty_directory) == 0 && chdir("/") == 0)
        walls |= PAL_WALL_FILES;
    /* With them it could leave the root again. */
    if (syscall(SYS_capset, &version, nothing) != 0)
        elog(FATAL, "cannot give up the capabilities of the user namespace: %m");
    return walls;
}

/* Forbids all that the kernel's Landlock knows, without exceptions. Returns the walls of that. */
static uint32
enter_landlock(void)
{
    int version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION_QUESTION);
    LandlockRuleset ruleset = {0};
    int known;
    int descriptor;

    if (version < 1)
        return 0;
    known = Min(version, (int) lengthof(landlock_versions)) - 1;
    ruleset.files = (UINT64CONST(1) << landlock_versions[known].file_kinds) - 1;
    ruleset.network = landlock_versions[known].network;
    ruleset.scopes = landlock_versions[known].scopes;
    descriptor = syscall(SYS_landlock_create_ruleset, &ruleset, landlock_versions[known].size, 0);
    if (descriptor < 0 || syscall(SYS_landlock_restrict_self, descriptor, 0) != 0)
        elog(FATAL, "cannot enter a Landlock domain: %m");
    close(descriptor);
    return PAL_WALL_FILES | (version >= LANDLOCK_SIGNALS_SINCE ? PAL_WALL_SIGNALS : 0);
}

static void
enter_limits(uint64 address_space_limit)
{
    /* No core dump, by whatever core_pattern: memory holds the tenant's data. */
    set_limit(RLIMIT_CORE, 0, "core");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        elog(FATAL, "cannot forbid core dumps: %m");
    set_limit(RLIMIT_FSIZE, 0, "file size");
    set_limit(RLIMIT_NOFILE, 0, "open files");
    set_limit(RLIMIT_NPROC, 0, "processes");
    set_limit(RLIMIT_MEMLOCK, 0, "locked memory");
    set_limit(RLIMIT_AS, address_space_limit, "address space");
}

static void
enter_filter(void)
{
    struct sock_fprog program = {.len = lengthof(rules), .filter = rules};

    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0)
        elog(FATAL, "cannot install the system call filter: %m");
}

uint32
pal_sandbox_enter(uint64 address_space_limit, const char *empty_directory)
{
    uint32 walls;

    if (syscall(SYS_close_range, 3, ~0U, 0) != 0)
        elog(FATAL, "cannot close inherited file descriptors: %m");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        elog(FATAL, "cannot give up new privileges: %m");
    walls = enter_namespaces(empty_directory);
    /* Other capabilities, as a new namespace gives them, may have cancelled it. */
    pal_die_with_parent();
    walls |= enter_landlock();
    enter_limits(address_space_limit);
#ifndef PAL_WITHOUT_FILTER
    enter_filter();
#endif
    return walls;
}
