/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a ring may be used for. Operations of io_uring go around a seccomp filter, so the ring
 * itself must refuse those that this program never asks for: opening files, making sockets,
 * connecting.
 */
#ifndef QCOWD_SCHED_RING_RESTRICT_H
#define QCOWD_SCHED_RING_RESTRICT_H

struct io_uring;

/*
 * Limits a ring made with IORING_SETUP_R_DISABLED to the operations in the table of
 * ring_restrict.c, for good, and enables it. Others complete with -EACCES from then on. 0 or
 * -errno.
 */
int ring_restrict(struct io_uring *ring);

#endif
