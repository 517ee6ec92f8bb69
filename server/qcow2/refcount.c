/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A refcount block for a region that has none is placed inside that region, at the first cluster
 * that is claimed there: all of the region is free then, so the block can always count itself.
 * Only where a run must not be cut by one (a refcount table that is longer than a region) it stands
 * elsewhere.
 */
#include "qcow2/refcount.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "qcow2/engine.h"

struct place {
    uint64_t block;     /* index into the refcount table */
    host_off slice;     /* where the slice lies, when the block exists */
    uint32_t in_slice;  /* entry in the slice */
    uint32_t remaining; /* entries from there to the slice's end */
    bool exists;
};

static struct place place_of(const struct qcow2 *q, uint64_t cluster)
{
    uint64_t in_block = cluster % q->geo.refblock_entries;
    struct place place = {
        .block = cluster / q->geo.refblock_entries,
        .in_slice = (uint32_t)(in_block % q->geo.slice_refcounts),
    };
    place.remaining = q->geo.slice_refcounts - place.in_slice;
    if (place.block < q->reftable.count && q->reftable.entries[place.block] != 0) {
        place.exists = true;
        place.slice.bytes = q->reftable.entries[place.block] +
                            in_block / q->geo.slice_refcounts * q->geo.slice_bytes;
    }
    return place;
}

bool refcount_block_exists(const struct qcow2 *q, uint64_t cluster)
{
    return place_of(q, cluster).exists;
}

/* Room in memory for entry `block`; the disk's table follows with the next commit. */
static int reftable_grow(struct qcow2 *q, uint64_t block)
{
    struct reftable *table = &q->reftable;

    if (block < table->count) {
        return 0;
    }
    if (block >= LIMIT_REFCOUNT_TABLE_BYTES / 8) {
        log_error("%s: refcount table would need %llu entries, at most %llu are allowed", q->path,
                  (unsigned long long)block + 1,
                  (unsigned long long)(LIMIT_REFCOUNT_TABLE_BYTES / 8));
        return -ENOSPC;
    }
    if (block >= table->capacity) {
        uint64_t capacity = MAX_OF(table->capacity * 2, block + 1);
        uint64_t *entries = realloc(table->entries, capacity * sizeof(uint64_t));
        if (!entries) {
            return -ENOMEM;
        }
        table->entries = entries;
        table->capacity = capacity;
    }
    memset(&table->entries[table->count], 0, (block + 1 - table->count) * sizeof(uint64_t));
    table->count = block + 1;
    return 0;
}

static void reftable_set(struct qcow2 *q, uint64_t block, uint64_t offset)
{
    struct reftable *table = &q->reftable;

    table->entries[block] = offset;
    if (table->dirty_first == table->dirty_end) {
        table->dirty_first = block;
        table->dirty_end = block + 1;
    } else {
        table->dirty_first = MIN_OF(table->dirty_first, block);
        table->dirty_end = MAX_OF(table->dirty_end, block + 1);
    }
}

/* A block that stands in the region that it counts counts itself. */
static int count_block_itself(struct qcow2 *q, uint64_t at, host_off block_at)
{
    uint64_t in_block = at % q->geo.refblock_entries;
    host_off slice_at = {block_at.bytes + in_block / q->geo.slice_refcounts * q->geo.slice_bytes};
    struct slice *slice;
    int ret = slice_create_zeroed(&q->cache, SLICE_REFCOUNT, slice_at, &slice);
    if (ret == 0) {
        ret = slice_modify(&q->cache, slice);
    }
    if (ret == 0) {
        refcount_set(q->geo.refcount_order, slice->bytes, in_block % q->geo.slice_refcounts, 1);
    }
    return ret;
}

/*
 * Makes cluster `at` the refcount block of the region of `counted`. Call with reftable.lock held.
 * -EEXIST: somebody made one while this one waited for the lock.
 */
