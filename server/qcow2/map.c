/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Look-up works on one slice at a time: within it, neighbouring (sub)clusters of one kind,
 * contiguous in the file, become one mapping, so that they become one I/O.
 */
#include "qcow2/map.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "qcow2/alloc.h"
#include "qcow2/commit.h"
#include "qcow2/engine.h"

/* Piece by which a shared L2 table is copied. */
#define COPY_PIECE_BYTES (64U * 1024U)

struct l2_entry l2_entry_get(const struct geometry *geo, const uint8_t *slice_bytes, uint32_t index)
{
    const uint8_t *at = slice_bytes + (size_t)index * geo->l2_entry_bytes;
    return (struct l2_entry){get_be64(at), geo->extended_l2 ? get_be64(at + 8) : 0};
}

void l2_entry_set(const struct geometry *geo, uint8_t *slice_bytes, uint32_t index,
                  struct l2_entry entry)
{
    uint8_t *at = slice_bytes + (size_t)index * geo->l2_entry_bytes;
    put_be64(at, entry.descriptor);
    if (geo->extended_l2) {
        put_be64(at + 8, entry.bitmap);
    } else {
        assert(entry.bitmap == 0);
    }
}

static int bad_entry(struct qcow2 *q, guest_off guest, struct l2_entry entry, const char *what)
{
    return engine_corrupt(q, "L2 entry of guest offset %#llx is %#llx (bitmap %#llx): %s",
                          (unsigned long long)guest.bytes, (unsigned long long)entry.descriptor,
                          (unsigned long long)entry.bitmap, what);
}

static int check_compressed(struct qcow2 *q, guest_off guest, struct l2_entry entry)
{
    host_off start;
    uint64_t len_bytes;

    compressed_place(&q->geo, entry.descriptor, &start, &len_bytes);
    if (q->geo.data_file) {
        return bad_entry(q, guest, entry, "with an external data file nothing is compressed");
    }
    if (entry.descriptor & QCOW2_COPIED) {
        return bad_entry(q, guest, entry, "a compressed cluster must not have COPIED set");
    }
    if (start.bytes >= engine_host_end(q)) {
        return bad_entry(q, guest, entry, "compressed data must lie inside the file");
    }
    if (entry.bitmap != 0) {
        return bad_entry(q, guest, entry, "a compressed cluster has no subclusters");
    }
    return 0;
}

/* Where a standard entry leads. */
static int check_place(struct qcow2 *q, guest_off guest, struct l2_entry entry)
{
    host_off host = l2_entry_host(entry);

    if (q->geo.data_file) {
        return host.bytes == round_down_to(guest.bytes, q->geo.cluster_bytes)
                   ? 0
                   : bad_entry(q, guest, entry,
                               "with an external data file a cluster lies at its guest offset");
    }
    if (!host_is_aligned(&q->geo, host)) {
        return bad_entry(q, guest, entry, "a cluster must start at a multiple of the cluster size");
    }
    if (host.bytes >= engine_host_end(q)) {
        return bad_entry(q, guest, entry, "a cluster must lie inside the file");
    }
    return 0;
}

int map_entry_class(struct qcow2 *q, guest_off guest, struct l2_entry entry,
                    enum entry_class *entry_class)
{
    if (entry.descriptor & QCOW2_COMPRESSED) {
        *entry_class = ENTRY_COMPRESSED;
        return check_compressed(q, guest, entry);
    }
    bool has_host = l2_entry_has_host(&q->geo, entry);
    *entry_class = has_host ? ENTRY_STANDARD : ENTRY_EMPTY;
    if (entry.descriptor & QCOW2_L2_RESERVED) {
        return bad_entry(q, guest, entry, "reserved bits must be zero");
    }
    int ret = has_host ? check_place(q, guest, entry) : 0;
    if (ret < 0) {
        return ret;
    }
    if ((entry.descriptor & QCOW2_ZERO) && (q->geo.extended_l2 || !q->geo.has_zero_flag)) {
        return bad_entry(q, guest, entry, "bit 0 must be zero in this version of the format");
    }
    if (q->geo.extended_l2) {
        if ((entry.bitmap >> 32) & entry.bitmap & SUBCLUSTERS_ALL) {
            return bad_entry(q, guest, entry, "a subcluster is allocated or zero, not both");
        }
        if (!has_host && (entry.bitmap & SUBCLUSTERS_ALL)) {
            return bad_entry(q, guest, entry, "an allocated subcluster needs a cluster");
        }
    }
    return 0;
}

