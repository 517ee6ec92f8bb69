/* SPDX-License-Identifier: BSD-2-Clause */
/* Each attack gives back 0 or -errno, like the rest of the house; what it got it lets go again. */
#include "debug/attack.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "sandbox/sandbox.h"
#include "sched/loop.h"

static char program[] = "/bin/true";
static char *program_arguments[] = {program, NULL};

static int let_go(int fd)
{
    if (fd < 0) {
        return -errno;
    }
    close(fd);
    return 0;
}

static int attack_open(const char *path)
{
    return let_go(open(path, O_RDONLY | O_CLOEXEC));
}

static int attack_create(const char *path)
{
    return let_go(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
}

static int attack_remove(const char *path)
{
    return unlink(path) < 0 ? -errno : 0;
}

static int attack_socket(const char *argument)
{
    (void)argument;
    return let_go(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

static int attack_connect(const char *port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)atoi(port)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int ret = fd < 0 ? -errno : connect(fd, (const struct sockaddr *)&address, sizeof(address));
    ret = fd >= 0 && ret < 0 ? -errno : ret;
    if (fd >= 0) {
        close(fd);
    }
    return ret;
}

static int attack_spawn(const char *argument)
{
    pid_t pid;
    (void)argument;
    int error = posix_spawn(&pid, program, NULL, NULL, program_arguments, environ);
    if (error == 0) {
        waitpid(pid, NULL, 0);
    }
    return -error;
}

static int attack_execute(const char *argument)
{
    (void)argument;
    execv(program, program_arguments);
    return -errno;
}

static int attack_executable_memory(const char *argument)
{
    (void)argument;
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return -ENOMEM;
    }
    int ret = mprotect(memory, 4096, PROT_READ | PROT_EXEC) < 0 ? -errno : 0;
    munmap(memory, 4096);
    return ret;
}

static int attack_signal(const char *pid)
{
    return kill((pid_t)atoi(pid), 0) < 0 ? -errno : 0;
}

static int attack_new_ring(const char *argument)
{
    struct io_uring_params params = {.flags = 0};
    (void)argument;
    return let_go((int)syscall(SYS_io_uring_setup, 4, &params));
}

static const struct {
    const char *name;
    int (*fn)(const char *argument);
} attacks[] = {
    {"open", attack_open},       {"create", attack_create},
    {"remove", attack_remove},   {"socket", attack_socket},
    {"connect", attack_connect}, {"spawn", attack_spawn},
    {"execute", attack_execute}, {"executable-memory", attack_executable_memory},
    {"signal", attack_signal},   {"new-ring", attack_new_ring},
};

struct worker_attack {
    const char *path;
    int result;
};

static void open_on_worker(void *arg)
{
    struct worker_attack *attack = arg;
    attack->result = attack_open(attack->path);
}

static int co_ring_open(struct loop *loop, const char *path)
{
    struct loop_op op;
    struct io_uring_sqe *sqe = loop_sqe(loop);
    *sqe = (struct io_uring_sqe){
        .opcode = IORING_OP_OPENAT,
        .fd = AT_FDCWD,
        .addr = (uintptr_t)path,
        .open_flags = O_RDONLY | O_CLOEXEC,
    };
    loop_sqe_attach(sqe, &op);
    int fd = co_loop_wait(loop, &op);
    if (fd >= 0) {
        close(fd);
    }
    return fd < 0 ? fd : 0;
}

static int co_try(struct loop *loop, const char *what, const char *argument)
{
    if (strcmp(what, "ring-open") == 0) {
        return co_ring_open(loop, argument);
    }
    if (strcmp(what, "worker-open") == 0) {
        struct worker_attack attack = {.path = argument};
        co_loop_work(loop, open_on_worker, &attack);
        return attack.result;
    }
    for (unsigned i = 0; i < ARRAY_LEN(attacks); i++) {
        if (strcmp(what, attacks[i].name) == 0) {
            return attacks[i].fn(argument);
        }
    }
    return -EBADRQC;
}

void co_attack(struct loop *loop, const char *what, const char *argument, char *answer,
               size_t answer_bytes)
{
    int result = co_try(loop, what, argument);
    if (result == 0) {
        snprintf(answer, answer_bytes, "ok\n");
    } else {
        snprintf(answer, answer_bytes, "refused: %s\n", strerrorname_np(-result));
    }
}

void attack_simulation(struct sandbox_simulation *simulation)
{
    const char *wanted = getenv("QCOWD_SANDBOX_SIMULATE");
    if (!wanted) {
        return;
    }
    const char *landlock = strstr(wanted, "landlock=");
    if (landlock) {
        int abi = atoi(landlock + strlen("landlock="));
        simulation->landlock_abi = abi > 0 ? abi : -1;
    }
    simulation->no_seccomp = strstr(wanted, "no-seccomp") != NULL;
    simulation->report_refusals = strstr(wanted, "report") != NULL;
}
