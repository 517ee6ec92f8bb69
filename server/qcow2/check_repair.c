/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Writes what a check found wrong. O1 holds at every moment: counts are raised and durable before
 * anything may rely on them, flags and entries follow, counts are lowered last.
 *
 * While entries are left that lead nowhere sane, nothing is counted down: what looks leaked may be
 * the data that they once led to, and a later recovery needs it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "qcow2/check_state.h"

#define CHUNK_BYTES  (1024U * 1024U)
#define SECTOR_BYTES 512U

static int co_flush(struct check_state *state)
{
    int rc = co_disk_flush(state->disk);
    return rc < 0 ? check_failed(state, rc, "flushing a repair") : 0;
}

/*
 * Rebuild: a new refcount table and new blocks where nothing is, then the switch in the header.
 */

struct rebuild_plan {
    uint64_t start; /* first cluster of the new structure: blocks, then table */
    uint64_t blocks;
    uint64_t table_clusters;
    uint64_t last_range; /* the highest refcount table index in use */
};

static uint64_t plan_end(const struct rebuild_plan *plan)
{
    return plan->start + plan->blocks + plan->table_clusters;
}

/* Ranges (of one refcount block each) with references, below `range_end`. */
static uint64_t count_ranges(struct check_state *state, uint64_t range_end)
{
    uint64_t entries = state->geo->refblock_entries;
    uint64_t ranges = 0;

    for (uint64_t cluster = 0; refmap_next(&state->refs, &cluster);) {
        uint64_t range = cluster / entries;
        if (range >= range_end) {
            break;
        }
        ranges++;
        cluster = (range + 1) * entries;
    }
    return ranges;
}

/*
 * The structure counts itself, so its size is a fixed point. False: the table would be too large.
 */
static bool plan_rebuild(struct check_state *state, uint64_t start, struct rebuild_plan *plan)
{
    uint64_t entries = state->geo->refblock_entries;
    uint64_t first_own_range = start / entries;
    uint64_t foreign_ranges = count_ranges(state, first_own_range);

    *plan = (struct rebuild_plan){.start = start, .blocks = 1, .table_clusters = 1};
    for (;;) {
        struct rebuild_plan next = {.start = start};
        next.last_range = (plan_end(plan) - 1) / entries;
        next.blocks = foreign_ranges + (next.last_range - first_own_range + 1);
        if (next.last_range >= LIMIT_REFCOUNT_TABLE_BYTES / sizeof(be64_t)) {
            return false;
        }
        next.table_clusters =
            div_round_up((next.last_range + 1) * sizeof(be64_t), state->geo->cluster_bytes);
        if (next.blocks == plan->blocks && next.table_clusters == plan->table_clusters) {
            plan->last_range = next.last_range;
            return true;
        }
        *plan = next;
    }
}

/* The old structure's own clusters are free in the new one's eyes. */
static void forget_old_structure(struct check_state *state)
{
    uint64_t table = state->header->reftable_offset.bytes >> state->geo->cluster_bits;

    for (size_t i = 0; i < state->reftable_entries; i++) {
        if (state->block_states[i] == BLOCK_GOOD) {
            uint64_t cluster = state->reftable[i] >> state->geo->cluster_bits;
            refmap_subtract(&state->refs, cluster, 1);
            refmap_subtract(&state->exclusive, cluster, 1);
        }
    }
    for (uint64_t i = 0; i < state->header->reftable_clusters; i++) {
        refmap_subtract(&state->refs, table + i, 1);
        refmap_subtract(&state->exclusive, table + i, 1);
    }
}

static void fill_block(struct check_state *state, const struct rebuild_plan *plan, uint64_t range,
                       uint8_t *block)
{
    uint32_t order = state->geo->refcount_order;
    uint64_t first = range * state->geo->refblock_entries;
    uint64_t end = first + state->geo->refblock_entries;

    memset(block, 0, state->geo->cluster_bytes);
    for (uint64_t cluster = first; refmap_next(&state->refs, &cluster) && cluster < end;
         cluster++) {
        uint64_t count = refmap_get(&state->refs, cluster);
        refcount_set(order, block, cluster - first, MIN_OF(count, state->geo->refcount_max));
    }
    uint64_t own_end = MIN_OF(end, plan_end(plan));
    for (uint64_t cluster = MAX_OF(first, plan->start); cluster < own_end; cluster++) {
        refcount_set(order, block, cluster - first, 1);
    }
}

