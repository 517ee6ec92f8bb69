/* SPDX-License-Identifier: BSD-2-Clause */
#include "qcow2/l1.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "qcow2/alloc.h"
#include "qcow2/commit.h"
#include "qcow2/engine.h"

static int co_alloc_place(struct qcow2 *q, uint64_t clusters, uint64_t *first)
{
    int ret = co_alloc_contiguous(q, clusters, first);
    return ret < 0 ? ret : co_alloc_make_table(q, *first, clusters);
}

/* Room for more entries in memory, all zero. -ENOMEM: nothing has changed. */
static int extend_in_memory(struct l1_table *l1, uint64_t entries)
{
    uint64_t *more = calloc(entries, sizeof(*more));
    uint8_t *dirty = calloc(1, (size_t)div_round_up(entries, L1_SECTOR_ENTRIES) + 1);
    if (!more || !dirty) {
        free(more);
        free(dirty);
        return -ENOMEM;
    }
    memcpy(more, l1->entries, (size_t)l1->count * sizeof(*more));
    memcpy(dirty, l1->dirty_sectors, (size_t)div_round_up(l1->count, L1_SECTOR_ENTRIES));
    free(l1->entries);
    free(l1->dirty_sectors);
    l1->entries = more;
    l1->dirty_sectors = dirty;
    l1->count = (uint32_t)entries;
    return 0;
}

int co_l1_grow(struct qcow2 *q, uint64_t entries)
{
    struct l1_table *l1 = &q->l1;
    uint64_t clusters = div_round_up(entries * 8, q->geo.cluster_bytes);
    uint64_t first = 0;

    assert(entries * 8 <= LIMIT_L1_BYTES);
    if (entries <= l1->count) {
        return 0;
    }
    int ret = 0;
    if (l1->new_clusters != 0) {
        ret = co_commit(q); /* it moves once at a time */
    }
    if (ret == 0) {
        ret = co_alloc_place(q, clusters, &first);
    }
    if (ret < 0) {
        return ret;
    }
    /* Nobody holds a pointer into the table over a wait (O7): one step. */
    ret = extend_in_memory(l1, entries);
    if (ret < 0) {
        for (uint64_t i = 0; i < clusters; i++) {
            metamap_remove(&q->metamap, first + i);
        }
        co_alloc_undo(q, first, clusters);
        return ret;
    }
    l1->new_first = first;
    l1->new_clusters = (uint32_t)clusters;
    l1->dirty = true;
    commit_arm_timer(q);
    return 0;
}
