/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Waiting between coroutines of one thread: wait queue, mutex, group, budget. All are first come,
 * first served; none allocates, and a waiter's node lives on its own stack.
 */
#ifndef QCOWD_SCHED_SYNC_H
#define QCOWD_SCHED_SYNC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

struct coro;

/* A queue of suspended coroutines. */
struct wait_queue {
    struct list waiters;
};

void wait_queue_init(struct wait_queue *queue);
/* Suspends until woken through the queue. The caller re-checks its condition after (O7). */
void co_wait(struct wait_queue *queue);
/* Both return how many were woken; neither suspends. */
unsigned wait_queue_wake_one(struct wait_queue *queue);
unsigned wait_queue_wake_all(struct wait_queue *queue);

/*
 * The two halves of co_wait(), for waits that something else (a timer) may end too: the running
 * coroutine joins with a waiter on its own stack and suspends; waiter_quit() takes a waiter out and
 * wakes its coroutine. It returns false, and does nothing, when the queue has woken it already.
 */
struct waiter {
    struct list link;
    struct coro *coro;
};
void wait_queue_join(struct wait_queue *queue, struct waiter *waiter);
bool waiter_quit(struct waiter *waiter);

/* Mutual exclusion across suspension points. Handed over to the longest waiter on unlock. */
struct co_mutex {
    bool locked;
    struct wait_queue waiters;
};

void co_mutex_init(struct co_mutex *mutex);
void co_mutex_lock(struct co_mutex *mutex);   /* may suspend */
void co_mutex_unlock(struct co_mutex *mutex); /* does not suspend */

/* Counts running children; one or more coroutines wait until there are none. */
struct group {
    unsigned running;
    struct wait_queue waiters;
};

void group_init(struct group *group);
void group_enter(struct group *group);
void group_leave(struct group *group);   /* wakes the waiters at zero */
void co_group_wait(struct group *group); /* returns at once at zero */

/*
 * A budget of units (bytes, requests). co_budget_take() waits, first come first served, until
 * `units` fit under the total; a request larger than the total is admitted alone, so it cannot
 * starve.
 */
struct budget {
    uint64_t total;
    uint64_t used;
    struct list waiters;
};

void budget_init(struct budget *budget, uint64_t total);
void co_budget_take(struct budget *budget, uint64_t units);
/* Takes only if it can without waiting (and nobody waits). */
bool budget_try_take(struct budget *budget, uint64_t units);
void budget_give(struct budget *budget, uint64_t units);

#endif