/* Writes blocks and table; nothing refers to them yet. */
static int co_write_structure(struct check_state *state, const struct rebuild_plan *plan,
                              uint8_t *block, uint8_t *table)
{
    uint64_t entries = state->geo->refblock_entries;
    uint64_t place = plan->start;

    for (uint64_t range = 0; range <= plan->last_range; range++) {
        uint64_t cluster = range * entries;
        bool has_refs = refmap_next(&state->refs, &cluster) && cluster / entries == range;
        bool has_own = range >= plan->start / entries;
        if (!has_refs && !has_own) {
            continue;
        }
        fill_block(state, plan, range, block);
        host_off at = host_cluster_start(state->geo, place++);
        int rc = co_disk_write(state->disk, at.bytes, block, state->geo->cluster_bytes);
        if (rc < 0) {
            return rc;
        }
        put_be64(table + range * sizeof(be64_t), at.bytes);
    }
    assert(place <= plan->start + plan->blocks);
    host_off at = host_cluster_start(state->geo, plan->start + plan->blocks);
    return co_disk_write(state->disk, at.bytes, table,
                         plan->table_clusters * state->geo->cluster_bytes);
}

static int co_switch_structure(struct check_state *state, const struct rebuild_plan *plan)
{
    host_off table = host_cluster_start(state->geo, plan->start + plan->blocks);

    int rc = co_flush(state);
    if (rc < 0) {
        return rc;
    }
    rc = co_header_set_reftable(state->disk, state->header, table, (uint32_t)plan->table_clusters);
    if (rc < 0) {
        return check_failed(state, rc, "writing the header");
    }
    return co_flush(state);
}

/*
 * Whether the file would grow over clusters that entries name although they are past its end: those
 * would come to life there, and read as something that nobody wrote instead of failing.
 */
static bool would_revive_entries(struct check_state *state, const struct rebuild_plan *plan)
{
    uint64_t named = 0;

    if (plan_end(plan) <= state->end_cluster) {
        return false;
    }
    return (refmap_next(&state->dangling, &named) && named < plan_end(plan)) ||
           plan_end(plan) - state->end_cluster > DANGLING_WINDOW_CLUSTERS;
}

/* *rebuilt: false when it would do harm; then nothing was written. */
static int co_rebuild(struct check_state *state, bool *rebuilt)
{
    struct rebuild_plan plan;
    /* Past everything referenced, the old structure included; past the file too where that can
     * grow. */
    uint64_t past_references = refmap_end(&state->refs);
    uint64_t start = state->disk->is_block_device ? past_references : state->end_cluster;

    forget_old_structure(state);
    if (!plan_rebuild(state, start, &plan) && !plan_rebuild(state, past_references, &plan)) {
        return check_failed(state, -EFBIG, "the refcount table would be larger than 8 MiB");
    }
    if (would_revive_entries(state, &plan)) {
        check_note(state, "the refcounts need a rebuild, which must not make the file grow over "
                          "clusters that damaged entries lead to: nothing was rebuilt");
        *rebuilt = false;
        return 0;
    }
    *rebuilt = true;
    uint8_t *block = malloc(state->geo->cluster_bytes);
    uint8_t *table = calloc(plan.table_clusters, state->geo->cluster_bytes);
    int rc = block && table ? co_write_structure(state, &plan, block, table) : -ENOMEM;
    free(block);
    free(table);
    state->extent_end = 0;
    if (rc < 0) {
        return check_failed(state, rc, "writing new refcount blocks");
    }
    return co_switch_structure(state, &plan);
}

/*
 * Flags and entries.
 */

/* What was changed in a table held in memory, in bytes; end 0: nothing. */
struct changes {
    size_t start;
    size_t end;
};

static void put_entry(uint8_t *table, size_t at, uint64_t value, struct changes *changes)
{
    if (get_be64(table + at) == value) {
        return;
    }
    put_be64(table + at, value);
    if (changes->end == 0) {
        changes->start = at;
    }
    changes->end = at + sizeof(be64_t);
}

