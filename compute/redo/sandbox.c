#include "sandbox.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
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

void
pal_sandbox_enter(uint64 address_space_limit)
{
    struct sock_fprog program = {.len = lengthof(rules), .filter = rules};

    if (syscall(SYS_close_range, 3, ~0U, 0) != 0)
        elog(FATAL, "cannot close inherited file descriptors: %m");

    /* No core dump, by whatever core_pattern: memory holds the tenant's data. */
    set_limit(RLIMIT_CORE, 0, "core");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        elog(FATAL, "cannot forbid core dumps: %m");
    set_limit(RLIMIT_FSIZE, 0, "file size");
    set_limit(RLIMIT_AS, address_space_limit, "address space");

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        elog(FATAL, "cannot give up new privileges: %m");
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0)
        elog(FATAL, "cannot install the system call filter: %m");
}
