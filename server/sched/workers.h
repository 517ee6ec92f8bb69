/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Threads for what computes long or needs a large stack: inflate, deflate, hashing, TLS handshakes.
 * The submitting thread learns of finished work through a descriptor that its ring reads.
 */
#ifndef QCOWD_SCHED_WORKERS_H
#define QCOWD_SCHED_WORKERS_H

#include "base/list.h"

struct worker_pool;

/* One piece of work. The submitter keeps it in place until it has come back. */
struct work {
    struct list link;
    void (*fn)(void *arg);
    void *arg;
    void *owner; /* the submitter's own */
};

/*
 * Starts the threads, one a processor, at least 2 and at most 4. They block all signals. -errno
 * when not even one could be started.
 */
int worker_pool_create(struct worker_pool **out);
/* Joins the threads. All work has come back. NULL is fine. */
void worker_pool_free(struct worker_pool *pool);

/*
 * Ends the threads, each after the piece of work it is at, and starts as many new ones, which
 * inherit what confines the caller. Nothing waiting or finished is lost. -errno when not even one
 * could be started: the pool is good for nothing any more.
 */
int worker_pool_renew(struct worker_pool *pool);

unsigned worker_pool_threads(const struct worker_pool *pool);

/* An eventfd: readable when worker_pool_collect() has something to give since it last gave. */
int worker_pool_fd(const struct worker_pool *pool);

/* First come, first started. */
void worker_pool_submit(struct worker_pool *pool, struct work *work);
/* Appends finished work to `finished`, in the order of finishing. Does not read the descriptor. */
void worker_pool_collect(struct worker_pool *pool, struct list *finished);

#endif