/* Writes the changed part of a table, whole sectors where the table has them. */
static int co_write_changes(struct check_state *state, uint64_t table_offset, const uint8_t *table,
                            size_t len, const struct changes *changes)
{
    size_t start = (size_t)round_down_to(changes->start, SECTOR_BYTES);
    size_t end = (size_t)MIN_OF(round_up_to(changes->end, SECTOR_BYTES), (uint64_t)len);

    state->extent_end = 0;
    int rc = co_disk_write(state->disk, table_offset + start, table + start, end - start);
    return rc < 0 ? check_failed(state, rc, "writing a table") : 0;
}

/* The counts are right by now, so flags follow the references. */
static uint64_t with_right_copied(struct check_state *state, uint64_t entry, uint64_t offset)
{
    bool is_one = refmap_get(&state->refs, offset >> state->geo->cluster_bits) == 1;
    return is_one ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED;
}

static bool is_l1_part_safe(struct check_state *state, uint64_t start, uint64_t len)
{
    uint64_t last = (start + len - 1) >> state->geo->cluster_bits;
    for (uint64_t cluster = start >> state->geo->cluster_bits; cluster <= last; cluster++) {
        if (refmap_get(&state->refs, cluster) != 1) {
            return false;
        }
    }
    return true;
}

static int co_mend_l1_part(struct check_state *state, uint64_t start, uint8_t *part, size_t len)
{
    struct changes changes = {0, 0};
    bool is_hole = false;

    int rc = co_check_read(state, start, part, len, &is_hole);
    if (rc < 0) {
        return check_failed(state, rc, "reading the L1 table");
    }
    if (is_hole || !is_l1_part_safe(state, start, len)) {
        return 0;
    }
    for (size_t at = 0; at < len; at += sizeof(be64_t)) {
        uint64_t entry = get_be64(part + at);
        uint64_t table = entry & QCOW2_L1_OFFSET;
        /* Insane entries are in no map, and stay as they are. */
        if (table && host_is_aligned(state->geo, (host_off){table}) &&
            refmap_get(&state->active_tables, table >> state->geo->cluster_bits) > 0) {
            put_entry(part, at, with_right_copied(state, entry, table), &changes);
        }
    }
    return changes.end ? co_write_changes(state, start, part, len, &changes) : 0;
}

static int co_mend_l1(struct check_state *state)
{
    uint64_t start = state->header->l1_offset.bytes;
    uint64_t end = start + (uint64_t)state->header->l1_entries * sizeof(be64_t);
    int rc = 0;

    uint8_t *part = malloc(CHUNK_BYTES);
    if (!part) {
        return check_failed(state, -ENOMEM, "");
    }
    for (uint64_t at = start; at < end && rc == 0;) {
        size_t len = (size_t)MIN_OF(end - at, (uint64_t)CHUNK_BYTES);
        rc = co_mend_l1_part(state, at, part, len);
        at += len;
    }
    free(part);
    return rc;
}

static void mend_l2_entry(struct check_state *state, uint8_t *table, size_t at, guest_off guest,
                          bool is_active, struct changes *changes)
{
    bool extended = state->geo->extended_l2;
    uint64_t descriptor = get_be64(table + at);
    uint64_t bitmap = extended ? get_be64(table + at + 8) : 0;
    struct l2_view view = check_l2_view(state, guest, descriptor, bitmap);

    if (view.has_reserved_bits) {
        return;
    }
    if (view.has_data_place) {
        if (!view.is_misplaced) {
            put_entry(table, at, descriptor | QCOW2_COPIED, changes);
        } else if (view.reads_zero_only && !view.has_bad_bitmap) {
            put_entry(table, at, descriptor & ~(QCOW2_L2_OFFSET | QCOW2_COPIED), changes);
        }
        return;
    }
    if (view.is_compressed) {
        put_entry(table, at, descriptor & ~QCOW2_COPIED, changes);
        if (extended) {
            put_entry(table, at + 8, 0, changes); /* reserved, and means nothing */
        }
        return;
    }
    if (view.is_bad_place) {
        if (view.reads_zero_only && !view.has_bad_bitmap) {
            put_entry(table, at, descriptor & ~(QCOW2_L2_OFFSET | QCOW2_COPIED), changes);
        }
        return;
    }
    if (view.len_bytes && is_active) {
        put_entry(table, at, with_right_copied(state, descriptor, view.start), changes);
    }
}

