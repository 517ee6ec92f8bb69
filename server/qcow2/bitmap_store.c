/* SPDX-License-Identifier: BSD-2-Clause */
#include "qcow2/bitmap_store.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "qcow2/alloc.h"
#include "qcow2/commit.h"
#include "qcow2/engine.h"
#include "qcow2/header_extension.h"
#include "qcow2/room.h"

#define CHUNK_BYTES  (64U * 1024U) /* of a table */
#define SECTOR_BYTES 512U

/* ---- Lists of clusters ---- */

void cluster_list_free(struct cluster_list *list)
{
    free(list->clusters);
    *list = (struct cluster_list){0};
}

static int list_reserve(struct cluster_list *list, uint64_t count)
{
    if (list->capacity - list->count >= count) {
        return 0;
    }
    size_t capacity = MAX_OF(list->capacity * 2, list->count + count + 16);
    uint64_t *clusters = realloc(list->clusters, capacity * sizeof(*clusters));
    if (!clusters) {
        return -ENOMEM;
    }
    list->clusters = clusters;
    list->capacity = capacity;
    return 0;
}

static int list_add(void *arg, uint64_t cluster)
{
    struct cluster_list *list = arg;
    int ret = list_reserve(list, 1);
    if (ret == 0) {
        list->clusters[list->count++] = cluster;
    }
    return ret;
}

void co_cluster_list_undo(struct qcow2 *q, struct cluster_list *taken)
{
    for (size_t i = 0; i < taken->count; i++) {
        metamap_remove(&q->metamap, taken->clusters[i]);
        co_alloc_undo(q, taken->clusters[i], 1);
    }
    cluster_list_free(taken);
}

/* They belong to nobody on disk, durably. */
static void retire(struct qcow2 *q, struct cluster_list *gone)
{
    for (size_t i = 0; i < gone->count; i++) {
        metamap_remove(&q->metamap, gone->clusters[i]);
        quarantine_add(q, gone->clusters[i], 1);
    }
    commit_arm_timer(q);
    cluster_list_free(gone);
}

int co_bitmap_collect(struct qcow2 *q, const struct stored_bitmap *stored,
                      struct cluster_list *list, struct errtext *err)
{
    return co_bitmap_visit_clusters(q->disk, &q->geo, stored, list_add, list, err);
}

/* ---- Reading ---- */

static int judge_entry(struct disk *disk, const struct geometry *geo,
                       const struct stored_bitmap *stored, uint64_t index, uint64_t entry,
                       struct errtext *err)
{
    host_off offset = {entry & QCOW2_BITMAP_TABLE_OFFSET};
    char path[256];
    char name[100];
    const char *what = NULL;

    if (entry & QCOW2_BITMAP_TABLE_RESERVED ||
        (offset.bytes != 0 && (entry & QCOW2_BITMAP_TABLE_ALL_SET))) {
        what = "reserved bits must be zero";
    } else if (!host_is_aligned(geo, offset)) {
        what = "its cluster must be aligned to the cluster size";
    } else if (offset.bytes != 0 &&
               !range_inside(offset.bytes, geo->cluster_bytes,
                             round_up_to(disk->size_bytes, geo->cluster_bytes))) {
        what = "its cluster must lie inside the file";
    } else {
        return 0;
    }
    return err_set(
        err, EINVAL, "%s: entry %" PRIu64 " of the table of bitmap '%s' is 0x%" PRIx64 ": %s",
        err_sanitise(path, sizeof(path), disk->path, strlen(disk->path)), index,
        err_sanitise(name, sizeof(name), stored->name, strlen(stored->name)), entry, what);
}

