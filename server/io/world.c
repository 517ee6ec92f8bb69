/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Waiting with a clock, the same in both worlds: a timer of the world and the coroutine's place in
 * a queue, whichever comes first.
 */
#include "io/world.h"

#include <errno.h>

#include "sched/co.h"
#include "sched/sync.h"

struct timed_wait {
    struct waiter waiter;
    struct world_timer timer;
    bool timed_out;
};

static void give_up(struct world_timer *timer)
{
    struct timed_wait *wait = container_of(timer, struct timed_wait, timer);

    /* False when it was woken through the queue in this same turn and has yet to run. */
    wait->timed_out = waiter_quit(&wait->waiter);
}

static uint64_t deadline_after(struct world *world, uint64_t delay_ns)
{
    uint64_t deadline_ns;

    return add_u64(world_now_ns(world), delay_ns, &deadline_ns) ? deadline_ns : UINT64_MAX;
}

int co_wait_timeout(struct world *world, struct wait_queue *queue, uint64_t timeout_ns)
{
    struct timed_wait wait = {.timer.fired = give_up};

    world->ops->timer_start(world, &wait.timer, deadline_after(world, timeout_ns));
    wait_queue_join(queue, &wait.waiter);
    co_suspend();
    world->ops->timer_stop(world, &wait.timer);
    return wait.timed_out ? -ETIMEDOUT : 0;
}

void co_sleep_ns(struct world *world, uint64_t delay_ns)
{
    struct wait_queue nobody_wakes;

    wait_queue_init(&nobody_wakes);
    int ret = co_wait_timeout(world, &nobody_wakes, delay_ns);
    assert(ret == -ETIMEDOUT);
}
