/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A list of what is allowed: an operation that a later kernel brings is refused until it is put
 * here. All of these work on descriptors that are open already. Nothing can be registered with the
 * ring once it is enabled, nor can the restrictions be lifted.
 */
#include "sched/ring_restrict.h"

#include <errno.h>
#include <liburing.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"

static const enum io_uring_op allowed[] = {
    /* clang-format off */
    IORING_OP_NOP,
    IORING_OP_ASYNC_CANCEL,
    IORING_OP_POLL_ADD,
    /* disks, pipes and descriptors of events */
    IORING_OP_READ,
    IORING_OP_READV,
    IORING_OP_WRITE,
    IORING_OP_WRITEV,
    IORING_OP_FSYNC,
    IORING_OP_FALLOCATE,
    /* clients */
    IORING_OP_ACCEPT,
    IORING_OP_RECV,
    IORING_OP_SENDMSG,
    /* clang-format on */
};

/* liburing 2.3 has functions for these, but its shared library does not export them. */
static int register_with(struct io_uring *ring, unsigned opcode, const void *arg, unsigned count)
{
    long ret = syscall(__NR_io_uring_register, ring->ring_fd, opcode, arg, count);
    return ret < 0 ? -errno : 0;
}

int ring_restrict(struct io_uring *ring)
{
    struct io_uring_restriction restrictions[ARRAY_LEN(allowed) + 1] = {
        {.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED, .sqe_flags = IOSQE_ASYNC},
    };
    for (unsigned i = 0; i < ARRAY_LEN(allowed); i++) {
        restrictions[i + 1].opcode = IORING_RESTRICTION_SQE_OP;
        restrictions[i + 1].sqe_op = (__u8)allowed[i];
    }
    int ret =
        register_with(ring, IORING_REGISTER_RESTRICTIONS, restrictions, ARRAY_LEN(restrictions));
    return ret < 0 ? ret : register_with(ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}