/* Calls see() for each entry of the table below `end` that is not 0, once it is judged. */
static int co_walk_table(struct disk *disk, const struct geometry *geo,
                         const struct stored_bitmap *stored, uint64_t end,
                         int (*co_see)(void *arg, uint64_t index, uint64_t entry), void *arg,
                         struct errtext *err)
{
    int ret = 0;
    uint8_t *chunk = malloc(CHUNK_BYTES);
    if (!chunk) {
        return err_set(err, ENOMEM, "%s: out of memory for a bitmap's table", disk->path);
    }
    for (uint64_t first = 0; ret == 0 && first < end; first += CHUNK_BYTES / 8) {
        uint64_t count = MIN_OF(end - first, CHUNK_BYTES / 8);
        ret = co_disk_read(disk, stored->table_offset.bytes + first * 8, chunk, count * 8);
        if (ret < 0) {
            err_set(err, -ret, "%s: reading the table of a bitmap: %s", disk->path, strerror(-ret));
        }
        for (uint64_t i = 0; ret == 0 && i < count; i++) {
            uint64_t entry = get_be64(chunk + i * 8);
            if (entry != 0) {
                ret = judge_entry(disk, geo, stored, first + i, entry, err);
            }
            if (ret == 0 && entry != 0) {
                ret = co_see(arg, first + i, entry);
            }
        }
    }
    free(chunk);
    return ret;
}

struct visitor {
    const struct geometry *geo;
    int (*visit)(void *arg, uint64_t cluster);
    void *arg;
};

static int visit_entry(void *arg, uint64_t index, uint64_t entry)
{
    struct visitor *visitor = arg;
    uint64_t offset = entry & QCOW2_BITMAP_TABLE_OFFSET;
    (void)index;
    return offset == 0 ? 0 : visitor->visit(visitor->arg, offset >> visitor->geo->cluster_bits);
}

static uint64_t table_clusters(const struct geometry *geo, uint64_t entries)
{
    return div_round_up(entries * sizeof(be64_t), geo->cluster_bytes);
}

int co_bitmap_visit_clusters(struct disk *disk, const struct geometry *geo,
                             const struct stored_bitmap *stored,
                             int (*visit)(void *arg, uint64_t cluster), void *arg,
                             struct errtext *err)
{
    struct visitor visitor = {geo, visit, arg};
    uint64_t first = host_cluster_index(geo, stored->table_offset);
    for (uint64_t i = 0; i < table_clusters(geo, stored->table_entries); i++) {
        int ret = visit(arg, first + i);
        if (ret < 0) {
            return ret;
        }
    }
    return co_walk_table(disk, geo, stored, stored->table_entries, visit_entry, &visitor, err);
}

struct loader {
    struct disk *disk;
    const struct geometry *geo;
    struct bitmap *bits;
    uint8_t *bytes; /* a cluster */
    uint64_t len;   /* of all bits */
    struct errtext *err;
};

static int co_load_entry(void *arg, uint64_t index, uint64_t entry)
{
    struct loader *loader = arg;
    uint64_t first = index * loader->geo->cluster_bytes;
    size_t len = (size_t)MIN_OF(loader->geo->cluster_bytes, loader->len - first);
    uint64_t offset = entry & QCOW2_BITMAP_TABLE_OFFSET;

    if (offset == 0) {
        memset(loader->bytes, 0xff, len);
    } else {
        int ret = co_disk_read(loader->disk, offset, loader->bytes, len);
        if (ret < 0) {
            return err_set(loader->err, -ret, "%s: reading a bitmap: %s", loader->disk->path,
                           strerror(-ret));
        }
    }
    bitmap_load(loader->bits, first, loader->bytes, len);
    return 0;
}

int co_bitmap_load(struct disk *disk, const struct geometry *geo,
                   const struct stored_bitmap *stored, struct bitmap *bits, struct errtext *err)
{
    struct loader loader = {
        .disk = disk,
        .geo = geo,
        .bits = bits,
        .bytes = malloc(geo->cluster_bytes),
        .len = bitmap_bytes_needed(geo->size_bytes, stored->granularity_bits),
        .err = err,
    };
    if (!loader.bytes) {
        return err_set(err, ENOMEM, "%s: out of memory for a bitmap", disk->path);
    }
    uint64_t needed = bitmap_table_entries_needed(geo, geo->size_bytes, stored->granularity_bits);
    int ret = co_walk_table(disk, geo, stored, MIN_OF(needed, stored->table_entries), co_load_entry,
                            &loader, err);
    free(loader.bytes);
    return ret;
}