static enum mapping_kind kind_of(const struct geometry *geo, struct l2_entry entry,
                                 enum entry_class entry_class, uint32_t subcluster)
{
    if (entry_class == ENTRY_COMPRESSED) {
        return MAPPING_COMPRESSED;
    }
    if (geo->extended_l2) {
        if ((entry.bitmap >> 32 >> subcluster) & 1) {
            return MAPPING_ZERO;
        }
        return (entry.bitmap >> subcluster) & 1 ? MAPPING_DATA : MAPPING_UNALLOCATED;
    }
    if (entry.descriptor & QCOW2_ZERO) {
        return MAPPING_ZERO;
    }
    return entry_class == ENTRY_STANDARD ? MAPPING_DATA : MAPPING_UNALLOCATED;
}

/* Subclusters from `subcluster` on that are of the same kind as it. */
static uint32_t same_subclusters(const struct geometry *geo, struct l2_entry entry,
                                 enum entry_class entry_class, uint32_t subcluster)
{
    enum mapping_kind kind = kind_of(geo, entry, entry_class, subcluster);
    uint32_t end = subcluster + 1;
    while (end < geo->subclusters && kind_of(geo, entry, entry_class, end) == kind) {
        end++;
    }
    return end - subcluster;
}

/* Where the cluster of `guest` (its start) stands. */
static void place_of(const struct geometry *geo, guest_off guest, struct l2_entry entry,
                     struct mapping *mapping)
{
    mapping->named = l2_entry_has_host(geo, entry);
    mapping->has_host = geo->data_file || mapping->named;
    mapping->copied = geo->data_file || (entry.descriptor & QCOW2_COPIED) != 0;
    mapping->host = geo->data_file ? (host_off){guest.bytes} : l2_entry_host(entry);
}

/* Extends *mapping by the cluster behind it, if that goes on in the same way; false when not. */
static bool extend_mapping(struct qcow2 *q, const uint8_t *bytes, uint32_t index, guest_off guest,
                           struct mapping *mapping)
{
    struct l2_entry entry = l2_entry_get(&q->geo, bytes, index);
    enum entry_class entry_class;

    struct mapping next;
    place_of(&q->geo, guest, entry, &next);
    if ((entry.descriptor & QCOW2_COMPRESSED) || next.named != mapping->named ||
        next.copied != mapping->copied ||
        (next.has_host && next.host.bytes != mapping->host.bytes + mapping->len)) {
        return false;
    }
    if (map_entry_class(q, guest, entry, &entry_class) < 0 ||
        kind_of(&q->geo, entry, entry_class, 0) != mapping->kind) {
        return false;
    }
    uint32_t same = same_subclusters(&q->geo, entry, entry_class, 0);
    mapping->len += (uint64_t)same << q->geo.subcluster_bits;
    return same == q->geo.subclusters;
}

static int map_in_slice(struct qcow2 *q, const uint8_t *bytes, uint32_t index, guest_off guest,
                        uint64_t max_len, struct mapping *mapping)
{
    const struct geometry *geo = &q->geo;
    struct l2_entry entry = l2_entry_get(geo, bytes, index);
    uint64_t in_cluster = offset_in_cluster(geo, guest);
    uint32_t subcluster = (uint32_t)(in_cluster >> geo->subcluster_bits);
    enum entry_class entry_class;

    int ret = map_entry_class(q, guest, entry, &entry_class);
    if (ret < 0) {
        return ret;
    }
    uint32_t same = same_subclusters(geo, entry, entry_class, subcluster);
    *mapping = (struct mapping){
        .kind = kind_of(geo, entry, entry_class, subcluster),
        .len = ((uint64_t)(subcluster + same) << geo->subcluster_bits) - in_cluster,
        .descriptor = entry.descriptor,
    };
    if (entry_class != ENTRY_COMPRESSED) {
        place_of(geo, (guest_off){guest.bytes - in_cluster}, entry, mapping);
        mapping->host.bytes += in_cluster;
    }
    bool to_cluster_end = subcluster + same == geo->subclusters;
    while (to_cluster_end && mapping->kind != MAPPING_COMPRESSED && mapping->len < max_len &&
           ++index < geo->slice_l2_entries) {
        to_cluster_end =
            extend_mapping(q, bytes, index, (guest_off){guest.bytes + mapping->len}, mapping);
    }
    mapping->len = MIN_OF(mapping->len, max_len);
    return 0;
}

static host_off slice_offset(const struct qcow2 *q, uint64_t l1_entry, guest_off guest)
{
    uint64_t in_table = (uint64_t)l2_index(&q->geo, guest) * q->geo.l2_entry_bytes;
    return (host_off){(l1_entry & QCOW2_L1_OFFSET) + round_down_to(in_table, q->geo.slice_bytes)};
}

