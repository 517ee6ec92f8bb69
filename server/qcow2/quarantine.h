/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * O3: freed clusters on their way to being free. A cluster enters when a mapping change in memory
 * drops it; it leaves when that change is durable (the commit that took it has finished) and every
 * request that was running when it entered has finished (it may still read or write there). Only
 * then is it punched, counted down and made allocatable, in this order: while its count is 1 nobody
 * can claim it, so nobody's new data is punched.
 */
#ifndef QCOWD_QCOW2_QUARANTINE_H
#define QCOWD_QCOW2_QUARANTINE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "sched/sync.h"

struct qcow2;

struct quarantined {
    uint64_t first; /* host cluster */
    uint64_t count;
    uint64_t commit; /* released once this many commits have finished */
    uint64_t number; /* and no request older than this is running */
    bool was_table;  /* an L2 table: in the map of metadata until it is released */
};

struct quarantine {
    struct quarantined *ring; /* oldest at head; power-of-two capacity */
    uint64_t capacity;
    uint64_t head;
    uint64_t tail;
    bool releasing;
    uint64_t gone;          /* entries that have left, ever */
    uint64_t clusters;      /* in the ring */
    struct wait_queue left; /* woken when some have, and when the image has failed */
};

void quarantine_init(struct quarantine *quarantine);
void quarantine_free(struct quarantine *quarantine);

/*
 * Takes in clusters whose mapping has just been dropped in memory. Call in the same step as the
 * mapping change. Cannot fail: without memory the clusters leak, with a log line.
 */
void quarantine_add(struct qcow2 *q, uint64_t first, uint64_t count);
/* The same for an L2 table that the active L1 table names no longer. */
void quarantine_add_table(struct qcow2 *q, uint64_t cluster);

/* Starts releasing in the background if the oldest entry may go. Does not suspend. */
void quarantine_kick(struct qcow2 *q);

/* How many clusters wait in it; those on their way out do not count. */
uint64_t quarantine_clusters(const struct quarantine *quarantine);

/* Nothing is in it, and nothing on its way out. */
bool quarantine_empty(const struct quarantine *quarantine);

/* Whether the oldest entry waits for a commit, not for requests. */
bool quarantine_wants_commit(const struct qcow2 *q);

#endif