/* ---- Writing ---- */

static int co_alloc_run(struct qcow2 *q, uint64_t count, uint64_t *first)
{
    struct room_search search = {0};
    struct request request;
    int ret;

    request_enter(q->table, &request);
    do {
        ret = co_commit_make_room(q);
        if (ret == 0) {
            co_budget_take(&q->changers, 1);
            ret = co_alloc_contiguous(q, count, first);
            budget_give(&q->changers, 1);
        }
        if (ret != -ENOSPC) {
            break;
        }
        ret = co_room_search(q, &request, &search, false);
    } while (ret == 0);
    room_search_end(q, &search);
    request_leave(q->table, &request);
    return ret;
}

/* Neighbouring clusters, counted 1 and in the map of metadata, and noted. */
static int co_take(struct qcow2 *q, uint64_t count, struct cluster_list *taken, uint64_t *first)
{
    int ret = list_reserve(taken, count);
    if (ret == 0) {
        ret = co_alloc_run(q, count, first);
    }
    if (ret < 0) {
        return ret;
    }
    for (uint64_t i = 0; i < count; i++) {
        if (metamap_add(&q->metamap, *first + i) < 0) {
            ret = -ENOMEM;
        }
        taken->clusters[taken->count++] = *first + i; /* the caller gives back all */
    }
    return ret;
}

static bool all_are(const uint8_t *bytes, size_t len, uint8_t byte)
{
    return bytes[0] == byte && memcmp(bytes, bytes + 1, len - 1) == 0;
}

/* The entry for the bits [first, ...) of one cluster, which gets a place where it needs one. */
static int co_save_cluster(struct qcow2 *q, const struct bitmap *bits, uint64_t first, uint64_t len,
                           uint8_t *bytes, struct cluster_list *taken, uint64_t *entry)
{
    uint64_t cluster;
    memset(bytes, 0, q->geo.cluster_bytes);
    bitmap_save(bits, first, bytes, (size_t)MIN_OF(q->geo.cluster_bytes, len - first));
    if (all_are(bytes, q->geo.cluster_bytes, 0)) {
        *entry = 0;
        return 0;
    }
    if (all_are(bytes, q->geo.cluster_bytes, 0xff)) {
        *entry = QCOW2_BITMAP_TABLE_ALL_SET;
        return 0;
    }
    int ret = co_take(q, 1, taken, &cluster);
    if (ret < 0) {
        return ret;
    }
    *entry = cluster << q->geo.cluster_bits;
    return co_disk_write(q->disk, *entry, bytes, q->geo.cluster_bytes);
}

int co_bitmap_save_new(struct qcow2 *q, struct stored_bitmap *stored, const struct bitmap *bits,
                       struct cluster_list *taken)
{
    uint64_t len = bitmap_bytes_needed(q->geo.size_bytes, stored->granularity_bits);
    uint64_t entries =
        bitmap_table_entries_needed(&q->geo, q->geo.size_bytes, stored->granularity_bits);
    /* A table without entries has a place all the same. */
    uint64_t clusters = MAX_OF(table_clusters(&q->geo, entries), 1U);
    uint8_t *table = calloc(clusters, q->geo.cluster_bytes);
    uint8_t *bytes = malloc(q->geo.cluster_bytes);
    uint64_t first = 0;
    int ret = table && bytes ? 0 : -ENOMEM;

