/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One commit at a time, run by the coroutine that asked first; the others wait for the next one.
 * Nothing here holds a cluster range, so a commit never waits for a request.
 */
#include "qcow2/commit.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "qcow2/alloc.h"
#include "qcow2/engine.h"
#include "qcow2/reftable.h"
#include "sched/break_point.h"
#include "sched/co.h"

/* What a commit writes besides slices: copies of table parts, in order of position. */
struct table_piece {
    uint64_t offset;
    size_t len;
    uint8_t *bytes;
};

struct snapshot_pieces {
    struct table_piece *l1;
    size_t l1_count;
    bool moves_l1;
    host_off new_l1;
    uint32_t new_l1_entries;
    struct table_piece reftable; /* len 0: nothing */
    bool moves_reftable;
    host_off new_reftable;
    uint32_t new_reftable_clusters;
    bool has_l2;
};

bool commit_mapping_dirty(const struct qcow2 *q)
{
    return q->cache.dirty_count[SLICE_L2] > 0 || q->l1.dirty;
}

static bool counts_dirty(const struct qcow2 *q)
{
    return q->cache.dirty_count[SLICE_REFCOUNT] > 0 ||
           q->reftable.dirty_first != q->reftable.dirty_end;
}

static int encode_entries(struct table_piece *piece, uint64_t table_offset, const uint64_t *entries,
                          uint64_t first, uint64_t end, size_t padded_len)
{
    piece->offset = table_offset + first * 8;
    piece->len = padded_len;
    piece->bytes = calloc(1, padded_len);
    if (!piece->bytes) {
        return -ENOMEM;
    }
    for (uint64_t i = first; i < end; i++) {
        put_be64(piece->bytes + (i - first) * 8, entries[i]);
    }
    return 0;
}

/* All of it, for its new place. */
static int snapshot_moving_l1(struct qcow2 *q, struct snapshot_pieces *pieces)
{
    const struct l1_table *l1 = &q->l1;

    pieces->l1 = calloc(1, sizeof(*pieces->l1));
    if (!pieces->l1) {
        return -ENOMEM;
    }
    pieces->moves_l1 = true;
    pieces->new_l1 = host_cluster_start(&q->geo, l1->new_first);
    pieces->new_l1_entries = l1->count;
    pieces->l1_count = 1;
    return encode_entries(&pieces->l1[0], pieces->new_l1.bytes, l1->entries, 0, l1->count,
                          (size_t)l1->new_clusters << q->geo.cluster_bits);
}

static int snapshot_l1(struct qcow2 *q, struct snapshot_pieces *pieces)
{
    struct l1_table *l1 = &q->l1;
    uint32_t sectors = (uint32_t)div_round_up(l1->count, L1_SECTOR_ENTRIES);
    size_t dirty = 0;

    if (!l1->dirty) {
        return 0;
    }
    if (l1->new_clusters != 0) {
        return snapshot_moving_l1(q, pieces);
    }
    for (uint32_t i = 0; i < sectors; i++) {
        dirty += l1->dirty_sectors[i];
    }
    pieces->l1 = calloc(dirty, sizeof(*pieces->l1));
    if (!pieces->l1) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < sectors; i++) {
        if (!l1->dirty_sectors[i]) {
            continue;
        }
        uint64_t first = (uint64_t)i * L1_SECTOR_ENTRIES;
        uint64_t end = MIN_OF(first + L1_SECTOR_ENTRIES, l1->count);
        int ret = encode_entries(&pieces->l1[pieces->l1_count], q->header.l1_offset.bytes,
                                 l1->entries, first, end, (end - first) * 8);
        if (ret < 0) {
            return ret;
        }
        pieces->l1_count++;
    }
    return 0;
}

