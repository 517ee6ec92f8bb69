/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Opening and closing. A layer is opened in the order disk, header, tables, and everything is
 * judged before the first byte is written; then the chain below it, in a loop. What an image may
 * get wrong ends here with a message; what only a look at its L2 entries can show ends in map.c
 * with EIO.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/log.h"
#include "qcow2/chain.h"
#include "qcow2/check.h"
#include "qcow2/commit.h"
#include "qcow2/data_file.h"
#include "qcow2/discard.h"
#include "qcow2/encrypted_disk.h"
#include "qcow2/engine.h"
#include "qcow2/json_name.h"
#include "qcow2/read.h"
#include "qcow2/refcount.h"
#include "qcow2/statistics.h"
#include "qcow2/unlock.h"
#include "qcow2/write.h"
#include "sched/co.h"

#define COMMIT_INTERVAL_DEFAULT_MS 5000U
#define CACHE_SLICES_MIN_BYTES     (64U * KIB)
/* A damaged image must not fill the log. */
#define DAMAGE_LINES_MAX 50U
/* Slices that one request in progress may dirty, at most (L2, two refcount slices, a table's). */
#define SLICES_PER_CHANGER 8U

int engine_fail(struct qcow2 *q, int errno_value, const char *what)
{
    if (!q->failed) {
        q->failed = errno_value;
        log_error("%s: %s: %s: no more writes are accepted; what was not flushed may be lost",
                  q->path, what, strerror(errno_value));
        wait_queue_wake_all(&q->quarantine.left);
    }
    return -EIO;
}

__attribute__((format(printf, 2, 0))) static void log_damage(struct qcow2 *q, const char *format,
                                                             va_list args)
{
    char text[400];

    if (q->corrupt_logged >= DAMAGE_LINES_MAX) {
        return;
    }
    vsnprintf(text, sizeof(text), format, args);
    log_error("%s: %s", q->path, text);
    if (++q->corrupt_logged == DAMAGE_LINES_MAX) {
        log_error("%s: further damage is not logged", q->path);
    }
}

void engine_log_damage(struct qcow2 *q, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    log_damage(q, format, args);
    va_end(args);
}

static void co_mark_corrupt(void *arg)
{
    struct qcow2 *q = arg;

    co_mutex_lock(&q->header_lock);
    int ret = co_header_set_features(
        q->disk, &q->header, q->header.incompatible | QCOW2_INCOMPAT_CORRUPT, q->header.autoclear);
    co_mutex_unlock(&q->header_lock);
    if (ret == 0) {
        ret = co_disk_flush(q->disk);
    }
    if (ret < 0) {
        engine_fail(q, -ret, "marking the image corrupt");
    }
    group_leave(&q->background);
}

int engine_corrupt(struct qcow2 *q, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    log_damage(q, format, args);
    va_end(args);

    /* Version 2 has no bit to say it with. */
    if (q->image.read_only || q->corrupt_marked || q->header.version < 3) {
        return -EIO;
    }
    q->corrupt_marked = true;
    group_enter(&q->background);
    if (coro_spawn(co_mark_corrupt, q, "qcow2 mark corrupt") < 0) {
        group_leave(&q->background);
    }
    return -EIO;
}

static void on_oldest_moved(void *arg)
{
    quarantine_kick(arg);
}

static void layer_free(struct qcow2 *q)
{
    if (!q) {
        return;
    }
    slice_cache_free(&q->cache);
    bitmap_record_free(q);
    bitmaps_free(q);
    quarantine_free(&q->quarantine);
    metamap_free(&q->metamap);
    metamap_free(&q->snapshot_tables);
    free(q->l1.entries);
    free(q->l1.dirty_sectors);
    free(q->reftable.entries);
    for (unsigned i = 0; i < INFLATED_MAX; i++) {
        free(q->inflated[i].bytes);
    }
    request_table_free(q->table);
    header_free(&q->header);
    json_name_free(q->below);
    cipher_free(q->cipher);
    disk_close(q->encrypted);
    disk_close(q->data_file);
    disk_close(q->disk);
    free(q->path);
    free(q);
}

/* Frees a chain from its top; nothing in it may be running. */
static void chain_free(struct qcow2 *top)
{
    while (top) {
        struct qcow2 *below = top->backing;
        if (top->backing_raw) {
            /* Read-only: closing it has nothing to lose. */
            top->backing_raw->ops->co_close(top->backing_raw, NULL);
        }
        layer_free(top);
        top = below;
    }
}