    for (uint64_t i = 0; ret == 0 && i < entries; i++) {
        uint64_t entry = 0;
        ret = co_save_cluster(q, bits, i * q->geo.cluster_bytes, len, bytes, taken, &entry);
        put_be64(table + i * 8, entry);
    }
    if (ret == 0) {
        ret = co_take(q, clusters, taken, &first);
    }
    if (ret == 0) {
        ret = co_disk_write(q->disk, first << q->geo.cluster_bits, table,
                            clusters << q->geo.cluster_bits);
    }
    if (ret == 0) {
        stored->table_offset.bytes = first << q->geo.cluster_bits;
        stored->table_entries = (uint32_t)entries;
    }
    free(table);
    free(bytes);
    return ret;
}

/* ---- Writing in place ---- */

/* An entry of a table that was 0. */
struct new_entry {
    uint64_t index;
    uint64_t entry;
};

struct new_entries {
    struct new_entry *each;
    size_t count;
    size_t capacity;
};

static int new_entries_add(struct new_entries *entries, uint64_t index, uint64_t entry)
{
    if (entries->count == entries->capacity) {
        size_t capacity = entries->capacity * 2 + 16;
        void *each = realloc(entries->each, capacity * sizeof(*entries->each));
        if (!each) {
            return -ENOMEM;
        }
        entries->each = each;
        entries->capacity = capacity;
    }
    entries->each[entries->count].index = index;
    entries->each[entries->count++].entry = entry;
    return 0;
}

/* Overwrites the pages of one cluster that are being saved. */
static int co_overwrite(struct qcow2 *q, const struct bitmap *bits, uint64_t first, uint64_t len,
                        uint64_t offset)
{
    uint8_t page[BITMAP_PAGE_BYTES];
    for (uint64_t at = 0; at < len; at += sizeof(page)) {
        uint64_t part = MIN_OF(len - at, sizeof(page));
        if (!bitmap_is_saving(bits, first + at, part)) {
            continue;
        }
        bitmap_save(bits, first + at, page, part);
        int ret = co_disk_write(q->disk, offset + at, page, part);
        if (ret < 0) {
            return engine_fail(q, -ret, "writing a bitmap");
        }
    }
    return 0;
}

struct saver {
    struct qcow2 *q;
    const struct bitmap *bits;
    uint8_t *bytes; /* a cluster */
    struct cluster_list taken;
    struct new_entries entries;
};

static int co_save_entry(struct saver *saver, uint64_t index, uint64_t entry)
{
    struct qcow2 *q = saver->q;
    uint64_t first = index * q->geo.cluster_bytes;
    uint64_t all = bitmap_serialised_bytes(saver->bits);
    uint64_t len = MIN_OF(q->geo.cluster_bytes, all - first);
    uint64_t fresh = 0;

    if (!bitmap_is_saving(saver->bits, first, len) || entry == QCOW2_BITMAP_TABLE_ALL_SET) {
        return 0;
    }
    if (entry != 0) {
        return co_overwrite(q, saver->bits, first, len, entry & QCOW2_BITMAP_TABLE_OFFSET);
    }
    int ret = co_save_cluster(q, saver->bits, first, all, saver->bytes, &saver->taken, &fresh);
    return ret < 0 || fresh == 0 ? ret : new_entries_add(&saver->entries, index, fresh);
}

static int co_save_entries(struct saver *saver, const struct stored_bitmap *stored)
{
    struct qcow2 *q = saver->q;
    uint64_t end = MIN_OF(stored->table_entries,
                          div_round_up(bitmap_serialised_bytes(saver->bits), q->geo.cluster_bytes));
    int ret = 0;
    uint8_t *chunk = malloc(CHUNK_BYTES);
    if (!chunk) {
        return -ENOMEM;
    }
    for (uint64_t first = 0; ret == 0 && first < end; first += CHUNK_BYTES / 8) {
        uint64_t count = MIN_OF(end - first, CHUNK_BYTES / 8);
        ret = co_disk_read(q->disk, stored->table_offset.bytes + first * 8, chunk, count * 8);
        for (uint64_t i = 0; ret == 0 && i < count; i++) {
            ret = co_save_entry(saver, first + i, get_be64(chunk + i * 8));
        }
    }
    free(chunk);
    return ret;
}

