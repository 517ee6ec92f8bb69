/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * libseccomp makes the program once, as bytes; each thread then loads it with one system call.
 *
 * Calls on the way of a request have no conditions on their arguments: the kernel then keeps the
 * verdict in a bitmap and does not run the filter for them. Speculative store bypass stays as the
 * system has it, since no code of strangers runs in this process.
 */
#include "sandbox/seccomp_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <netinet/in.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/check.h"

/* By name: those that this architecture or this libseccomp does not know are skipped. */
static const char *const allowed[] = {
    /* clang-format off */
    /* descriptors that are open */
    "io_uring_enter", "read", "readv", "pread64", "preadv", "preadv2", "write", "writev",
    "pwrite64", "pwritev", "pwritev2", "close", "close_range", "lseek", "_llseek", "fsync",
    "fdatasync", "sync_file_range", "fallocate", "ftruncate", "ftruncate64", "fadvise64",
    "fstat", "fstat64", "fstatfs", "fstatfs64", "dup", "dup2", "dup3", "pipe2", "eventfd2",
    "signalfd4", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "poll", "ppoll",
    "select", "pselect6", "getdents64",
    /* sockets that are open */
    "accept", "accept4", "recvfrom", "recvmsg", "sendto", "sendmsg", "shutdown", "getsockname",
    "getpeername", "getsockopt",
    /* what a path is, which opens nothing */
    "stat", "stat64", "lstat", "lstat64", "newfstatat", "fstatat64", "statx", "statfs",
    "statfs64", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "getcwd",
    /* memory */
    "brk", "munmap", "mremap", "madvise", "membarrier", "mlock", "munlock",
    /* threads and signals */
    "futex", "futex_waitv", "futex_time64", "set_robust_list", "rseq", "gettid", "getpid",
    "getppid", "sched_yield", "sched_getaffinity", "getcpu", "exit", "exit_group",
    "restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait",
    "sigaltstack", "wait4", "waitid",
    /* time */
    "clock_gettime", "clock_gettime64", "clock_getres", "clock_nanosleep",
    "clock_nanosleep_time64", "nanosleep", "gettimeofday", "time",
    /* who and where we are */
    "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "uname",
    "sysinfo", "getrusage", "getrlimit", "times", "getrandom",
    /* clang-format on */
};

/* Nobody makes these by accident. */
static const char *const deadly[] = {
    /* clang-format off */
    /* other programs */
    "execve", "execveat", "uselib",
    /* other processes */
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_open",
    "pidfd_getfd", "pidfd_send_signal", "kcmp", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
    /* ways around this filter, and around Landlock */
    "io_uring_setup", "io_uring_register", "open_by_handle_at", "userfaultfd", "bpf",
    "perf_event_open", "memfd_secret", "modify_ldt",
    /* the kernel and its keys */
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "keyctl",
    "add_key", "request_key", "reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd",
    "iopl", "ioperm", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime",
    "sethostname", "setdomainname", "syslog", "personality",
    /* mounts and name spaces */
    "mount", "umount", "umount2", "move_mount", "mount_setattr", "open_tree", "fsopen",
    "fsconfig", "fsmount", "fspick", "pivot_root", "chroot", "setns", "unshare",
    /* other users */
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups",
    "setfsuid", "setfsgid", "capset",
    /* clang-format on */
};

static const char *const opening[] = {"open", "openat"};
static const char *const removing[] = {"unlink", "unlinkat", "rmdir"};

/* A rule being made: the first error stays. */
struct rules {
    scmp_filter_ctx context;
    int error; /* 0 or -errno */
};

static void add(struct rules *rules, uint32_t action, const char *name, unsigned count,
                const struct scmp_arg_cmp *conditions)
{
    int number = seccomp_syscall_resolve_name(name);
    if (number == __NR_SCMP_ERROR || rules->error != 0) {
        return;
    }
    int ret = seccomp_rule_add_array(rules->context, action, number, count, conditions);
    if (ret < 0 && ret != -EDOM) {
        rules->error = ret;
    }
}