static int co_qcow2_flush(struct image *image)
{
    struct qcow2 *q = qcow2_of(image);
    return image->read_only ? 0 : co_commit(q); /* O4 */
}

static int co_qcow2_close(struct image *image, struct errtext *err)
{
    struct qcow2 *q = qcow2_of(image);
    int ret = 0;

    q->closing = true;
    q->world->ops->timer_stop(q->world, &q->commit.timer);
    if (!image->read_only) {
        ret = co_bitmap_record_end(q);
        int committed = co_commit_all(q); /* O9 */
        ret = ret < 0 ? ret : committed;
    }
    co_group_wait(&q->background);
    if (ret < 0) {
        err_set(err, EIO, "%s: not everything that was written could be made safe: %s", q->path,
                strerror(q->failed ? q->failed : -ret));
    }
    chain_free(q);
    return ret;
}

static const struct image_ops qcow2_ops = {
    .co_read = co_qcow2_read,
    .co_write = co_qcow2_write,
    .co_zero = co_qcow2_zero,
    .co_trim = co_qcow2_trim,
    .co_flush = co_qcow2_flush,
    .co_extents = co_qcow2_extents,
    .co_statistics = co_qcow2_statistics,
    .bitmap_list = qcow2_bitmap_list,
    .co_bitmap_extents = co_qcow2_bitmap_extents,
    .co_close = co_qcow2_close,
};

/* Without the files that guest data comes from (bitmaps_only). */
static const struct image_ops bitmaps_only_ops = {
    .bitmap_list = qcow2_bitmap_list,
    .co_bitmap_extents = co_qcow2_bitmap_extents,
    .co_close = co_qcow2_close,
};

/* Reads `count` big-endian entries. */
static int co_load_table(struct qcow2 *q, host_off offset, uint64_t count, uint64_t **entries,
                         const char *what, struct errtext *err)
{
    uint64_t *table = malloc(MAX_OF(count * 8, 8U));
    if (!table) {
        return err_set(err, ENOMEM, "%s: out of memory for the %s", q->path, what);
    }
    int ret = count > 0 ? co_disk_read(q->disk, offset.bytes, table, count * 8) : 0;
    if (ret < 0) {
        free(table);
        return err_set(err, -ret, "%s: reading the %s: %s", q->path, what, strerror(-ret));
    }
    for (uint64_t i = 0; i < count; i++) {
        table[i] = get_be64(&table[i]);
    }
    *entries = table;
    return 0;
}

/* One entry of L1 or refcount table: inside the file, aligned, nothing reserved set. */
static int check_table_entry(const struct qcow2 *q, const char *what, uint64_t index,
                             uint64_t entry, uint64_t offset_mask, uint64_t reserved_mask,
                             struct errtext *err)
{
    host_off offset = {entry & offset_mask};

    if (entry & reserved_mask) {
        return err_set(err, EINVAL,
                       "%s: %s entry %" PRIu64 " is %#" PRIx64 ": reserved bits must be zero",
                       q->path, what, index, entry);
    }
    if (!host_is_aligned(&q->geo, offset)) {
        return err_set(err, EINVAL,
                       "%s: %s entry %" PRIu64 " points to %#" PRIx64
                       ": it must be a multiple of the cluster size %" PRIu64,
                       q->path, what, index, offset.bytes, q->geo.cluster_bytes);
    }
    if (!range_inside(offset.bytes, q->geo.cluster_bytes, engine_host_end(q))) {
        return err_set(err, EINVAL,
                       "%s: %s entry %" PRIu64 " points to %#" PRIx64
                       ": it must lie inside the file of %" PRIu64 " bytes",
                       q->path, what, index, offset.bytes, q->disk->size_bytes);
    }
    return 0;
}