/* The entries of one sector after the other. */
static int co_put_entries(struct qcow2 *q, const struct stored_bitmap *stored,
                          const struct new_entries *entries)
{
    uint8_t sector[SECTOR_BYTES];
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < entries->count;) {
        uint64_t number = entries->each[i].index * 8 / SECTOR_BYTES;
        uint64_t offset = stored->table_offset.bytes + number * SECTOR_BYTES;
        ret = co_disk_read(q->disk, offset, sector, sizeof(sector));
        for (;
             ret == 0 && i < entries->count && entries->each[i].index * 8 / SECTOR_BYTES == number;
             i++) {
            put_be64(sector + entries->each[i].index * 8 % SECTOR_BYTES, entries->each[i].entry);
        }
        if (ret == 0) {
            ret = co_disk_write(q->disk, offset, sector, sizeof(sector));
        }
    }
    return ret;
}

int co_bitmap_save(struct qcow2 *q, const struct stored_bitmap *stored, const struct bitmap *bits)
{
    struct saver saver = {.q = q, .bits = bits, .bytes = malloc(q->geo.cluster_bytes)};
    int ret = saver.bytes ? co_save_entries(&saver, stored) : -ENOMEM;

    if (ret == 0 && saver.taken.count > 0) {
        ret = co_commit_counts(q); /* O1, and the bits are there before an entry names them */
    }
    if (ret < 0) {
        co_cluster_list_undo(q, &saver.taken);
    } else {
        ret = co_put_entries(q, stored, &saver.entries);
        if (ret == 0) {
            ret = co_disk_flush(q->disk);
        }
        if (ret < 0) { /* nobody knows which entries name their clusters */
            ret = engine_fail(q, -ret, "writing the table of a bitmap");
        }
    }
    cluster_list_free(&saver.taken);
    free(saver.entries.each);
    free(saver.bytes);
    return ret;
}

int co_bitmap_set_flags(struct disk *disk, struct stored_bitmap *stored, uint32_t flags)
{
    uint64_t at = stored->entry_offset + offsetof(struct qcow2_disk_bitmap, flags);
    uint64_t start = round_down_to(at, SECTOR_BYTES);
    uint8_t sector[SECTOR_BYTES];
    int ret = co_disk_read(disk, start, sector, sizeof(sector));
    if (ret == 0) {
        put_be32(sector + (at - start), flags);
        ret = co_disk_write(disk, start, sector, sizeof(sector));
    }
    if (ret == 0) {
        stored->flags = flags;
    }
    return ret;
}

/* ---- The directory ---- */

static int co_set_bitmaps_bit(struct qcow2 *q, bool on)
{
    uint64_t bit = QCOW2_AUTOCLEAR_BITMAPS;
    uint64_t autoclear = on ? q->header.autoclear | bit : q->header.autoclear & ~bit;
    if (autoclear == q->header.autoclear) {
        return 0;
    }
    int ret = co_header_set_features(q->disk, &q->header, q->header.incompatible, autoclear);
    return ret < 0 ? ret : co_disk_flush(q->disk);
}

static int co_forget_extension(struct qcow2 *q)
{
    int ret = co_set_bitmaps_bit(q, false); /* from now on it means nothing */
    return ret < 0 ? ret : co_header_extension_remove(q->disk, &q->header, QCOW2_EXT_BITMAPS);
}

/*
 * One write of one sector, where the extension lies in one: that is so wherever QEMU or we have put
 * it, but for unusually long names of a data file in front of it. There the image is without
 * bitmaps for a moment, which is safe: whoever needs one makes a full backup.
 */
