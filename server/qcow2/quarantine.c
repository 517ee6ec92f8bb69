/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A ring in the order of entry; commit and request numbers only grow, so the oldest entry is always
 * the first that may go. Each release takes all that may go, sorts and merges them, and punches in
 * large pieces.
 */
#include "qcow2/quarantine.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "qcow2/commit.h"
#include "qcow2/engine.h"
#include "qcow2/refcount.h"
#include "sched/co.h"

#define RING_MIN 64U

void quarantine_init(struct quarantine *quarantine)
{
    *quarantine = (struct quarantine){0};
    wait_queue_init(&quarantine->left);
}

void quarantine_free(struct quarantine *quarantine)
{
    free(quarantine->ring);
    *quarantine = (struct quarantine){0};
}

static bool ring_empty(const struct quarantine *quarantine)
{
    return quarantine->head == quarantine->tail;
}

uint64_t quarantine_clusters(const struct quarantine *quarantine)
{
    return quarantine->clusters;
}

bool quarantine_empty(const struct quarantine *quarantine)
{
    return ring_empty(quarantine) && !quarantine->releasing;
}

static struct quarantined *at(const struct quarantine *quarantine, uint64_t position)
{
    return &quarantine->ring[position & (quarantine->capacity - 1)];
}

static bool make_room(struct quarantine *quarantine)
{
    if (quarantine->tail - quarantine->head < quarantine->capacity) {
        return true;
    }
    uint64_t capacity = MAX_OF(quarantine->capacity * 2, RING_MIN);
    struct quarantined *ring = malloc(capacity * sizeof(*ring));
    if (!ring) {
        return false;
    }
    uint64_t count = quarantine->tail - quarantine->head;
    for (uint64_t i = 0; i < count; i++) {
        ring[i] = *at(quarantine, quarantine->head + i);
    }
    free(quarantine->ring);
    quarantine->ring = ring;
    quarantine->capacity = capacity;
    quarantine->head = 0;
    quarantine->tail = count;
    return true;
}

static void add(struct qcow2 *q, uint64_t first, uint64_t count, bool was_table)
{
    struct quarantine *quarantine = &q->quarantine;
    uint64_t commit = q->commit.started + 1; /* the next snapshot is the first to hold the change */
    uint64_t number = request_table_next_number(q->table);

    if (!ring_empty(quarantine)) {
        struct quarantined *last = at(quarantine, quarantine->tail - 1);
        if (last->commit == commit && last->first + last->count == first &&
            last->was_table == was_table) {
            last->count += count;
            last->number = number;
            quarantine->clusters += count;
            return;
        }
    }
    if (!make_room(quarantine)) {
        log_warning("%s: out of memory: %llu freed clusters stay allocated", q->path,
                    (unsigned long long)count);
        return;
    }
    *at(quarantine, quarantine->tail) =
        (struct quarantined){first, count, commit, number, was_table};
    quarantine->tail++;
    quarantine->clusters += count;
}

void quarantine_add(struct qcow2 *q, uint64_t first, uint64_t count)
{
    add(q, first, count, false);
}

void quarantine_add_table(struct qcow2 *q, uint64_t cluster)
{
    add(q, cluster, 1, true);
}

static bool may_go(const struct qcow2 *q, const struct quarantined *entry)
{
    return entry->commit <= q->commit.finished &&
           entry->number <= request_table_oldest_number(q->table);
}

bool quarantine_wants_commit(const struct qcow2 *q)
{
    const struct quarantine *quarantine = &q->quarantine;
    return !ring_empty(quarantine) && at(quarantine, quarantine->head)->commit > q->commit.finished;
}

static int compare_first(const void *left, const void *right)
{
    const struct quarantined *a = left;
    const struct quarantined *b = right;
    return a->first < b->first ? -1 : a->first > b->first;
}

/* Merges neighbours; overlapping entries (clusters shared by compressed data) stay apart. */
static uint64_t merge(struct quarantined *batch, uint64_t count)
{
    qsort(batch, count, sizeof(*batch), compare_first);
    uint64_t kept = 0;
    for (uint64_t i = 1; i < count; i++) {
        if (batch[kept].first + batch[kept].count == batch[i].first &&
            batch[kept].was_table == batch[i].was_table) {
            batch[kept].count += batch[i].count;
        } else {
            batch[++kept] = batch[i];
        }
    }
    return kept + 1;
}

/*
 * O10: counts that lie. A cluster that counted 0 may have a new owner by now, a data cluster named
 * twice may have become a table, and an L2 table may belong to a snapshot that nobody counted.
 */
