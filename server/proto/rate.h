/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How much may be asked of an export: bytes and operations a second, for all its clients together.
 *
 * Each of the two is a bucket that says when all that was let through is paid for; a request goes
 * when that lies no further ahead than the burst. So a request longer than the bucket goes too, and
 * those after it wait the longer. While some wait, the one goes first whose client has had least,
 * by what its requests cost: a client with long requests gets no more than one with short ones.
 *
 * A client has one request in here at a time, and has taken no memory for it yet: what waits costs
 * nobody anything. The limits themselves may be changed at any moment, from any thread; all else
 * belongs to the thread on which the export is served.
 */
#ifndef QCOWD_PROTO_RATE_H
#define QCOWD_PROTO_RATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "io/world.h"
#include "sched/sync.h"

#define RATE_BURST_NS (250ULL * 1000 * 1000)

struct rate_bucket {
    _Atomic uint64_t per_second; /* 0: unlimited */
    uint64_t applied;            /* the per_second that due_ns was reckoned with */
    uint64_t due_ns;             /* when what was let through is paid for */
};

struct rate_limit {
    struct rate_bucket bytes;
    struct rate_bucket operations;
    struct list waiters;  /* of rate_client, the next one first */
    uint64_t progress_ns; /* what the last one that went had had before */
    struct world *world;  /* NULL until the first wait */
    struct world_timer timer;
};

/* One connection's part. All zero is one that has not asked yet. */
struct rate_client {
    struct waiter waiter;
    struct rate_limit *waits_for; /* NULL: it does not wait */
    uint64_t bytes;
    uint64_t had_ns; /* what its requests have cost, in time; catches up with progress_ns */
    bool quit;
};

/* 0: no limit. More than LIMIT_RATE_BYTES or LIMIT_RATE_OPERATIONS is that much. */
void rate_limit_init(struct rate_limit *rate, uint64_t bytes_per_second,
                     uint64_t operations_per_second);
/* Holds for those that wait already, too, within a tenth of a second. */
void rate_limit_set(struct rate_limit *rate, uint64_t bytes_per_second,
                    uint64_t operations_per_second);

/* Nothing needs to be asked. */
static inline bool rate_limit_is_off(const struct rate_limit *rate)
{
    return atomic_load_explicit(&rate->bytes.per_second, memory_order_relaxed) == 0 &&
           atomic_load_explicit(&rate->operations.per_second, memory_order_relaxed) == 0;
}

/*
 * Waits until one operation of so many bytes (at most LIMIT_PAYLOAD_BYTES) may go. False when
 * rate_client_quit() has ended the wait: it counts for nothing then.
 */
bool co_rate_take(struct rate_limit *rate, struct world *world, struct rate_client *client,
                  uint64_t bytes);
/* Ends the wait, if there is one. Does not suspend. */
void rate_client_quit(struct rate_client *client);

static inline bool rate_client_waits(const struct rate_client *client)
{
    return client->waits_for != NULL;
}

#endif