/* A cluster that is anything else besides an L2 table is left alone: mending one would damage
 * another. */
static bool is_l2_table_safe(struct check_state *state, uint64_t cluster)
{
    return refmap_get(&state->refs, cluster) == refmap_get(&state->tables, cluster) &&
           refmap_get(&state->exclusive, cluster) == 0;
}

static int co_mend_l2_table(struct check_state *state, uint64_t cluster, uint8_t *table)
{
    struct changes changes = {0, 0};
    size_t len = state->geo->cluster_bytes;
    uint64_t start = cluster << state->geo->cluster_bits;
    bool is_active = refmap_get(&state->active_tables, cluster) > 0;
    guest_off guest = check_l2_guest(state, cluster);
    bool is_hole = false;

    if (!is_l2_table_safe(state, cluster)) {
        return 0;
    }
    int rc = co_check_read(state, start, table, len, &is_hole);
    if (rc < 0) {
        return check_failed(state, rc, "reading an L2 table");
    }
    if (is_hole) {
        return 0;
    }
    for (size_t at = 0; at < len; at += state->geo->l2_entry_bytes) {
        mend_l2_entry(state, table, at,
                      check_entry_guest(state, guest, at / state->geo->l2_entry_bytes), is_active,
                      &changes);
    }
    return changes.end ? co_write_changes(state, start, table, len, &changes) : 0;
}

static int co_mend_entries(struct check_state *state)
{
    int rc = co_mend_l1(state);
    if (rc < 0) {
        return rc;
    }
    uint8_t *table = malloc(state->geo->cluster_bytes);
    if (!table) {
        return check_failed(state, -ENOMEM, "");
    }
    for (uint64_t cluster = 0; rc == 0 && refmap_next(&state->tables, &cluster); cluster++) {
        rc = co_mend_l2_table(state, cluster, table);
    }
    free(table);
    return rc < 0 ? rc : co_flush(state);
}

/*
 * The order of things.
 */

/* Who writes must first clear the autoclear bits that he does not know. Bitmaps stay true: guest
 * data does not change. */
static int co_clear_unknown_autoclear(struct check_state *state)
{
    struct header *header = state->header;
    uint64_t known =
        QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_RAW_DATA_FILE | QCOW2_AUTOCLEAR_INTENT;

    if (!(header->autoclear & ~known)) {
        return 0;
    }
    int rc = co_header_set_features(state->disk, header, header->incompatible,
                                    header->autoclear & known);
    return rc < 0 ? check_failed(state, rc, "writing the header") : co_flush(state);
}

static int co_lower(struct check_state *state)
{
    int rc = co_check_compare(state, COMPARE_LOWER);
    return rc < 0 ? rc : co_flush(state);
}

static int co_repair_leaks(struct check_state *state)
{
    if (state->damaged_entries > 0) {
        return 0;
    }
    /* A count that falls to one asks for COPIED; only where everything else is in order. */
    int rc = state->result->corruptions == 0 ? co_mend_entries(state) : 0;
    return rc < 0 ? rc : co_lower(state);
}

static int co_repair_all(struct check_state *state)
{
    bool keep_leaks = state->damaged_entries > 0;
    bool rebuilt = false;
    int rc = keep_leaks ? co_check_compare(state, COMPARE_ADOPT) : 0;

    if (rc == 0 && state->structure_damaged) {
        rc = co_rebuild(state, &rebuilt);
        if (rc < 0 || !rebuilt) {
            return rc;
        }
    } else if (rc == 0) {
        rc = co_check_compare(state, COMPARE_RAISE);
        if (rc == 0) {
            rc = co_flush(state);
        }
    }
    if (rc == 0) {
        rc = co_mend_entries(state);
    }
    if (rc == 0 && !rebuilt && !keep_leaks) {
        rc = co_lower(state);
    }
    return rc;
}

int co_check_repair(struct check_state *state)
{
    state->quiet = true;
    int rc = co_clear_unknown_autoclear(state);
    if (rc < 0) {
        return rc;
    }
    return state->options->repair == CHECK_REPAIR_ALL ? co_repair_all(state)
                                                      : co_repair_leaks(state);
}
