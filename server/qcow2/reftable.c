/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Only the end of the file moves on to clusters that need new entries, so the allocator asks there
 * and nowhere else. The place itself is allocated without asking: the margin is for that.
 */
#include "qcow2/reftable.h"

#include <errno.h>

#include "base/check.h"
#include "base/limits.h"
#include "qcow2/alloc.h"
#include "qcow2/engine.h"

#define ENTRIES_MAX (LIMIT_REFCOUNT_TABLE_BYTES / 8)

static uint64_t entries_in(const struct qcow2 *q, uint64_t clusters)
{
    return (clusters << q->geo.cluster_bits) / 8;
}

uint64_t reftable_disk_entries(const struct qcow2 *q)
{
    return entries_in(q, q->header.reftable_clusters);
}

/* Entries for the blocks that count clusters up to `end_cluster` and a table of twice as many. */
static uint64_t entries_wanted(const struct qcow2 *q, uint64_t end_cluster)
{
    uint64_t blocks = div_round_up(end_cluster, q->geo.refblock_entries);
    uint64_t table_clusters = div_round_up(2 * 8 * blocks, q->geo.cluster_bytes);
    /* Its blocks, one more as it begins anywhere, and one that stands in front of it. */
    return blocks + div_round_up(table_clusters, q->geo.refblock_entries) + 2;
}

bool reftable_too_short(const struct qcow2 *q, uint64_t end_cluster)
{
    const struct reftable *table = &q->reftable;
    uint64_t entries =
        table->kept_clusters != 0 ? entries_in(q, table->kept_clusters) : reftable_disk_entries(q);
    return entries < ENTRIES_MAX && entries_wanted(q, end_cluster) > entries;
}

static void forget_metadata(struct qcow2 *q, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        metamap_remove(&q->metamap, first + i);
    }
}

static int co_alloc_table(struct qcow2 *q, uint64_t clusters, uint64_t *first)
{
    int ret = co_alloc_for_reftable(q, clusters, first);
    return ret < 0 ? ret : co_alloc_make_table(q, *first, clusters);
}

/* Call with place_lock held, and no commit moving the table. */
static int co_keep_place_locked(struct qcow2 *q, uint64_t end_cluster)
{
    struct reftable *table = &q->reftable;

    while (!q->failed && reftable_too_short(q, end_cluster)) {
        uint64_t entries = entries_wanted(q, end_cluster);
        entries = MIN_OF(entries + entries / 2, ENTRIES_MAX);
        uint64_t clusters = div_round_up(entries * 8, q->geo.cluster_bytes);
        uint64_t first;
        int ret = co_alloc_table(q, clusters, &first);
        if (ret < 0) {
            return ret;
        }
        /* The one kept so far was never written. */
        uint64_t old_first = table->kept_first;
        uint64_t old_clusters = table->kept_clusters;
        table->kept_first = first;
        table->kept_clusters = (uint32_t)clusters;
        if (old_clusters != 0) {
            forget_metadata(q, old_first, old_clusters);
            co_alloc_undo(q, old_first, old_clusters);
        }
        /* O7: others may have gone on meanwhile. */
        end_cluster = MAX_OF(end_cluster, q->alloc.append_next);
    }
    return q->failed ? -EIO : 0;
}

int co_reftable_keep_place(struct qcow2 *q, uint64_t end_cluster)
{
    for (;;) {
        while (q->reftable.moving && !q->failed) {
            co_wait(&q->commit.done);
        }
        co_mutex_lock(&q->reftable.place_lock);
        bool moving = q->reftable.moving;
        int ret = moving ? 0 : co_keep_place_locked(q, end_cluster);
        co_mutex_unlock(&q->reftable.place_lock);
        if (!moving || q->failed) {
            return q->failed ? -EIO : ret;
        }
    }
}