static int snapshot_reftable(struct qcow2 *q, struct snapshot_pieces *pieces)
{
    const struct reftable *table = &q->reftable;

    if (pieces->moves_reftable) {
        assert(table->count * 8 <= (uint64_t)pieces->new_reftable_clusters << q->geo.cluster_bits);
        return encode_entries(&pieces->reftable, pieces->new_reftable.bytes, table->entries, 0,
                              table->count,
                              (size_t)pieces->new_reftable_clusters << q->geo.cluster_bits);
    }
    if (table->dirty_first == table->dirty_end) {
        return 0;
    }
    return encode_entries(&pieces->reftable, q->header.reftable_offset.bytes, table->entries,
                          table->dirty_first, table->dirty_end,
                          (table->dirty_end - table->dirty_first) * 8);
}

static void pieces_free(struct snapshot_pieces *pieces)
{
    for (size_t i = 0; i < pieces->l1_count; i++) {
        free(pieces->l1[i].bytes);
    }
    free(pieces->l1);
    free(pieces->reftable.bytes);
}

/*
 * A refcount table that has outgrown its place moves to the one that was kept for it. Only on a
 * block device that has filled up can there be none: that fails this commit alone, and the next one
 * tries again.
 */
static int co_place_reftable(struct qcow2 *q, struct snapshot_pieces *pieces)
{
    struct reftable *table = &q->reftable;

    if (table->count > reftable_disk_entries(q) && table->kept_clusters == 0) {
        int ret = co_reftable_keep_place(q, q->alloc.append_next);
        if (ret < 0) {
            return ret;
        }
    }
    /* Whoever is just making a place larger goes first. */
    co_mutex_lock(&table->place_lock);
    if (table->kept_clusters != 0) {
        table->moving = true;
        pieces->moves_reftable = true;
        pieces->new_reftable = host_cluster_start(&q->geo, table->kept_first);
        pieces->new_reftable_clusters = table->kept_clusters;
    }
    co_mutex_unlock(&table->place_lock);
    return 0;
}

/* One step, no wait: what is dirty now belongs to this commit (O1). */
static int take_snapshot(struct qcow2 *q, struct snapshot_pieces *pieces)
{
    int ret = snapshot_l1(q, pieces);
    if (ret < 0) {
        return ret;
    }
    ret = snapshot_reftable(q, pieces);
    if (ret < 0) {
        return ret;
    }
    if (q->l1.dirty) {
        memset(q->l1.dirty_sectors, 0, div_round_up(q->l1.count, L1_SECTOR_ENTRIES));
        q->l1.dirty = false;
    }
    q->reftable.dirty_first = 0;
    q->reftable.dirty_end = 0;
    pieces->has_l2 = slice_commit_begin(&q->cache, SLICE_L2) > 0;
    slice_commit_begin(&q->cache, SLICE_REFCOUNT);
    return 0;
}

static int co_timed_flush(struct qcow2 *q, struct disk *disk)
{
    uint64_t began_ns = world_now_ns(q->world);
    int ret = co_disk_flush(disk);
    q->counts.fsyncs++;
    q->counts.fsync_ns += world_now_ns(q->world) - began_ns;
    return ret;
}

static int co_fsync(struct qcow2 *q)
{
    int ret = co_timed_flush(q, q->disk);
    return ret < 0 ? engine_fail(q, -ret, "fsync") : 0;
}

/* The guest's bytes; with an external data file nothing else. */
static int co_fsync_data(struct qcow2 *q)
{
    int ret = co_timed_flush(q, q->data);
    return ret < 0 ? engine_fail(q, -ret, q->data_file ? "fsync of the data file" : "fsync") : 0;
}

/* The old table's clusters go when the header names the new one. */
static void retire_table(struct qcow2 *q, host_off old, uint64_t old_clusters)
{
    uint64_t first = host_cluster_index(&q->geo, old);
    for (uint64_t i = 0; i < old_clusters; i++) {
        metamap_remove(&q->metamap, first + i);
    }
    quarantine_add(q, first, old_clusters);
}

