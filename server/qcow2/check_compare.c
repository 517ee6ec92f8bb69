/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Holds the references found against the refcounts on disk, block by block: to report the
 * differences, or to write what is right.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check_state.h"

/* One refcount block under comparison. */
struct block {
    size_t index; /* in the refcount table */
    uint64_t offset;
    uint64_t first_cluster; /* the first one that it counts */
    uint8_t *bytes;
    bool is_hole;
    /* What was changed, in entries; changed_end 0: nothing. */
    uint64_t changed_start;
    uint64_t changed_end;
};

/* The clusters that a block's counts matter for: [first_cluster, block_end()). */
static uint64_t block_end(const struct check_state *state, const struct block *block,
                          enum compare_mode mode)
{
    uint64_t end = block->first_cluster + state->geo->refblock_entries;
    /* Counts past the end occupy nothing and are no finding, but go when leaks go. */
    return mode == COMPARE_LOWER ? end : MIN_OF(end, state->end_cluster);
}

static int co_read_block(struct check_state *state, size_t index, struct block *block)
{
    block->index = index;
    block->offset = state->reftable[index];
    block->first_cluster = index * state->geo->refblock_entries;
    block->changed_end = 0;
    int rc = co_check_read(state, block->offset, block->bytes, state->geo->cluster_bytes,
                           &block->is_hole);
    return rc < 0 ? check_failed(state, rc, "reading a refcount block") : 0;
}

/*
 * Moves *cluster to the next one of the block that can differ: counted or referenced. False at end.
 */
static bool next_cluster(struct check_state *state, const struct block *block, uint64_t *cluster,
                         uint64_t end)
{
    if (*cluster < end && block->is_hole && !refmap_next(&state->refs, cluster)) {
        return false;
    }
    return *cluster < end;
}

int co_check_load_counts(struct check_state *state)
{
    struct block block = {.bytes = malloc(state->geo->cluster_bytes)};
    uint32_t order = state->geo->refcount_order;
    int rc = block.bytes ? 0 : check_failed(state, -ENOMEM, "");

    for (size_t i = 0; i < state->reftable_entries && rc == 0; i++) {
        /* A reference may touch one cluster past the last. */
        if (i * state->geo->refblock_entries > state->end_cluster) {
            break;
        }
        if (state->block_states[i] != BLOCK_GOOD) {
            continue;
        }
        rc = co_read_block(state, i, &block);
        if (rc < 0 || block.is_hole) {
            continue;
        }
        for (uint64_t k = 0; k < state->geo->refblock_entries && rc == 0; k++) {
            uint64_t count = refcount_get(order, block.bytes, k);
            if (count > 0 && block.first_cluster + k <= state->end_cluster) {
                rc = refmap_add(&state->disk_counts, block.first_cluster + k,
                                count == 1 ? DISK_COUNT_ONE : DISK_COUNT_MORE);
            }
        }
        if (rc < 0) {
            check_failed(state, rc, "");
        }
        check_progress(state, 0, 100, i, state->reftable_entries);
    }
    free(block.bytes);
    return rc;
}

/* One difference, in whatever way the mode asks for. */
static int settle(struct check_state *state, struct block *block, enum compare_mode mode,
                  uint64_t cluster, uint64_t counted, uint64_t referenced)
{
    switch (mode) {
    case COMPARE_REPORT:
        if (counted < referenced) {
            check_corruption(
                state, "cluster %" PRIu64 " has refcount %" PRIu64 " and %" PRIu64 " references",
                cluster, counted, referenced);
        } else {
            check_leak(state,
                       "cluster %" PRIu64 " has refcount %" PRIu64 " and %" PRIu64 " references",
                       cluster, counted, referenced);
        }
        return 0;
    case COMPARE_ADOPT:
        return counted > referenced ? refmap_add(&state->refs, cluster, counted - referenced) : 0;
    case COMPARE_RAISE:
    case COMPARE_LOWER:
        break;
    }
    uint64_t wanted = MIN_OF(referenced, state->geo->refcount_max);
    if (wanted == counted || (wanted > counted) != (mode == COMPARE_RAISE)) {
        return 0;
    }
    if (block->is_hole) {
        memset(block->bytes, 0, state->geo->cluster_bytes);
        block->is_hole = false;
    }
    uint64_t entry = cluster - block->first_cluster;
    refcount_set(state->geo->refcount_order, block->bytes, entry, wanted);
    if (block->changed_end == 0) {
        block->changed_start = entry;
    }
    block->changed_end = entry + 1;
    return 0;
}

/* Writes the sectors with changed counts. */
static int co_write_block(struct check_state *state, const struct block *block)
{
    uint32_t order = state->geo->refcount_order;
    uint64_t start = round_down_to((block->changed_start << order) / 8, 512);
    uint64_t end = round_up_to(div_round_up(block->changed_end << order, 8), 512);

    state->extent_end = 0; /* what was a hole is one no more */
    int rc = co_disk_write(state->disk, block->offset + start, block->bytes + start, end - start);
    return rc < 0 ? check_failed(state, rc, "writing a refcount block") : 0;
}