static int co_put_extension(struct qcow2 *q, const uint8_t *data, uint32_t len)
{
    struct header_place place;
    bool live = q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS;
    int ret = co_header_extension_find(q->disk, &q->header, QCOW2_EXT_BITMAPS, &place);
    if (ret == 0 && place.len != len) {
        ret = co_forget_extension(q);
        ret = ret < 0 ? ret : -ENOENT;
    }
    if (ret == -ENOENT) {
        ret = co_header_extension_add(q->disk, &q->header, QCOW2_EXT_BITMAPS, data, len, &place);
    } else if (ret == 0) {
        if (live && !header_extension_is_atomic(&place, 0, len)) {
            ret = co_set_bitmaps_bit(q, false);
        }
        if (ret == 0) {
            ret = co_header_extension_write(q->disk, &place, 0, data, len);
        }
        if (ret == 0) {
            ret = co_disk_flush(q->disk);
        }
    }
    return ret < 0 ? ret : co_set_bitmaps_bit(q, true);
}

/* The header names the directory, durably. -ENOSPC: it has no room for that. */
static int co_name_directory(struct qcow2 *q, host_off offset, uint64_t len, uint32_t count)
{
    struct qcow2_disk_bitmaps_extension raw = {0};
    put_be32(raw.nb_bitmaps.bytes, count);
    put_be64(raw.directory_size.bytes, len);
    put_be64(raw.directory_offset.bytes, offset.bytes);

    co_mutex_lock(&q->header_lock);
    int ret = count == 0 ? co_forget_extension(q)
                         : co_put_extension(q, (const uint8_t *)&raw, sizeof(raw));
    co_mutex_unlock(&q->header_lock);
    if (ret == -ENOSPC && q->header.bitmap_count == 0) {
        return ret;
    }
    if (ret < 0) {
        return engine_fail(q, -ret, "naming the bitmap directory in the header");
    }
    q->header.bitmap_count = count;
    q->header.bitmap_directory_offset = offset;
    q->header.bitmap_directory_len_bytes = len;
    return 0;
}

static int co_write_directory(struct qcow2 *q, struct bitmap_directory *next,
                              struct cluster_list *taken, host_off *offset, uint64_t *len)
{
    uint64_t first;
    *len = bitmap_directory_bytes(next);
    *offset = (host_off){0};
    if (next->count == 0) {
        return 0;
    }
    uint64_t clusters = div_round_up(*len, q->geo.cluster_bytes);
    uint8_t *bytes = calloc(clusters, q->geo.cluster_bytes);
    int ret = bytes ? co_take(q, clusters, taken, &first) : -ENOMEM;
    if (ret == 0) {
        *offset = host_cluster_start(&q->geo, first);
        bitmap_directory_put(next, offset->bytes, bytes);
        ret = co_disk_write(q->disk, offset->bytes, bytes, clusters << q->geo.cluster_bits);
    }
    free(bytes);
    return ret;
}

int co_bitmap_directory_replace(struct qcow2 *q, struct bitmap_directory *next,
                                struct cluster_list *taken, struct cluster_list *gone)
{
    host_off offset;
    uint64_t len;
    uint64_t old_first = host_cluster_index(&q->geo, q->header.bitmap_directory_offset);
    uint64_t old_clusters =
        div_round_up(q->header.bitmap_directory_len_bytes, q->geo.cluster_bytes);

    int ret = list_reserve(gone, old_clusters);
    if (ret == 0) {
        ret = co_write_directory(q, next, taken, &offset, &len);
    }
    if (ret == 0) {
        ret = co_commit_counts(q); /* O1, and all that was written is durable */
    }
    if (ret == 0) {
        ret = co_name_directory(q, offset, len, next->count);
    }
    if (ret < 0) {
        if (!q->failed) {
            co_cluster_list_undo(q, taken);
        }
        return ret;
    }
    for (uint64_t i = 0; i < old_clusters; i++) {
        list_add(gone, old_first + i);
    }
    cluster_list_free(taken);
    retire(q, gone);
    return 0;
}