static void add_all(struct rules *rules, uint32_t action, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        add(rules, action, names[i], 0, NULL);
    }
}

static void allow_value(struct rules *rules, const char *name, unsigned argument, uint64_t value)
{
    /* The upper half of an int argument is anybody's guess. */
    const struct scmp_arg_cmp condition =
        SCMP_CMP64(argument, SCMP_CMP_MASKED_EQ, UINT32_MAX, value & UINT32_MAX);
    add(rules, SCMP_ACT_ALLOW, name, 1, &condition);
}

static void allow_without_bits(struct rules *rules, const char *name, unsigned argument,
                               uint64_t bits)
{
    const struct scmp_arg_cmp condition = SCMP_CMP64(argument, SCMP_CMP_MASKED_EQ, bits, 0);
    add(rules, SCMP_ACT_ALLOW, name, 1, &condition);
}

/* New code is not needed: no memory becomes executable. */
static void add_memory_rules(struct rules *rules)
{
    allow_without_bits(rules, "mmap", 2, PROT_EXEC);
    allow_without_bits(rules, "mmap2", 2, PROT_EXEC);
    allow_without_bits(rules, "mprotect", 2, PROT_EXEC);
}

/* Threads, and no processes. The flags of clone3() are out of a filter's sight: libc does without.
 */
static void add_thread_rules(struct rules *rules)
{
    const uint64_t thread = CLONE_THREAD | CLONE_VM;
    const struct scmp_arg_cmp condition = SCMP_A0_64(SCMP_CMP_MASKED_EQ, thread, thread);
    add(rules, SCMP_ACT_ALLOW, "clone", 1, &condition);
    add(rules, SCMP_ACT_ERRNO(ENOSYS), "clone3", 0, NULL);
    allow_value(rules, "prctl", 0, PR_SET_NAME);
    allow_value(rules, "prctl", 0, PR_SET_PDEATHSIG);
#ifdef PR_SET_VMA
    allow_value(rules, "prctl", 0, PR_SET_VMA);
#endif
}

static void add_signal_rules(struct rules *rules, pid_t command)
{
    allow_value(rules, "tgkill", 0, (uint64_t)getpid());
    allow_value(rules, "kill", 0, (uint64_t)getpid());
    if (command > 0) {
        allow_value(rules, "kill", 0, (uint64_t)command);
    }
}

static void add_descriptor_rules(struct rules *rules)
{
    static const int commands[] = {F_GETFD,     F_SETFD,     F_GETFL, F_SETFL,     F_DUPFD_CLOEXEC,
                                   F_OFD_GETLK, F_OFD_SETLK, F_GETLK, F_GETPIPE_SZ};
    static const unsigned long requests[] = {BLKGETSIZE64, BLKSSZGET, BLKPBSZGET, BLKROGET,
                                             FIONREAD,     SIOCOUTQ,  TCGETS};
    for (unsigned i = 0; i < ARRAY_LEN(commands); i++) {
        allow_value(rules, "fcntl", 1, (uint64_t)commands[i]);
        allow_value(rules, "fcntl64", 1, (uint64_t)commands[i]);
    }
    for (unsigned i = 0; i < ARRAY_LEN(requests); i++) {
        allow_value(rules, "ioctl", 1, requests[i]);
    }
    allow_value(rules, "setsockopt", 1, SOL_SOCKET);
    allow_value(rules, "setsockopt", 1, IPPROTO_TCP);
}

/* Our own limits may be looked at. */
static void add_limit_rules(struct rules *rules)
{
    const struct scmp_arg_cmp conditions[] = {SCMP_A0_64(SCMP_CMP_EQ, 0, 0),
                                              SCMP_A2_64(SCMP_CMP_EQ, 0, 0)};
    add(rules, SCMP_ACT_ALLOW, "prlimit64", ARRAY_LEN(conditions), conditions);
}