int co_map(struct qcow2 *q, guest_off guest, uint64_t max_len, struct mapping *mapping)
{
    uint64_t in_slice_group = guest.bytes & (slice_guest_bytes(&q->geo) - 1);
    max_len = MIN_OF(max_len, slice_guest_bytes(&q->geo) - in_slice_group);

    uint64_t l1 = l1_index(&q->geo, guest);
    assert(l1 < q->l1.count);
    uint64_t l1_entry = q->l1.entries[l1];
    if ((l1_entry & QCOW2_L1_OFFSET) == 0) {
        *mapping = (struct mapping){.kind = MAPPING_UNALLOCATED, .len = max_len};
        place_of(&q->geo, guest, (struct l2_entry){0, 0}, mapping);
        return 0;
    }
    struct slice *slice;
    uint32_t index;
    int ret = co_map_slice(q, guest, &slice, &index);
    if (ret < 0) {
        return ret;
    }
    return map_in_slice(q, slice->bytes, index, guest, max_len, mapping);
}

bool map_has_table(const struct qcow2 *q, guest_off guest)
{
    return (q->l1.entries[l1_index(&q->geo, guest)] & QCOW2_L1_OFFSET) != 0;
}

/*
 * Copies the table that a snapshot shares. Its slices are clean: a shared table is never changed.
 */
static int co_copy_table(struct qcow2 *q, host_off from, host_off to)
{
    size_t piece = (size_t)MIN_OF(q->geo.cluster_bytes, COPY_PIECE_BYTES);
    uint8_t *buffer = malloc(piece);
    int ret = 0;

    if (!buffer) {
        return -ENOMEM;
    }
    for (uint64_t at = 0; at < q->geo.cluster_bytes && ret == 0; at += piece) {
        ret = co_disk_read(q->disk, from.bytes + at, buffer, piece);
        if (ret == 0) {
            ret = co_disk_write(q->disk, to.bytes + at, buffer, piece);
        }
    }
    free(buffer);
    return ret;
}

/*
 * Whether there is a table, and it is ours alone. O10: a stranger's entry may have COPIED and no
 * table.
 */
static bool owns_table(const struct qcow2 *q, uint64_t index)
{
    uint64_t entry = q->l1.entries[index];
    return (entry & QCOW2_L1_OFFSET) && (entry & QCOW2_COPIED);
}

static void l1_set(struct qcow2 *q, uint64_t index, uint64_t entry)
{
    q->l1.entries[index] = entry;
    q->l1.dirty_sectors[index / L1_SECTOR_ENTRIES] = 1;
    q->l1.dirty = true;
    commit_arm_timer(q);
}

/*
 * The L1 table of a sparse image is a hole. The first entry in a sector of it takes the sector's
 * space, so that a commit does not meet ENOSPC there (O8). A sector that is blank in memory is
 * blank on the disk, or what it names there is beyond the end of the disk and dropped: entries go
 * back to zero only so. Call with l1.lock held.
 */
static int co_reserve_l1_sector(struct qcow2 *q, uint64_t index)
{
    uint64_t first = round_down_to(index, L1_SECTOR_ENTRIES);
    uint64_t end = MIN_OF(first + L1_SECTOR_ENTRIES, q->l1.count);

    if (q->l1.new_clusters != 0) {
        return 0; /* what it moves to has its space */
    }
    for (uint64_t i = first; i < end; i++) {
        if (q->l1.entries[i] != 0) {
            return 0;
        }
    }
    return q->disk->ops->co_zero(q->disk, q->header.l1_offset.bytes + first * 8, (end - first) * 8);
}

/*
 * A table of our own: blank, or a copy. Its bytes are on the disk before L1 names it in memory, so
 * the first wave of the next commit covers them. Call with l1.lock held.
 */
static int co_make_table_locked(struct qcow2 *q, uint64_t index)
{
    uint64_t old = q->l1.entries[index];
    uint64_t first, got;
    bool reads_zero;

    if (owns_table(q, index)) {
        return 0; /* somebody made it while this one waited for the lock */
    }
    int ret = co_reserve_l1_sector(q, index);
    if (ret < 0) {
        return ret;
    }
    ret = co_alloc(q, 1, &first, &got, &reads_zero);
    if (ret < 0) {
        return ret;
    }
    host_off at = host_cluster_start(&q->geo, first);
    if (old & QCOW2_L1_OFFSET) {
        ret = co_copy_table(q, (host_off){old & QCOW2_L1_OFFSET}, at);
    } else {
        /* Zeroed with its space allocated: a commit must not meet ENOSPC here. */
        ret = q->disk->ops->co_zero(q->disk, at.bytes, q->geo.cluster_bytes);
    }
    if (ret == 0) {
        ret = metamap_add(&q->metamap, first);
    }
    if (ret < 0) {
        co_alloc_undo(q, first, 1);
        return ret;
    }
    assert(q->l1.entries[index] == old);
    slice_forget_range(&q->cache, at, q->geo.cluster_bytes);
    l1_set(q, index, l2_descriptor(at));
    if (old & QCOW2_L1_OFFSET) {
        /* The snapshots still refer to it, and it stays in the map of metadata. */
        quarantine_add_table(q, host_cluster_index(&q->geo, (host_off){old & QCOW2_L1_OFFSET}));
    }
    return 0;
}