static int check_l1_entries(const struct qcow2 *q, const uint64_t *entries, uint64_t count,
                            const char *what, struct errtext *err)
{
    for (uint64_t i = 0; i < count; i++) {
        int ret =
            check_table_entry(q, what, i, entries[i], QCOW2_L1_OFFSET, QCOW2_L1_RESERVED, err);
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

/* Adds clusters of a structure to the map of metadata; overlap with another structure is damage. */
static int add_metadata(struct qcow2 *q, const char *what, uint64_t offset, uint64_t len_bytes,
                        struct errtext *err)
{
    uint64_t first = offset >> q->geo.cluster_bits;
    uint64_t end = div_round_up(offset + len_bytes, q->geo.cluster_bytes);
    for (uint64_t cluster = first; cluster < end; cluster++) {
        int ret = metamap_add(&q->metamap, cluster);
        if (ret < 0) {
            return err_set(err, ENOMEM, "%s: out of memory for the map of metadata", q->path);
        }
        if (!refcount_block_exists(q, cluster)) {
            return err_set(err, EINVAL,
                           "%s: %s at %#" PRIx64
                           " has no refcount block: run 'qcowd check' on the image",
                           q->path, what, cluster << q->geo.cluster_bits);
        }
        if (ret > 0) {
            return err_set(err, EINVAL,
                           "%s: %s at %#" PRIx64
                           " overlaps other metadata: run 'qcowd check' on the image",
                           q->path, what, cluster << q->geo.cluster_bits);
        }
    }
    return 0;
}

/* Snapshots share L2 tables with each other and with the active L1: meeting one again is right. */
static int co_add_snapshot_tables(struct qcow2 *q, const struct snapshot *snapshot,
                                  struct errtext *err)
{
    uint64_t *entries;
    int ret = co_load_table(q, snapshot->l1_offset, snapshot->l1_entries, &entries,
                            "L1 table of a snapshot", err);
    if (ret < 0) {
        return ret;
    }
    ret = check_l1_entries(q, entries, snapshot->l1_entries, "snapshot L1", err);
    for (uint64_t i = 0; ret == 0 && i < snapshot->l1_entries; i++) {
        uint64_t offset = entries[i] & QCOW2_L1_OFFSET;
        uint64_t cluster = offset >> q->geo.cluster_bits;
        if (offset != 0 && (metamap_add(&q->metamap, cluster) < 0 ||
                            metamap_add(&q->snapshot_tables, cluster) < 0)) {
            ret = err_set(err, ENOMEM, "%s: out of memory for the map of metadata", q->path);
        }
    }
    free(entries);
    return ret;
}

/* A sparse file can claim more L1 tables than anybody would read. */
static int check_snapshot_tables(const struct qcow2 *q, struct errtext *err)
{
    uint64_t total_bytes = 0;
    for (uint32_t i = 0; i < q->header.snapshot_count; i++) {
        total_bytes += (uint64_t)q->header.snapshots[i].l1_entries * 8;
    }
    if (total_bytes > LIMIT_SNAPSHOT_L1_BYTES) {
        return err_set(err, EINVAL,
                       "%s: L1 tables of snapshots take %" PRIu64
                       " bytes: allowed are %llu, open it with --read-only",
                       q->path, total_bytes, LIMIT_SNAPSHOT_L1_BYTES);
    }
    return 0;
}

/* Header, L1, refcount table, snapshot table and keys, then what those point at. */
static int co_build_metamap(struct qcow2 *q, struct errtext *err)
{
    const struct header *header = &q->header;
    struct {
        const char *what;
        uint64_t offset;
        uint64_t len;
    } fixed[] = {
        {"header", 0, q->geo.cluster_bytes},
        {"L1 table", header->l1_offset.bytes, (uint64_t)header->l1_entries * 8},
        {"refcount table", header->reftable_offset.bytes,
         (uint64_t)header->reftable_clusters << q->geo.cluster_bits},
        {"snapshot table", header->snapshots_offset.bytes, header->snapshots_len_bytes},
        {"encryption header", header->crypto_header_offset.bytes, header->crypto_header_len_bytes},
    };
    int ret = check_snapshot_tables(q, err);
    if (ret < 0) {
        return ret;
    }
    ret = metamap_init(&q->metamap);
    if (ret == 0) {
        ret = metamap_init(&q->snapshot_tables);
    }
    if (ret < 0) {
        return err_set(err, ENOMEM, "%s: out of memory for the map of metadata", q->path);
    }
    for (size_t i = 0; i < ARRAY_LEN(fixed) && ret == 0; i++) {
        if (fixed[i].len > 0) {
            ret = add_metadata(q, fixed[i].what, fixed[i].offset, fixed[i].len, err);
        }
    }
    for (uint32_t i = 0; i < header->snapshot_count && ret == 0; i++) {
        const struct snapshot *snapshot = &header->snapshots[i];
        if (snapshot->l1_entries > 0) {
            ret = add_metadata(q, "snapshot L1 table", snapshot->l1_offset.bytes,
                               (uint64_t)snapshot->l1_entries * 8, err);
        }
    }
    for (uint64_t i = 0; i < q->reftable.count && ret == 0; i++) {
        if (q->reftable.entries[i] != 0) {
            ret = add_metadata(q, "refcount block", q->reftable.entries[i], q->geo.cluster_bytes,
                               err);
        }
    }
    for (uint64_t i = 0; i < q->l1.count && ret == 0; i++) {
        uint64_t offset = q->l1.entries[i] & QCOW2_L1_OFFSET;
        if (offset != 0) {
            ret = add_metadata(q, "L2 table", offset, q->geo.cluster_bytes, err);
        }
    }
    for (uint32_t i = 0; i < header->snapshot_count && ret == 0; i++) {
        ret = co_add_snapshot_tables(q, &header->snapshots[i], err);
    }
    return ret;
}

static int co_load_l1(struct qcow2 *q, struct errtext *err)
{
    struct l1_table *l1 = &q->l1;
    l1->count = q->header.l1_entries;
    int ret = co_load_table(q, q->header.l1_offset, l1->count, &l1->entries, "L1 table", err);
    if (ret < 0) {
        return ret;
    }
    l1->dirty_sectors = calloc(1, (size_t)div_round_up(l1->count, 64) + 1);
    if (!l1->dirty_sectors) {
        return err_set(err, ENOMEM, "%s: out of memory for the L1 table", q->path);
    }
    return check_l1_entries(q, l1->entries, l1->count, "L1", err);
}

static int co_load_reftable(struct qcow2 *q, struct errtext *err)
{
    struct reftable *table = &q->reftable;
    table->count = ((uint64_t)q->header.reftable_clusters << q->geo.cluster_bits) / 8;
    table->capacity = table->count;
    int ret = co_load_table(q, q->header.reftable_offset, table->count, &table->entries,
                            "refcount table", err);
    for (uint64_t i = 0; ret == 0 && i < table->count; i++) {
        ret = check_table_entry(q, "refcount table", i, table->entries[i], QCOW2_REFTABLE_OFFSET,
                                QCOW2_REFTABLE_RESERVED, err);
    }
    return ret;
}

/*
 * Refcounts of an image that was not closed cleanly by a lazy writer are rebuilt before anything.
 */
static int co_repair_dirty(struct qcow2 *q, struct errtext *err)
{
    struct check_options options = {.repair = CHECK_REPAIR_ALL};
    struct check_result result;

    log_warning("%s: was not closed cleanly (dirty bit): rebuilding its refcounts", q->path);
    int ret = co_qcow2_check(q->disk, &q->header, &options, &result, err);
    if (ret < 0) {
        return ret;
    }
    if (result.corruptions > 0) {
        return err_set(err, EIO,
                       "%s: %" PRIu64
                       " errors remain after rebuilding refcounts: see 'qcowd check', or open it "
                       "with --read-only",
                       q->path, result.corruptions);
    }
    return 0;
}

/* Before anything is written: who has no key changes nothing. */
static int co_find_cipher(struct qcow2 *q, struct errtext *err)
{
    if (q->header.crypt_method == QCOW2_CRYPT_NONE || q->options.bitmaps_only) {
        return 0;
    }
    return co_unlock(q->disk, &q->header, q->options.key_count > 0 ? q->options.keys : NULL,
                     &q->cipher_spec, &q->cipher, err);
}

static const struct snapshot *find_snapshot(const struct header *header, const char *wanted)
{
    for (uint32_t i = 0; i < header->snapshot_count; i++) {
        if (strcmp(header->snapshots[i].name, wanted) == 0) {
            return &header->snapshots[i];
        }
    }
    for (uint32_t i = 0; i < header->snapshot_count; i++) {
        if (strcmp(header->snapshots[i].id, wanted) == 0) {
            return &header->snapshots[i];
        }
    }
    return NULL;
}

/*
 * Goes back to a snapshot: its L1 table and its size take the place of the disk's. Section
 * "Snapshots".
 */
static int use_snapshot(struct qcow2 *q, struct errtext *err)
{
    char shown[100];
    const char *wanted = q->options.snapshot;
    if (!wanted) {
        return 0;
    }
    assert(q->image.read_only);
    const struct snapshot *snapshot = find_snapshot(&q->header, wanted);
    err_sanitise(shown, sizeof(shown), wanted, strlen(wanted));
    if (!snapshot) {
        return err_set(err, ENOENT,
                       "%s: has no internal snapshot '%s': 'qcowd info' shows those it has",
                       q->path, shown);
    }
    struct geometry geo = q->header.geo;
    geo.size_bytes = snapshot->disk_size_bytes;
    if (geo.size_bytes == 0 || snapshot->l1_entries < l1_entries_needed(&geo)) {
        return err_set(err, EINVAL,
                       "%s: l1_size of the snapshot '%s' is %" PRIu32
                       ": allowed is at least %" PRIu64 ", for a disk of %" PRIu64 " bytes",
                       q->path, shown, snapshot->l1_entries, l1_entries_needed(&geo),
                       geo.size_bytes);
    }
    q->header.geo = geo;
    q->header.l1_offset = snapshot->l1_offset;
    q->header.l1_entries = snapshot->l1_entries;
    return 0;
}

static int co_read_header(struct qcow2 *q, bool writable, struct errtext *err)
{
    int ret = co_header_read(q->disk, &q->header, err);
    if (ret < 0) {
        return ret;
    }
    enum header_purpose purpose = writable ? HEADER_FOR_WRITING : HEADER_FOR_READING;
    if (q->options.bitmaps_only) {
        purpose = writable ? HEADER_FOR_BITMAPS : HEADER_FOR_CHECK;
    }
    ret = header_admit(&q->header, purpose, q->path, err);
    if (ret == 0) {
        ret = use_snapshot(q, err);
    }
    if (ret == 0) {
        ret = co_find_cipher(q, err);
    }
    if (ret == 0 && writable && (q->header.incompatible & QCOW2_INCOMPAT_DIRTY)) {
        ret = co_repair_dirty(q, err);
    }
    return ret;
}

static int layer_init(struct qcow2 *q, struct errtext *err)
{
    uint32_t capacity = slice_cache_capacity(q->geo.slice_bytes, q->options.cache_bytes);
    /* A file can grow to the end of its last cluster, a block device cannot. */
    uint64_t file_clusters = q->disk->is_block_device
                                 ? q->disk->size_bytes >> q->geo.cluster_bits
                                 : div_round_up(q->disk->size_bytes, q->geo.cluster_bytes);

    alloc_init(&q->alloc, file_clusters, !q->disk->is_block_device);
    quarantine_init(&q->quarantine);
    q->table = request_table_create(on_oldest_moved, q);
    if (!q->table || slice_cache_init(&q->cache, q->disk, q->geo.slice_bytes, capacity) < 0) {
        return err_set(err, ENOMEM, "%s: out of memory", q->path);
    }
    wait_queue_init(&q->commit.done);
    co_mutex_init(&q->reftable.lock);
    co_mutex_init(&q->reftable.place_lock);
    co_mutex_init(&q->l1.lock);
    co_mutex_init(&q->header_lock);
    co_mutex_init(&q->resize_lock);
    co_mutex_init(&q->bitmaps.lock);
    q->bitmaps.next_id = 1;
    bitmap_record_init(q);
    co_mutex_init(&q->room_line);
    group_init(&q->background);
    budget_init(&q->changers, MAX_OF(capacity / (4 * SLICES_PER_CHANGER), 2U));
    budget_init(&q->copy_bytes, LIMIT_PAYLOAD_BYTES);
    q->image.size_bytes = q->geo.size_bytes;
    q->image.can_zero_fast = q->geo.has_zero_flag && !q->image.read_only;
    q->image.unit_bytes = (uint32_t)q->geo.cluster_bytes;
    q->image.preferred_bytes = (uint32_t)MIN_OF(MAX_OF(q->geo.subcluster_bytes, 4096U), 65536U);
    return 0;
}

/* One image without its backing file. Writes nothing unless its refcounts are rebuilt. */
static int co_open_layer(struct world *world, const char *path,
                         const struct qcow2_open_options *options, struct qcow2 **out,
                         struct errtext *err)
{
    bool writable = !options->read_only;
    struct qcow2 *q = calloc(1, sizeof(*q));
    if (!q) {
        return err_set(err, ENOMEM, "%s: out of memory", path);
    }
    q->world = world;
    q->options = *options;
    q->image.ops = options->bitmaps_only ? &bitmaps_only_ops : &qcow2_ops;
    q->image.read_only = !writable;
    q->path = strdup(path);
    q->image.path = q->path;
    int ret = q->path ? 0 : err_set(err, ENOMEM, "%s: out of memory", path);
    if (ret == 0) {
        unsigned flags =
            (writable ? DISK_WRITABLE : DISK_READ_ONLY) | (options->direct ? DISK_DIRECT : 0);
        ret = world->ops->co_disk_open(world, path, flags, &q->disk, err);
        q->data = q->disk;
    }
    if (ret == 0) {
        ret = co_read_header(q, writable, err);
        q->geo = q->header.geo;
    }
    if (ret == 0) {
        ret = layer_init(q, err);
    }
    if (ret == 0) {
        ret = co_load_l1(q, err);
    }
    if (ret == 0) {
        ret = co_load_reftable(q, err);
    }
    if (ret == 0 && writable) {
        ret = co_build_metamap(q, err);
    }
    if (ret < 0) {
        layer_free(q);
        return ret;
    }
    *out = q;
    return 0;
}

/* A chain that comes back to itself would be read for ever. */
static int check_no_loop(const struct qcow2 *top, const struct qcow2 *fresh, struct errtext *err)
{
    for (const struct qcow2 *layer = top; layer; layer = layer->backing) {
        if (disk_is_same(layer->disk, fresh->disk)) {
            return err_set(err, ELOOP, "%s: the backing chain of %s comes back to this file",
                           fresh->path, top->path);
        }
    }
    return 0;
}

static int co_open_backing_qcow2(struct qcow2 *top, struct qcow2 *above, struct backing_file *file,
                                 struct errtext *err)
{
    struct qcow2_open_options options = {
        .read_only = true,
        .direct = above->options.direct,
        .cache_bytes = above->options.cache_bytes,
        .keys = above->options.keys,
        .key_count = above->options.key_count,
    };
    if (above->header.crypt_method != QCOW2_CRYPT_NONE && options.key_count > 1) {
        options.keys++;
        options.key_count--;
    }
    struct qcow2 *fresh;
    int ret = co_open_layer(top->world, file->path, &options, &fresh, err);
    if (ret < 0) {
        return ret;
    }
    ret = check_no_loop(top, fresh, err);
    if (ret < 0) {
        layer_free(fresh);
        return ret;
    }
    above->backing = fresh;
    fresh->below_given = file->below_given;
    fresh->below = file->below;
    file->below = NULL;
    return 0;
}

/*
 * Whoever says "raw" of a qcow2 image would show its tables to the guest, and nobody would notice
 * until the guest had written over them. A header is believed: the guest of a raw disk may write
 * there what it likes.
 */
static int co_check_assumed_raw(struct image *raw, struct errtext *err)
{
    uint8_t magic[4];
    int ret =
        raw->size_bytes < sizeof(magic) ? 0 : raw->ops->co_read(raw, 0, magic, sizeof(magic), NULL);
    if (ret < 0) {
        return err_set(err, -ret, "%s: %s", raw->path, strerror(-ret));
    }
    if (raw->size_bytes >= sizeof(magic) && get_be32(magic) == QCOW2_MAGIC) {
        return err_set(err, EINVAL,
                       "%s: begins as a qcow2 image does: if it is raw all the same, that must "
                       "stand in the header that names it",
                       raw->path);
    }
    return 0;
}

static int co_open_backing_raw(struct qcow2 *top, struct qcow2 *above,
                               const struct backing_file *file, struct errtext *err)
{
    int ret =
        co_raw_open(top->world, file->path, true, above->options.direct, &above->backing_raw, err);
    if (ret == 0 && file->format_assumed) {
        ret = co_check_assumed_raw(above->backing_raw, err);
    }
    return ret;
}

static bool has_backing(const struct qcow2 *q)
{
    return q->below_given ? q->below != NULL : q->header.backing_name != NULL;
}

static int find_backing(struct qcow2 *top, struct qcow2 *above, struct backing_file *file,
                        struct errtext *err)
{
    const struct header *header = &above->header;
    enum backing_format assumed = top->options.backing_format;
    if (!above->below_given) {
        return backing_resolve(above->path, header->backing_name, header->backing_format, assumed,
                               file, err);
    }
    struct json_name *below = above->below;
    above->below = NULL;
    return backing_resolve_described(above->path, below, header->backing_format, assumed, file,
                                     err);
}

/* Opens what is below `above`. */
static int co_open_backing(struct qcow2 *top, struct qcow2 *above, struct errtext *err)
{
    struct backing_file file;
    int ret = find_backing(top, above, &file, err);
    if (ret < 0) {
        backing_file_free(&file);
        return ret;
    }
    ret = file.format == BACKING_FORMAT_QCOW2 ? co_open_backing_qcow2(top, above, &file, err)
                                              : co_open_backing_raw(top, above, &file, err);
    if (ret < 0) { /* the file that is missing or damaged is not the one that somebody asked for */
        err_prefix(err, "the backing file of %s%s%s", above->path,
                   file.format_assumed ? ", taken to be " : "",
                   file.format_assumed ? backing_format_name(file.format) : "");
    }
    backing_file_free(&file);
    return ret;
}

static int co_open_chain(struct qcow2 *top, struct errtext *err)
{
    struct qcow2 *layer = top;
    unsigned depth = 1;

    while (layer && has_backing(layer)) {
        if (++depth > LIMIT_CHAIN_DEPTH) {
            return err_set(err, ELOOP, "%s: the backing chain has more than %u images", top->path,
                           LIMIT_CHAIN_DEPTH);
        }
        int ret = co_open_backing(top, layer, err);
        if (ret < 0) {
            return ret;
        }
        layer = layer->backing;
    }
    return 0;
}

/* Puts the keys to work, and forgets where they came from. */
static int open_encrypted(struct qcow2 *top, struct errtext *err)
{
    for (struct qcow2 *layer = top; layer; layer = layer->backing) {
        layer->options.snapshot = NULL;
        layer->options.keys = NULL;
        layer->options.key_count = 0;
        if (!layer->cipher) {
            continue;
        }
        if (encrypted_disk_create(layer->data, layer->cipher, &layer->cipher_spec,
                                  &layer->encrypted) < 0) {
            return err_set(err, ENOMEM, "%s: out of memory", layer->path);
        }
        layer->cipher = NULL;
        layer->data = layer->encrypted;
    }
    return 0;
}

/* One budget for the whole chain: half for the top image, the rest for the layers below. */
static void share_cache(struct qcow2 *top)
{
    uint64_t budget = top->options.cache_bytes;
    unsigned below = 0;
    for (struct qcow2 *layer = top->backing; layer; layer = layer->backing) {
        below++;
    }
    if (below == 0) {
        return;
    }
    slice_cache_set_capacity(&top->cache, slice_cache_capacity(top->geo.slice_bytes, budget / 2));
    for (struct qcow2 *layer = top->backing; layer; layer = layer->backing) {
        uint64_t share = MAX_OF(budget / 2 / below, CACHE_SLICES_MIN_BYTES);
        slice_cache_set_capacity(&layer->cache,
                                 slice_cache_capacity(layer->geo.slice_bytes, share));
    }
}

int co_qcow2_open(struct world *world, const char *path, const struct qcow2_open_options *options,
                  struct image **out, struct errtext *err)
{
    struct qcow2_open_options effective = *options;
    struct qcow2 *q;

    if (effective.cache_bytes == 0) {
        effective.cache_bytes = LIMIT_SLICE_CACHE_BYTES;
    }
    if (effective.commit_interval_ms == 0) {
        effective.commit_interval_ms = COMMIT_INTERVAL_DEFAULT_MS;
    }
    int ret = co_open_layer(world, path, &effective, &q, err);
    if (ret < 0) {
        return ret;
    }
    /* Bitmaps tell of the disk as it is. */
    ret = effective.snapshot ? 0 : co_bitmaps_open(q, err);
    if (ret == 0 && !effective.bitmaps_only) {
        ret = co_open_chain(q, err);
    }
    if (ret == 0 && !effective.bitmaps_only) {
        ret = co_open_data_files(q, err);
    }
    if (ret == 0) {
        ret = open_encrypted(q, err);
    }
    if (ret == 0) {
        share_cache(q);
        ret = co_bitmap_recover(q, err);
    }
    if (ret < 0) {
        chain_free(q);
        return ret;
    }
    *out = &q->image;
    return 0;
}