static int add_rules(scmp_filter_ctx context, const struct filter_needs *needs)
{
    struct rules rules = {.context = context};
    add_all(&rules, SCMP_ACT_ALLOW, allowed, ARRAY_LEN(allowed));
    add_all(&rules, SCMP_ACT_KILL_PROCESS, deadly, ARRAY_LEN(deadly));
    if (needs->open) {
        add_all(&rules, SCMP_ACT_ALLOW, opening, ARRAY_LEN(opening));
    } else if (!needs->report) {
        /* The errno of Landlock, which would refuse it, too. */
        add_all(&rules, SCMP_ACT_ERRNO(EACCES), opening, ARRAY_LEN(opening));
    }
    if (needs->remove) {
        add_all(&rules, SCMP_ACT_ALLOW, removing, ARRAY_LEN(removing));
    }
    add_memory_rules(&rules);
    add_thread_rules(&rules);
    add_signal_rules(&rules, needs->command);
    add_descriptor_rules(&rules);
    add_limit_rules(&rules);
    return rules.error;
}

/* The program that libseccomp writes to a descriptor. */
static int take_program(scmp_filter_ctx context, struct filter *filter)
{
    struct stat status;
    int fd = memfd_create("seccomp", MFD_CLOEXEC);
    int ret = fd < 0 ? -errno : seccomp_export_bpf(context, fd);
    if (ret == 0 && fstat(fd, &status) < 0) {
        ret = -errno;
    }
    if (ret == 0) {
        size_t len_bytes = (size_t)status.st_size;
        filter->count = (unsigned short)(len_bytes / sizeof(*filter->instructions));
        filter->instructions = malloc(len_bytes);
        if (!filter->instructions) {
            ret = -ENOMEM;
        } else if (pread(fd, filter->instructions, len_bytes, 0) != (ssize_t)len_bytes) {
            ret = -EIO;
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    if (ret < 0) {
        filter_free(filter);
    }
    return ret;
}

/* What a test is told: the call is refused as without it, and its number stands on stderr. */
static void report_refusal(int signal_number, siginfo_t *info, void *context)
{
    char line[64];
    (void)signal_number;
    int len = snprintf(line, sizeof(line), "qcowd: refused system call %d\n", info->si_syscall);
    ssize_t written = write(STDERR_FILENO, line, (size_t)len);
    (void)written;
#if defined(__x86_64__)
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = -EPERM;
#elif defined(__aarch64__)
    ((ucontext_t *)context)->uc_mcontext.regs[0] = (unsigned long)-EPERM;
#else
    (void)context;
#endif
}

static void watch_refusals(void)
{
    struct sigaction action = {.sa_sigaction = report_refusal, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
}

int filter_available(struct errtext *err)
{
    const uint32_t wanted = SECCOMP_RET_KILL_PROCESS;
    if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &wanted) < 0) {
        return err_set(err, errno, "%s", errno == ENOSYS ? "the kernel has none" : strerror(errno));
    }
    return 0;
}

int filter_build(struct filter *filter, const struct filter_needs *needs, struct errtext *err)
{
    *filter = (struct filter){.instructions = NULL};
    uint32_t refusal = needs->report ? SCMP_ACT_TRAP : SCMP_ACT_ERRNO(EPERM);
    scmp_filter_ctx context = seccomp_init(refusal);
    if (!context) {
        return err_set(err, ENOMEM, "out of memory");
    }
    int ret = seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (ret == 0) {
        ret = add_rules(context, needs);
    }
    if (ret == 0) {
        ret = take_program(context, filter);
    }
    seccomp_release(context);
    if (ret < 0) {
        return err_set(err, -ret, "cannot make the seccomp filter: %s", strerror(-ret));
    }
    if (needs->report) {
        watch_refusals();
    }
    return 0;
}

void filter_free(struct filter *filter)
{
    free(filter->instructions);
    *filter = (struct filter){.instructions = NULL};
}

int filter_enter(const struct filter *filter)
{
    const struct sock_fprog program = {.len = filter->count, .filter = filter->instructions};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program) <
                   0
               ? -errno
               : 0;
}