static bool is_damaged(struct qcow2 *q, const struct quarantined *entry, uint64_t first,
                       uint64_t count, uint64_t refcount)
{
    if (refcount == 0) {
        engine_corrupt(q, "refcount of cluster %#llx is 0, but it was in use",
                       (unsigned long long)first << q->geo.cluster_bits);
        return true;
    }
    const struct metamap *kept = entry->was_table ? &q->snapshot_tables : &q->metamap;
    if (refcount == 1 && metamap_first_in(kept, first, count) < first + count) {
        engine_corrupt(q, "cluster %#llx was freed, but holds metadata",
                       (unsigned long long)metamap_first_in(kept, first, count)
                           << q->geo.cluster_bits);
        return true;
    }
    return false;
}

/* One run of clusters with the same count: punch if this was the last reference, count down. */
static int co_release_run(struct qcow2 *q, const struct quarantined *entry, uint64_t first,
                          uint64_t count, uint64_t refcount)
{
    if (is_damaged(q, entry, first, count, refcount)) {
        return 0; /* at worst they leak */
    }
    bool punched = false;
    if (refcount == 1 && q->options.trim == TRIM_UNMAP) {
        int ret = q->disk->ops->co_punch(q->disk, first << q->geo.cluster_bits,
                                         count << q->geo.cluster_bits);
        /* Not being able to punch costs space on the host, and nothing else. */
        punched = ret == 0;
    }
    int ret = co_commit_make_room(q);
    if (ret < 0) {
        return ret;
    }
    ret = co_refcount_down(q, first, count);
    if (ret < 0) {
        return ret;
    }
    commit_arm_timer(q);
    if (refcount == 1) {
        /* An L2 table that was not shared after all is metadata no longer. */
        for (uint64_t i = 0; i < count && entry->was_table; i++) {
            metamap_remove(&q->metamap, first + i);
        }
        alloc_add_free(&q->alloc, first, count, punched);
        q->counts.clusters_freed += count;
    }
    return 0;
}

static void co_release_entry(struct qcow2 *q, const struct quarantined *entry)
{
    uint64_t end = entry->first + entry->count;
    for (uint64_t first = entry->first; first < end;) {
        uint64_t refcount;
        uint64_t run;
        uint64_t last = first;
        uint64_t same = 0;
        int ret = 0;
        /* Grow the run over slice borders, so that a large trim is one punch. */
        while (last < end) {
            ret = co_refcount_run(q, last, end - last, &refcount, &run);
            if (ret < 0 || (last > first && refcount != same)) {
                break;
            }
            same = refcount;
            last += run;
        }
        if (ret == 0) {
            ret = co_release_run(q, entry, first, last - first, same);
        }
        if (ret < 0) {
            log_warning("%s: %llu freed clusters at %#llx stay allocated: %s", q->path,
                        (unsigned long long)(end - first),
                        (unsigned long long)first << q->geo.cluster_bits, strerror(-ret));
            return;
        }
        first = last;
    }
}

static void co_release(void *arg)
{
    struct qcow2 *q = arg;
    struct quarantine *quarantine = &q->quarantine;

    while (!q->failed && !ring_empty(quarantine) && may_go(q, at(quarantine, quarantine->head))) {
        uint64_t count = 0;
        while (quarantine->head + count < quarantine->tail &&
               may_go(q, at(quarantine, quarantine->head + count))) {
            count++;
        }
        struct quarantined *batch = malloc(count * sizeof(*batch));
        if (!batch) {
            log_warning("%s: out of memory while freeing clusters: trying again later", q->path);
            break;
        }
        for (uint64_t i = 0; i < count; i++) {
            batch[i] = *at(quarantine, quarantine->head + i);
            quarantine->clusters -= batch[i].count;
        }
        quarantine->head += count;
        uint64_t merged = merge(batch, count);
        for (uint64_t i = 0; i < merged; i++) {
            co_release_entry(q, &batch[i]);
        }
        free(batch);
        quarantine->gone += count;
        wait_queue_wake_all(&quarantine->left);
    }
    quarantine->releasing = false;
    wait_queue_wake_all(&quarantine->left);
    group_leave(&q->background);
}

void quarantine_kick(struct qcow2 *q)
{
    struct quarantine *quarantine = &q->quarantine;

    if (quarantine->releasing || q->failed || ring_empty(quarantine) ||
        !may_go(q, at(quarantine, quarantine->head))) {
        return;
    }
    quarantine->releasing = true;
    group_enter(&q->background);
    if (coro_spawn(co_release, q, "qcow2 release") < 0) {
        quarantine->releasing = false;
        group_leave(&q->background);
    }
}
