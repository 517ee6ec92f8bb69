/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Waiting in line. A waiter leaves its line at the moment it is woken, before it runs: whoever
 * comes between cannot take its place, and what it waited for is already its own (the mutex stays
 * locked, the budget's units are already counted).
 */
#include "sched/sync.h"

#include <assert.h>

#include "sched/co.h"

void wait_queue_init(struct wait_queue *queue)
{
    list_init(&queue->waiters);
}

void wait_queue_join(struct wait_queue *queue, struct waiter *waiter)
{
    waiter->coro = coro_self();
    assert(waiter->coro);
    list_push_back(&queue->waiters, &waiter->link);
}

bool waiter_quit(struct waiter *waiter)
{
    if (!list_linked(&waiter->link)) {
        return false;
    }
    list_remove(&waiter->link);
    coro_wake(waiter->coro);
    return true;
}

void co_wait(struct wait_queue *queue)
{
    struct waiter waiter;
    wait_queue_join(queue, &waiter);
    co_suspend();
    assert(!list_linked(&waiter.link));
}

unsigned wait_queue_wake_one(struct wait_queue *queue)
{
    if (list_empty(&queue->waiters)) {
        return 0;
    }
    waiter_quit(list_entry(queue->waiters.next, struct waiter, link));
    return 1;
}

unsigned wait_queue_wake_all(struct wait_queue *queue)
{
    unsigned woken = 0;
    while (wait_queue_wake_one(queue)) {
        woken++;
    }
    return woken;
}

void co_mutex_init(struct co_mutex *mutex)
{
    mutex->locked = false;
    wait_queue_init(&mutex->waiters);
}

void co_mutex_lock(struct co_mutex *mutex)
{
    if (!mutex->locked) {
        mutex->locked = true;
        return;
    }
    co_wait(&mutex->waiters);
    assert(mutex->locked);
}

void co_mutex_unlock(struct co_mutex *mutex)
{
    assert(mutex->locked);
    if (!wait_queue_wake_one(&mutex->waiters)) {
        mutex->locked = false;
    }
}

void group_init(struct group *group)
{
    group->running = 0;
    wait_queue_init(&group->waiters);
}

void group_enter(struct group *group)
{
    group->running++;
    assert(group->running != 0);
}

void group_leave(struct group *group)
{
    assert(group->running > 0);
    if (--group->running == 0) {
        wait_queue_wake_all(&group->waiters);
    }
}

void co_group_wait(struct group *group)
{
    while (group->running > 0) {
        co_wait(&group->waiters);
    }
}

struct budget_waiter {
    struct waiter waiter;
    uint64_t units;
};

void budget_init(struct budget *budget, uint64_t total)
{
    budget->total = total;
    budget->used = 0;
    list_init(&budget->waiters);
}

/* What is larger than the total goes alone. */
static bool budget_fits(const struct budget *budget, uint64_t units)
{
    return budget->used == 0 ||
           (budget->used <= budget->total && units <= budget->total - budget->used);
}

bool budget_try_take(struct budget *budget, uint64_t units)
{
    if (!list_empty(&budget->waiters) || !budget_fits(budget, units)) {
        return false;
    }
    budget->used += units;
    return true;
}

void co_budget_take(struct budget *budget, uint64_t units)
{
    if (budget_try_take(budget, units)) {
        return;
    }
    struct budget_waiter self = {.waiter.coro = coro_self(), .units = units};
    assert(self.waiter.coro);
    list_push_back(&budget->waiters, &self.waiter.link);
    co_suspend();
    assert(!list_linked(&self.waiter.link));
}

void budget_give(struct budget *budget, uint64_t units)
{
    assert(units <= budget->used);
    budget->used -= units;
    while (!list_empty(&budget->waiters)) {
        struct budget_waiter *first =
            list_entry(budget->waiters.next, struct budget_waiter, waiter.link);
        if (!budget_fits(budget, first->units)) {
            return;
        }
        budget->used += first->units;
        waiter_quit(&first->waiter);
    }
}
