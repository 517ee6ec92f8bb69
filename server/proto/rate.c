/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Both buckets are kept as times: what was let through at a rate R is paid for after units / R. A
 * changed rate is noticed when somebody asks, or at the next look of the timer, which is why it
 * never sleeps long; debts beyond a second are forgiven then.
 */
#include "proto/rate.h"

#include <assert.h>

#include "base/check.h"
#include "base/limits.h"
#include "sched/co.h"

#define SECOND_NS     (1000ULL * 1000 * 1000)
#define LOOK_EVERY_NS (100ULL * 1000 * 1000)

static_assert(LIMIT_PAYLOAD_BYTES < UINT64_MAX / SECOND_NS, "a cost in nanoseconds is in range");

static void bucket_set(struct rate_bucket *bucket, uint64_t per_second)
{
    atomic_store_explicit(&bucket->per_second, per_second, memory_order_relaxed);
}

static void bucket_refresh(struct rate_bucket *bucket, uint64_t now_ns)
{
    uint64_t per_second = atomic_load_explicit(&bucket->per_second, memory_order_relaxed);
    if (bucket->applied != per_second) {
        bucket->applied = per_second;
        bucket->due_ns = per_second == 0 ? 0 : MIN_OF(bucket->due_ns, now_ns + SECOND_NS);
    }
}

static uint64_t bucket_cost_ns(const struct rate_bucket *bucket, uint64_t units)
{
    return bucket->applied == 0 ? 0 : div_round_up(units * SECOND_NS, bucket->applied);
}

/* When the next may go. */
static uint64_t bucket_opens_ns(const struct rate_bucket *bucket)
{
    return bucket->due_ns - MIN_OF(bucket->due_ns, RATE_BURST_NS);
}

static void bucket_take(struct rate_bucket *bucket, uint64_t units, uint64_t now_ns)
{
    if (bucket->applied != 0) {
        bucket->due_ns = MAX_OF(bucket->due_ns, now_ns) + bucket_cost_ns(bucket, units);
    }
}

static uint64_t opens_ns(struct rate_limit *rate, uint64_t now_ns)
{
    bucket_refresh(&rate->bytes, now_ns);
    bucket_refresh(&rate->operations, now_ns);
    return MAX_OF(bucket_opens_ns(&rate->bytes), bucket_opens_ns(&rate->operations));
}

static void take(struct rate_limit *rate, struct rate_client *client, uint64_t now_ns)
{
    bucket_take(&rate->bytes, client->bytes, now_ns);
    bucket_take(&rate->operations, 1, now_ns);
    rate->progress_ns = client->had_ns;
    client->had_ns +=
        MAX_OF(bucket_cost_ns(&rate->bytes, client->bytes), bucket_cost_ns(&rate->operations, 1));
}

static void start_timer(struct rate_limit *rate, uint64_t opens_at_ns, uint64_t now_ns)
{
    rate->world->ops->timer_start(rate->world, &rate->timer,
                                  MIN_OF(opens_at_ns, now_ns + LOOK_EVERY_NS));
}

static void on_timer(struct world_timer *timer)
{
    struct rate_limit *rate = container_of(timer, struct rate_limit, timer);
    uint64_t now_ns = world_now_ns(rate->world);

    while (!list_empty(&rate->waiters)) {
        uint64_t opens_at_ns = opens_ns(rate, now_ns);
        if (opens_at_ns > now_ns) {
            start_timer(rate, opens_at_ns, now_ns);
            return;
        }
        struct rate_client *first = list_entry(rate->waiters.next, struct rate_client, waiter.link);
        take(rate, first, now_ns);
        waiter_quit(&first->waiter);
    }
}

void rate_limit_init(struct rate_limit *rate, uint64_t bytes_per_second,
                     uint64_t operations_per_second)
{
    *rate = (struct rate_limit){.timer.fired = on_timer};
    list_init(&rate->waiters);
    rate_limit_set(rate, bytes_per_second, operations_per_second);
}

void rate_limit_set(struct rate_limit *rate, uint64_t bytes_per_second,
                    uint64_t operations_per_second)
{
    bucket_set(&rate->bytes, MIN_OF(bytes_per_second, LIMIT_RATE_BYTES));
    bucket_set(&rate->operations, MIN_OF(operations_per_second, (uint64_t)LIMIT_RATE_OPERATIONS));
}

/* Behind those that have had as much or less. */
static void join(struct rate_limit *rate, struct rate_client *client)
{
    struct list *before = rate->waiters.prev;

    while (before != &rate->waiters &&
           list_entry(before, struct rate_client, waiter.link)->had_ns > client->had_ns) {
        before = before->prev;
    }
    list_push_front(before, &client->waiter.link);
}

bool co_rate_take(struct rate_limit *rate, struct world *world, struct rate_client *client,
                  uint64_t bytes)
{
    uint64_t now_ns = world_now_ns(world);
    uint64_t opens_at_ns = opens_ns(rate, now_ns);

    assert(!client->waits_for && bytes <= LIMIT_PAYLOAD_BYTES);
    /* Having asked for nothing for a while is no claim on what comes now. */
    client->had_ns = MAX_OF(client->had_ns, rate->progress_ns);
    client->bytes = bytes;
    if (list_empty(&rate->waiters) && opens_at_ns <= now_ns) {
        take(rate, client, now_ns);
        return true;
    }
    rate->world = world;
    if (list_empty(&rate->waiters)) {
        start_timer(rate, opens_at_ns, now_ns);
    }
    client->quit = false;
    client->waits_for = rate;
    client->waiter.coro = coro_self();
    join(rate, client);
    co_suspend();
    client->waits_for = NULL;
    return !client->quit;
}

void rate_client_quit(struct rate_client *client)
{
    struct rate_limit *rate = client->waits_for;

    if (!rate || !waiter_quit(&client->waiter)) {
        return;
    }
    client->quit = true;
    if (list_empty(&rate->waiters)) {
        rate->world->ops->timer_stop(rate->world, &rate->timer);
    }
}