/* Refcount table entries become durable after the blocks they name, before any mapping. */
static int co_write_reftable(struct qcow2 *q, struct snapshot_pieces *pieces)
{
    if (pieces->reftable.len == 0) {
        return 0;
    }
    int ret = co_disk_write(q->disk, pieces->reftable.offset, pieces->reftable.bytes,
                            pieces->reftable.len);
    if (ret < 0) {
        return engine_fail(q, -ret, "writing the refcount table");
    }
    ret = co_fsync(q);
    if (ret < 0 || !pieces->moves_reftable) {
        return ret;
    }
    host_off old = q->header.reftable_offset;
    uint32_t old_clusters = q->header.reftable_clusters;
    co_mutex_lock(&q->header_lock);
    ret = co_header_set_reftable(q->disk, &q->header, pieces->new_reftable,
                                 pieces->new_reftable_clusters);
    co_mutex_unlock(&q->header_lock);
    if (ret < 0) {
        return engine_fail(q, -ret, "writing the header");
    }
    ret = co_fsync(q);
    if (ret == 0) {
        q->reftable.kept_clusters = 0;
        q->reftable.moving = false;
        retire_table(q, old, old_clusters);
    }
    return ret;
}

static int co_first_wave(struct qcow2 *q, struct snapshot_pieces *pieces)
{
    int ret = co_alloc_extend_file(q);
    if (ret < 0) {
        return engine_fail(q, -ret, "extending the file");
    }
    ret = co_slice_commit_write(&q->cache, SLICE_REFCOUNT);
    if (ret < 0) {
        return engine_fail(q, -ret, "writing refcount blocks");
    }
    /* O2: what the second wave points at, in whichever file it lies. */
    ret = q->data_file ? co_fsync_data(q) : 0;
    if (ret == 0) {
        ret = co_fsync(q);
    }
    return ret < 0 ? ret : co_write_reftable(q, pieces);
}

/* The longer table is durable: the header names it. O1: its clusters were counted before. */
static int co_switch_l1(struct qcow2 *q, const struct snapshot_pieces *pieces)
{
    host_off old = q->header.l1_offset;
    uint64_t old_clusters = div_round_up((uint64_t)q->header.l1_entries * 8, q->geo.cluster_bytes);

    co_mutex_lock(&q->header_lock);
    int ret = co_header_set_l1(q->disk, &q->header, pieces->new_l1, pieces->new_l1_entries);
    co_mutex_unlock(&q->header_lock);
    if (ret < 0) {
        return engine_fail(q, -ret, "writing the header");
    }
    ret = co_fsync(q);
    if (ret < 0) {
        return ret;
    }
    q->l1.new_clusters = 0;
    if (old_clusters > 0) {
        retire_table(q, old, old_clusters);
    }
    return 0;
}

static int co_second_wave(struct qcow2 *q, struct snapshot_pieces *pieces)
{
    if (!pieces->has_l2 && pieces->l1_count == 0) {
        return 0;
    }
    int ret = co_slice_commit_write(&q->cache, SLICE_L2);
    if (ret < 0) {
        return engine_fail(q, -ret, "writing L2 tables");
    }
    for (size_t i = 0; i < pieces->l1_count; i++) {
        ret = co_disk_write(q->disk, pieces->l1[i].offset, pieces->l1[i].bytes, pieces->l1[i].len);
        if (ret < 0) {
            return engine_fail(q, -ret, "writing the L1 table");
        }
    }
    ret = co_fsync(q);
    return ret == 0 && pieces->moves_l1 ? co_switch_l1(q, pieces) : ret;
}