static int co_compare_block(struct check_state *state, struct block *block, enum compare_mode mode,
                            uint64_t *used_end)
{
    uint64_t end = block_end(state, block, mode);
    uint64_t cluster = block->first_cluster;
    uint32_t order = state->geo->refcount_order;

    for (; next_cluster(state, block, &cluster, end); cluster++) {
        uint64_t entry = cluster - block->first_cluster;
        uint64_t counted = block->is_hole ? 0 : refcount_get(order, block->bytes, entry);
        uint64_t referenced = refmap_get(&state->refs, cluster);
        if (counted > 0 || referenced > 0) {
            *used_end = cluster + 1;
        }
        if (counted == referenced) {
            continue;
        }
        int rc = settle(state, block, mode, cluster, counted, referenced);
        if (rc < 0) {
            return check_failed(state, rc, "");
        }
    }
    return block->changed_end > 0 ? co_write_block(state, block) : 0;
}

/* References to clusters that no sane refcount block counts. */
static void report_uncounted(struct check_state *state, uint64_t *used_end)
{
    uint64_t entries = state->geo->refblock_entries;
    uint64_t cluster = 0;

    while (refmap_next(&state->refs, &cluster)) {
        uint64_t index = cluster / entries;
        if (index < state->reftable_entries && state->block_states[index] == BLOCK_GOOD) {
            cluster = (index + 1) * entries;
            continue;
        }
        state->structure_damaged = true;
        check_corruption(state,
                         "cluster %" PRIu64 " has %" PRIu64 " references and no refcount block",
                         cluster, refmap_get(&state->refs, cluster));
        cluster++;
        *used_end = MAX_OF(*used_end, cluster);
    }
}

/* O1: a block that something else refers to as well is never written. */
static bool may_use_block(struct check_state *state, size_t index, enum compare_mode mode)
{
    if (state->block_states[index] != BLOCK_GOOD) {
        return false;
    }
    bool writes = mode == COMPARE_RAISE || mode == COMPARE_LOWER;
    uint64_t cluster = state->reftable[index] >> state->geo->cluster_bits;
    return !writes || refmap_get(&state->refs, cluster) == 1;
}

int co_check_compare(struct check_state *state, enum compare_mode mode)
{
    struct block block = {.bytes = malloc(state->geo->cluster_bytes)};
    uint64_t used_end = 0;
    int rc = block.bytes ? 0 : check_failed(state, -ENOMEM, "");

    for (size_t i = 0; i < state->reftable_entries && rc == 0; i++) {
        if (mode != COMPARE_LOWER && i * state->geo->refblock_entries >= state->end_cluster) {
            break;
        }
        if (!may_use_block(state, i, mode)) {
            continue;
        }
        rc = co_read_block(state, i, &block);
        if (rc == 0) {
            rc = co_compare_block(state, &block, mode, &used_end);
        }
        check_progress(state, 900, 1000, i, state->reftable_entries);
    }
    free(block.bytes);
    if (rc == 0 && mode == COMPARE_REPORT) {
        report_uncounted(state, &used_end);
        state->result->image_end_bytes = used_end << state->geo->cluster_bits;
    }
    return rc;
}

static void report_overlap(struct check_state *state, uint64_t cluster, const char *what)
{
    check_corruption(state, "cluster %" PRIu64 " holds %s, and has %" PRIu64 " references", cluster,
                     what, refmap_get(&state->refs, cluster));
}

void check_report_overlaps(struct check_state *state)
{
    for (uint64_t cluster = 0; refmap_next(&state->exclusive, &cluster); cluster++) {
        if (refmap_get(&state->refs, cluster) > 1) {
            report_overlap(state, cluster, "metadata");
        }
    }
    for (uint64_t cluster = 0; refmap_next(&state->tables, &cluster); cluster++) {
        if (refmap_get(&state->refs, cluster) > refmap_get(&state->tables, cluster) &&
            refmap_get(&state->exclusive, cluster) == 0) {
            report_overlap(state, cluster, "an L2 table");
        }
    }
    /* A new refcount structure elsewhere ends its part in overlaps. */
    for (size_t i = 0; i < state->reftable_entries; i++) {
        uint64_t cluster = state->reftable[i] >> state->geo->cluster_bits;
        if (state->block_states[i] == BLOCK_GOOD && refmap_get(&state->refs, cluster) > 1) {
            state->structure_damaged = true;
        }
    }
    uint64_t table = state->header->reftable_offset.bytes >> state->geo->cluster_bits;
    for (uint64_t i = 0; i < state->header->reftable_clusters; i++) {
        if (refmap_get(&state->refs, table + i) > 1) {
            state->structure_damaged = true;
        }
    }
}