int co_map_prepare(struct qcow2 *q, guest_off guest)
{
    uint64_t index = l1_index(&q->geo, guest);
    if (owns_table(q, index)) {
        return 0;
    }
    co_mutex_lock(&q->l1.lock);
    int ret = co_make_table_locked(q, index);
    co_mutex_unlock(&q->l1.lock);
    return ret;
}

int co_map_slice(struct qcow2 *q, guest_off guest, struct slice **slice, uint32_t *index)
{
    uint64_t l1_entry = q->l1.entries[l1_index(&q->geo, guest)];
    assert(l1_entry & QCOW2_L1_OFFSET);
    *index = l2_index(&q->geo, guest) & (q->geo.slice_l2_entries - 1);
    int ret = co_slice_get(&q->cache, SLICE_L2, slice_offset(q, l1_entry, guest), slice);
    if (ret == -EUCLEAN) {
        return engine_corrupt(q, "L2 table at %#llx is also a refcount block",
                              (unsigned long long)(l1_entry & QCOW2_L1_OFFSET));
    }
    return ret;
}

int co_map_change(struct qcow2 *q, guest_off guest, struct slice **slice, uint32_t *index)
{
    assert(owns_table(q, l1_index(&q->geo, guest)));
    int ret = co_map_slice(q, guest, slice, index);
    if (ret < 0) {
        return ret;
    }
    ret = slice_modify(&q->cache, *slice);
    if (ret == 0) {
        commit_arm_timer(q);
    }
    return ret;
}

/* O10: an entry that names metadata as guest data must not free it. */
static void retire(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t hit = metamap_first_in(&q->metamap, first, count);
    if (hit < first + count) {
        engine_corrupt(q, "an L2 entry named cluster %#llx for guest data, which holds metadata",
                       (unsigned long long)hit << q->geo.cluster_bits);
        return;
    }
    quarantine_add(q, first, count);
}

void map_retire_entry(struct qcow2 *q, struct l2_entry entry)
{
    if (q->geo.data_file) {
        return; /* O3: not counted, and never anybody else's */
    }
    if (entry.descriptor & QCOW2_COMPRESSED) {
        host_off start;
        uint64_t len_bytes;
        compressed_place(&q->geo, entry.descriptor, &start, &len_bytes);
        uint64_t first = host_cluster_index(&q->geo, start);
        uint64_t last = host_cluster_index(&q->geo, (host_off){start.bytes + len_bytes - 1});
        retire(q, first, last - first + 1);
        return;
    }
    host_off host = l2_entry_host(entry);
    if (host.bytes != 0) {
        retire(q, host_cluster_index(&q->geo, host), 1);
    }
}

/* All entries of a table that nobody changes meanwhile, for one look at them together. */
static int co_copy_entries(struct qcow2 *q, guest_off start, struct l2_entry *entries)
{
    for (uint32_t i = 0; i < q->geo.l2_entries; i++) {
        guest_off guest = {start.bytes + ((uint64_t)i << q->geo.cluster_bits)};
        enum entry_class entry_class;
        struct slice *slice;
        uint32_t index;
        int ret = co_map_slice(q, guest, &slice, &index);
        if (ret < 0) {
            return ret;
        }
        entries[i] = l2_entry_get(&q->geo, slice->bytes, index);
        ret = map_entry_class(q, guest, entries[i], &entry_class);
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

int co_map_drop_table(struct qcow2 *q, guest_off start)
{
    uint64_t index = l1_index(&q->geo, start);
    uint64_t old = q->l1.entries[index];
    assert(l2_index(&q->geo, start) == 0);
    if (!map_has_table(q, start)) {
        return 0;
    }
    struct l2_entry *entries = calloc(q->geo.l2_entries, sizeof(*entries));
    if (!entries) {
        return -ENOMEM;
    }
    int ret = co_copy_entries(q, start, entries);
    if (ret == 0) {
        assert(q->l1.entries[index] == old);
        for (uint32_t i = 0; i < q->geo.l2_entries; i++) {
            map_retire_entry(q, entries[i]);
        }
        quarantine_add_table(q, host_cluster_index(&q->geo, (host_off){old & QCOW2_L1_OFFSET}));
        l1_set(q, index, 0); /* O3: same step */
    }
    free(entries);
    return ret;
}