static int co_make_block_locked(struct qcow2 *q, uint64_t counted, uint64_t at)
{
    struct place place = place_of(q, counted);
    if (place.exists) {
        return -EEXIST;
    }
    int ret = reftable_grow(q, place.block);
    if (ret < 0) {
        return ret;
    }
    host_off block_at = host_cluster_start(&q->geo, at);
    /* Blank on disk before anything points at it (first commit wave), with its space reserved. */
    ret = q->disk->ops->co_zero(q->disk, block_at.bytes, q->geo.cluster_bytes);
    if (ret < 0) {
        return ret;
    }
    ret = metamap_add(&q->metamap, at);
    if (ret < 0) {
        return ret;
    }
    assert(ret == 0);
    slice_forget_range(&q->cache, block_at, q->geo.cluster_bytes);
    if (at / q->geo.refblock_entries == place.block) {
        ret = count_block_itself(q, at, block_at);
        if (ret < 0) {
            metamap_remove(&q->metamap, at);
            return ret;
        }
    }
    reftable_set(q, place.block, block_at.bytes);
    return 0;
}

int co_refcount_place_block(struct qcow2 *q, uint64_t counted, uint64_t at)
{
    co_mutex_lock(&q->reftable.lock);
    int ret = co_make_block_locked(q, counted, at);
    co_mutex_unlock(&q->reftable.lock);
    return ret;
}

/*
 * Claims inside one slice: entries [place.in_slice, + count). *skipped entries were taken, *claimed
 * were free and follow them.
 */
static int claim_in_slice(struct qcow2 *q, struct slice *slice, uint64_t cluster,
                          struct place place, uint64_t count, uint64_t *skipped, uint64_t *claimed)
{
    uint32_t order = q->geo.refcount_order;
    uint64_t from = 0;
    while (from < count && (refcount_get(order, slice->bytes, place.in_slice + from) != 0 ||
                            metamap_contains(&q->metamap, cluster + from))) {
        if (refcount_get(order, slice->bytes, place.in_slice + from) == 0) {
            engine_corrupt(q, "refcount of cluster %#llx is 0, but it holds metadata",
                           (unsigned long long)(cluster + from) << q->geo.cluster_bits);
        }
        from++;
    }
    uint64_t end = from;
    while (end < count && refcount_get(order, slice->bytes, place.in_slice + end) == 0 &&
           !metamap_contains(&q->metamap, cluster + end)) {
        end++;
    }
    *skipped = from;
    *claimed = end - from;
    if (end == from) {
        return 0;
    }
    int ret = slice_modify(&q->cache, slice);
    if (ret < 0) {
        return ret;
    }
    for (uint64_t i = from; i < end; i++) {
        refcount_set(order, slice->bytes, place.in_slice + i, 1);
    }
    return 0;
}

int co_refcount_claim(struct qcow2 *q, uint64_t *first, uint64_t count, uint64_t *claimed)
{
    uint64_t start = *first;
    uint64_t end = *first + count;
    uint64_t at = start;
    int ret = 0;

    while (at < end) {
        struct place place = place_of(q, at);
        if (!place.exists) {
            if (at > start) {
                break; /* the block would stand in the middle of the run */
            }
            if (metamap_contains(&q->metamap, at)) {
                engine_corrupt(q, "metadata cluster %#llx has no refcount block",
                               (unsigned long long)at << q->geo.cluster_bits);
                start = ++at;
                continue;
            }
            ret = co_refcount_place_block(q, at, at);
            if (ret < 0 && ret != -EEXIST) {
                break;
            }
            /* If it stands at `at`, the claim below sees its count and moves past it. */
            continue;
        }
        struct slice *slice;
        ret = co_slice_get(&q->cache, SLICE_REFCOUNT, place.slice, &slice);
        if (ret < 0) {
            break;
        }
        uint64_t skipped, got;
        uint64_t in_slice = MIN_OF(end - at, place.remaining);
        ret = claim_in_slice(q, slice, at, place, in_slice, &skipped, &got);
        if (ret < 0) {
            break;
        }
        if (at == start) {
            start += skipped;
            at = start + got;
            if (got == 0) {
                continue;
            }
        } else if (skipped > 0) {
            /* Claimed beyond a gap: give that part back, the run ends at the gap. */
            for (uint64_t i = skipped; i < skipped + got; i++) {
                refcount_set(q->geo.refcount_order, slice->bytes, place.in_slice + i, 0);
            }
            break;
        } else {
            at += got;
        }
        if (skipped + got < in_slice) {
            break;
        }
    }
    *first = start;
    *claimed = at - start;
    if (*claimed > 0) {
        return 0; /* what was claimed before an error is good */
    }
    return ret < 0 ? ret : -ENOSPC;
}