/* A commit of everything that is dirty. */
static int co_commit_tables(struct qcow2 *q)
{
    struct snapshot_pieces pieces = {0};

    int ret = co_place_reftable(q, &pieces);
    if (ret == -ENOSPC) {
        return ret;
    }
    if (ret < 0) {
        return engine_fail(q, -ret, "placing a larger refcount table");
    }
    q->commit.started++;
    ret = take_snapshot(q, &pieces);
    if (ret < 0) {
        ret = engine_fail(q, -ret, "taking a snapshot for a commit");
    }
    if (ret == 0) {
        ret = co_first_wave(q, &pieces);
    }
    if (ret == 0) {
        co_break_point(BREAK_BETWEEN_WAVES);
        ret = co_second_wave(q, &pieces);
    }
    pieces_free(&pieces);
    return ret;
}

static int co_run_commit(struct qcow2 *q, bool counts_too)
{
    uint64_t began_ns = world_now_ns(q->world);
    q->commit.running = true;
    int ret;
    if (commit_mapping_dirty(q) || (counts_too && counts_dirty(q))) {
        ret = co_commit_tables(q);
    } else {
        q->commit.started++;
        ret = co_fsync_data(q);
    }
    if (ret == 0) {
        q->commit.finished = q->commit.started;
    }
    q->commit.running = false;
    q->counts.commit_ns += world_now_ns(q->world) - began_ns;
    wait_queue_wake_all(&q->commit.done);
    quarantine_kick(q);
    return ret;
}

static int co_commit_mode(struct qcow2 *q, bool counts_too)
{
    /* A commit that is under way may have taken its snapshot before our writes: the next one
     * counts. */
    uint64_t wanted = q->commit.started + 1;
    while (!q->failed && q->commit.finished < wanted) {
        if (q->commit.running) {
            co_wait(&q->commit.done);
        } else {
            int ret = co_run_commit(q, counts_too);
            if (ret == -ENOSPC) {
                return ret;
            }
        }
    }
    return q->failed ? -EIO : 0;
}

int co_commit(struct qcow2 *q)
{
    return co_commit_mode(q, false);
}

int co_commit_counts(struct qcow2 *q)
{
    int ret = co_commit_mode(q, true);
    /* Where no count was dirty, only the file with the guest's data has been flushed. */
    return ret < 0 || !q->data_file ? ret : co_fsync(q);
}

int co_commit_all(struct qcow2 *q)
{
    for (;;) {
        int ret = co_commit_mode(q, true);
        if (ret < 0) {
            return ret;
        }
        quarantine_kick(q);
        co_group_wait(&q->background);
        if (q->failed) {
            return -EIO;
        }
        if (!commit_mapping_dirty(q) && !counts_dirty(q)) {
            return 0;
        }
    }
}

int co_commit_make_room(struct qcow2 *q)
{
    while (!q->failed && q->cache.dirty_count[SLICE_L2] + q->cache.dirty_count[SLICE_REFCOUNT] >=
                             q->cache.capacity / 2) {
        int ret = co_commit_mode(q, true);
        if (ret < 0) {
            return ret;
        }
    }
    return q->failed ? -EIO : 0;
}

static void co_timed_commit(void *arg)
{
    struct qcow2 *q = arg;
    if (!q->failed && !q->closing) {
        /* A failure for good is logged and kept where it happens. */
        if (co_commit_mode(q, true) == -ENOSPC) {
            commit_arm_timer(q);
        }
    }
    group_leave(&q->background);
}

static void timer_fired(struct world_timer *timer)
{
    struct qcow2 *q = container_of(timer, struct qcow2, commit.timer);
    q->commit.timer_armed = false;
    group_enter(&q->background);
    if (coro_spawn(co_timed_commit, q, "qcow2 timed commit") < 0) {
        group_leave(&q->background);
    }
}

void commit_arm_timer(struct qcow2 *q)
{
    if (q->commit.timer_armed || q->closing || q->options.commit_interval_ms == 0) {
        return;
    }
    q->commit.timer_armed = true;
    q->commit.timer.fired = timer_fired;
    q->world->ops->timer_start(q->world, &q->commit.timer,
                               world_now_ns(q->world) + q->options.commit_interval_ms * 1000000ULL);
}