int co_refcount_down(struct qcow2 *q, uint64_t first, uint64_t count)
{
    for (uint64_t at = first; at < first + count;) {
        struct place place = place_of(q, at);
        if (!place.exists) {
            engine_corrupt(q, "cluster %#llx was in use without a refcount block",
                           (unsigned long long)at << q->geo.cluster_bits);
            at++;
            continue;
        }
        struct slice *slice;
        int ret = co_slice_get(&q->cache, SLICE_REFCOUNT, place.slice, &slice);
        if (ret < 0) {
            return ret;
        }
        ret = slice_modify(&q->cache, slice);
        if (ret < 0) {
            return ret;
        }
        uint64_t run = MIN_OF(first + count - at, place.remaining);
        for (uint64_t i = 0; i < run; i++) {
            uint64_t value = refcount_get(q->geo.refcount_order, slice->bytes, place.in_slice + i);
            if (value == 0) {
                engine_corrupt(q, "refcount of cluster %#llx is 0, but it was in use",
                               (unsigned long long)(at + i) << q->geo.cluster_bits);
                continue;
            }
            refcount_set(q->geo.refcount_order, slice->bytes, place.in_slice + i, value - 1);
        }
        at += run;
    }
    return 0;
}

int co_refcount_run(struct qcow2 *q, uint64_t cluster, uint64_t count, uint64_t *refcount,
                    uint64_t *run)
{
    struct place place = place_of(q, cluster);
    uint64_t most = MIN_OF(count, place.remaining);

    if (!place.exists) {
        *refcount = 0;
        *run = most;
        return 0;
    }
    struct slice *slice;
    int ret = co_slice_get(&q->cache, SLICE_REFCOUNT, place.slice, &slice);
    if (ret < 0) {
        return ret;
    }
    *refcount = refcount_get(q->geo.refcount_order, slice->bytes, place.in_slice);
    uint64_t same = 1;
    while (same < most &&
           refcount_get(q->geo.refcount_order, slice->bytes, place.in_slice + same) == *refcount) {
        same++;
    }
    *run = same;
    return 0;
}

int co_refcount_scan(struct qcow2 *q, uint64_t cluster,
                     void (*found)(struct qcow2 *q, uint64_t first, uint64_t count), uint64_t *next)
{
    struct place place = place_of(q, cluster);

    if (!place.exists) {
        *next = (place.block + 1) * q->geo.refblock_entries;
        if (q->disk->is_block_device) {
            found(q, cluster, *next - cluster);
        }
        return 0;
    }
    *next = cluster + place.remaining;
    struct slice *slice;
    int ret = co_slice_get(&q->cache, SLICE_REFCOUNT, place.slice, &slice);
    if (ret < 0) {
        return ret;
    }
    for (uint32_t i = place.in_slice; i < q->geo.slice_refcounts;) {
        uint32_t end = i;
        while (end < q->geo.slice_refcounts &&
               refcount_get(q->geo.refcount_order, slice->bytes, end) == 0) {
            end++;
        }
        if (end > i) {
            found(q, cluster + (i - place.in_slice), end - i);
        }
        i = end + 1;
    }
    return 0;
}
