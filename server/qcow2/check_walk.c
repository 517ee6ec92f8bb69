/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Finds every reference. First the refcount table (its blocks' counts decide about COPIED), then
 * everything that L1 and bitmap tables name, then each distinct L2 table once.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "qcow2/bitmap_directory.h"
#include "qcow2/check_state.h"
#include "qcow2/map.h"

#define CHUNK_BYTES        (1024U * 1024U)
#define EXTENDED_ALLOCATED 0x00000000ffffffffULL

/*
 * References.
 */

/* Whether a region begins in the file and ends no later than the end of the file's last cluster. */
static bool is_in_file(const struct check_state *state, uint64_t start, uint64_t len)
{
    uint64_t size = state->disk->size_bytes;
    uint64_t end;
    return start < size && add_u64(start, len, &end) &&
           (end <= size || end - size < state->geo->cluster_bytes);
}

/* Counts n references to each cluster that the region touches. */
static int refer(struct check_state *state, struct refmap *kind, uint64_t start, uint64_t len,
                 uint64_t n)
{
    uint64_t last = (start + len - 1) >> state->geo->cluster_bits;

    assert(len > 0 && n > 0);
    for (uint64_t cluster = start >> state->geo->cluster_bits; cluster <= last; cluster++) {
        int rc = refmap_add(&state->refs, cluster, n);
        if (rc == 0 && kind) {
            rc = refmap_add(kind, cluster, n);
        }
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

/* Remembers a reference past the end of the file, where a repair might put something. */
static int note_dangling(struct check_state *state, uint64_t start, uint64_t len)
{
    uint64_t first = start >> state->geo->cluster_bits;
    uint64_t last = (start + len - 1) >> state->geo->cluster_bits;
    int rc = 0;

    assert(len > 0);
    for (uint64_t cluster = first; cluster <= last && rc == 0; cluster++) {
        if (cluster >= state->end_cluster &&
            cluster - state->end_cluster < DANGLING_WINDOW_CLUSTERS) {
            rc = refmap_add(&state->dangling, cluster, 1);
        }
    }
    return rc < 0 ? check_failed(state, rc, "") : 0;
}

/*
 * Tables of 8-byte entries: L1 tables of disk and snapshots, bitmap tables. They may overlap each
 * other in a damaged image, so they are swept together: every entry is looked at once and counts
 * for as many tables as it is part of.
 */

struct table_edge {
    uint64_t at;
    int64_t count;  /* +1 where a table begins, -1 where it ends */
    int64_t active; /* the same, for the active L1 table */
};

struct table_set {
    struct table_edge *edges;
    size_t edge_count;
};

/* n entries of one value at `offset`: in `count` tables, `active` of them the active L1 table. */
typedef int entry_fn(struct check_state *state, uint64_t offset, uint64_t entry, uint64_t count,
                     uint64_t active);

static void table_set_add(struct table_set *set, uint64_t start, uint64_t entries, bool active)
{
    if (entries == 0) {
        return;
    }
    set->edges[set->edge_count++] = (struct table_edge){start, 1, active};
    set->edges[set->edge_count++] =
        (struct table_edge){start + entries * sizeof(be64_t), -1, active ? -1 : 0};
}

static int compare_edges(const void *left, const void *right)
{
    const struct table_edge *a = left;
    const struct table_edge *b = right;
    return (a->at > b->at) - (a->at < b->at);
}

static int co_sweep_entries(struct check_state *state, uint64_t start, uint64_t end, uint64_t count,
                            uint64_t active, entry_fn *visit, uint8_t *chunk)
{
    for (uint64_t at = start; at < end;) {
        size_t len = (size_t)MIN_OF(end - at, (uint64_t)CHUNK_BYTES);
        bool is_hole = false;
        int rc = co_check_read(state, at, chunk, len, &is_hole);
        if (rc < 0) {
            return check_failed(state, rc, "reading a table");
        }
        if (is_hole) {
            /* Nothing in the rest of the hole either. */
            uint64_t hole_end = round_down_to(state->extent_end, sizeof(be64_t));
            at = MIN_OF(end, MAX_OF(hole_end, at + len));
            continue;
        }
        for (size_t i = 0; i < len; i += sizeof(be64_t)) {
            uint64_t entry = get_be64(chunk + i);
            rc = entry ? visit(state, at + i, entry, count, active) : 0;
            if (rc < 0) {
                return rc;
            }
        }
        at += len;
    }
    return 0;
}

/* Counts the clusters of the tables, and visits their entries. */
static int co_sweep(struct check_state *state, struct table_set *set, entry_fn *visit)
{
    uint64_t count = 0;
    uint64_t active = 0;
    uint64_t counted_end = 0; /* clusters below are counted with what was open at their start */
    int rc = 0;

    uint8_t *chunk = malloc(CHUNK_BYTES);
    if (!chunk) {
        return check_failed(state, -ENOMEM, "");
    }
    qsort(set->edges, set->edge_count, sizeof(*set->edges), compare_edges);
    for (size_t i = 0; i < set->edge_count && rc == 0; i++) {
        const struct table_edge *edge = &set->edges[i];
        count += (uint64_t)edge->count;
        active += (uint64_t)edge->active;
        if (i + 1 == set->edge_count || count == 0 || set->edges[i + 1].at == edge->at) {
            continue;
        }
        uint64_t end = set->edges[i + 1].at;
        uint64_t cluster_end = round_up_to(end, state->geo->cluster_bytes);
        uint64_t cluster_start =
            MAX_OF(counted_end, round_down_to(edge->at, state->geo->cluster_bytes));
        if (cluster_end > cluster_start) {
            rc = refer(state, &state->exclusive, cluster_start, cluster_end - cluster_start, count);
            if (rc < 0) {
                check_failed(state, rc, "");
                break;
            }
            counted_end = cluster_end;
        }
        rc = co_sweep_entries(state, edge->at, end, count, active, visit, chunk);
    }
    free(chunk);
    return rc;
}

/*
 * L1 tables.
 */

static bool copied_is_wrong(struct check_state *state, uint64_t offset, uint64_t entry)
{
    uint64_t cluster = offset >> state->geo->cluster_bits;
    bool is_one = refmap_get(&state->disk_counts, cluster) == DISK_COUNT_ONE;
    return is_one != ((entry & QCOW2_COPIED) != 0);
}

/* With an external data file an L2 table stands for one part of the disk and no other. */
static int take_table_place(struct check_state *state, uint64_t at, uint64_t entry)
{
    uint64_t cluster = (entry & QCOW2_L1_OFFSET) >> state->geo->cluster_bits;
    uint64_t index = (at - state->header->l1_offset.bytes) / sizeof(be64_t);

    if (!state->geo->data_file) {
        return 0;
    }
    if (refmap_get(&state->table_places, cluster) > 0) {
        check_corruption(state,
                         "L1 entry at 0x%" PRIx64 " is 0x%016" PRIx64
                         ": the L2 table is named twice, in an image with an external data file",
                         at, entry);
        return 0;
    }
    int rc = refmap_add(&state->table_places, cluster, index + 1);
    return rc < 0 ? check_failed(state, rc, "") : 0;
}

static int visit_l1_entry(struct check_state *state, uint64_t at, uint64_t entry, uint64_t count,
                          uint64_t active)
{
    uint64_t table = entry & QCOW2_L1_OFFSET;

    if (entry & QCOW2_L1_RESERVED) {
        state->damaged_entries++;
        check_corruption(state,
                         "L1 entry at 0x%" PRIx64 " is 0x%016" PRIx64 ": reserved bits are set", at,
                         entry);
    }
    if (table == 0) {
        return 0;
    }
    if (!host_is_aligned(state->geo, (host_off){table})) {
        state->damaged_entries++;
        check_corruption(state,
                         "L1 entry at 0x%" PRIx64 " is 0x%016" PRIx64
                         ": the L2 table is not aligned to a cluster",
                         at, entry);
        return 0;
    }
    if (!is_in_file(state, table, state->geo->cluster_bytes)) {
        state->damaged_entries++;
        check_corruption(state,
                         "L1 entry at 0x%" PRIx64 " is 0x%016" PRIx64
                         ": the L2 table is outside of the file",
                         at, entry);
        return note_dangling(state, table, state->geo->cluster_bytes);
    }
    if (active && copied_is_wrong(state, table, entry)) {
        check_corruption(state,
                         "L1 entry at 0x%" PRIx64 " is 0x%016" PRIx64
                         ": COPIED does not match the refcount",
                         at, entry);
    }
    int rc = active ? take_table_place(state, at, entry) : 0;
    if (rc < 0) {
        return rc;
    }
    rc = refer(state, &state->tables, table, state->geo->cluster_bytes, count);
    if (rc == 0 && active) {
        rc = refmap_add(&state->active_tables, table >> state->geo->cluster_bits, active);
    }
    return rc < 0 ? check_failed(state, rc, "") : 0;
}

static int co_walk_l1_tables(struct check_state *state)
{
    const struct header *header = state->header;
    struct table_set set = {
        .edges = calloc(2 * ((size_t)header->snapshot_count + 1), sizeof(*set.edges)),
    };

    if (!set.edges) {
        return check_failed(state, -ENOMEM, "");
    }
    table_set_add(&set, header->l1_offset.bytes, header->l1_entries, true);
    for (uint32_t i = 0; i < header->snapshot_count; i++) {
        table_set_add(&set, header->snapshots[i].l1_offset.bytes, header->snapshots[i].l1_entries,
                      false);
    }
    int rc = co_sweep(state, &set, visit_l1_entry);
    free(set.edges);
    return rc;
}

/*
 * L2 tables.
 */

static struct l2_view view_compressed(const struct check_state *state, uint64_t descriptor,
                                      uint64_t bitmap)
{
    struct l2_view view = {.is_compressed = true, .has_bad_bitmap = bitmap != 0};
    host_off start;
    uint64_t len;

    compressed_place(state->geo, descriptor, &start, &len);
    if (start.bytes >> 56 != 0) {
        view.has_reserved_bits = true;
    }
    if (!is_in_file(state, start.bytes, len)) {
        view.is_bad_place = true;
        view.is_outside = true;
    }
    view.start = start.bytes;
    view.len_bytes = len;
    return view;
}

guest_off check_l2_guest(struct check_state *state, uint64_t cluster)
{
    uint64_t place = refmap_get(&state->table_places, cluster);
    uint64_t table_bytes = (uint64_t)state->geo->l2_entries << state->geo->cluster_bits;
    return place == 0 ? CHECK_GUEST_UNKNOWN : (guest_off){(place - 1) * table_bytes};
}

/* Guest data is in another file, at its guest offset, and not counted. */
static void view_data_place(const struct check_state *state, guest_off guest, uint64_t descriptor,
                            uint64_t bitmap, struct l2_view *view)
{
    struct l2_entry entry = {descriptor, bitmap};

    view->has_data_place = l2_entry_has_host(state->geo, entry);
    view->is_misplaced = view->has_data_place && guest.bytes != UINT64_MAX &&
                         l2_entry_host(entry).bytes != guest.bytes;
    view->lacks_copied = view->has_data_place && !(descriptor & QCOW2_COPIED);
    view->has_bad_bitmap =
        view->has_bad_bitmap || (!view->has_data_place && (bitmap & EXTENDED_ALLOCATED) != 0);
}

struct l2_view check_l2_view(const struct check_state *state, guest_off guest, uint64_t descriptor,
                             uint64_t bitmap)
{
    const struct geometry *geo = state->geo;

    if (descriptor & QCOW2_COMPRESSED) {
        return view_compressed(state, descriptor, bitmap);
    }
    bool zero_flag_allowed = geo->has_zero_flag && !geo->extended_l2;
    uint64_t reserved = QCOW2_L2_RESERVED;
    uint64_t allocated = bitmap & EXTENDED_ALLOCATED;
    uint64_t offset = descriptor & QCOW2_L2_OFFSET;
    struct l2_view view = {0};

    if (!zero_flag_allowed) {
        reserved |= QCOW2_ZERO;
    }
    view.has_reserved_bits = (descriptor & reserved) != 0;
    view.reads_zero_only =
        geo->extended_l2 ? allocated == 0 : zero_flag_allowed && (descriptor & QCOW2_ZERO);
    if (geo->extended_l2) {
        view.has_bad_bitmap = (allocated & (bitmap >> 32)) != 0;
    }
    if (geo->data_file) {
        view_data_place(state, guest, descriptor, bitmap, &view);
        return view;
    }
    if (offset == 0) {
        view.has_bad_bitmap = view.has_bad_bitmap || allocated != 0;
        return view;
    }
    view.is_outside = !is_in_file(state, offset, geo->cluster_bytes);
    view.is_bad_place = view.is_outside || !host_is_aligned(geo, (host_off){offset});
    view.start = offset;
    view.len_bytes = geo->cluster_bytes;
    return view;
}

static const char *l2_complaint(const struct check_state *state, const struct l2_view *view,
                                uint64_t descriptor)
{
    if (view->is_compressed && state->geo->data_file) {
        return "a compressed cluster in an image with an external data file";
    }
    if (view->has_reserved_bits) {
        return "reserved bits are set";
    }
    if (view->is_bad_place) {
        return view->is_outside ? "the cluster is outside of the file"
                                : "the cluster is not aligned";
    }
    if (view->has_bad_bitmap) {
        return "the subcluster bitmap contradicts itself or the entry";
    }
    if (view->is_misplaced) {
        return "the cluster is not at its guest offset in the external data file";
    }
    if (view->lacks_copied) {
        return "COPIED is not set, in an image with an external data file";
    }
    if (view->is_compressed && (descriptor & QCOW2_COPIED)) {
        return "COPIED is set on a compressed cluster";
    }
    return NULL;
}

static int visit_l2_entry(struct check_state *state, uint64_t at, guest_off guest,
                          uint64_t descriptor, uint64_t bitmap, uint64_t count, uint64_t active)
{
    struct l2_view view = check_l2_view(state, guest, descriptor, bitmap);
    const char *complaint = l2_complaint(state, &view, descriptor);

    if (complaint) {
        /* Where nothing is read from the place, or it is sane, nothing else can seem leaked. */
        if (view.has_reserved_bits || (view.is_bad_place && !view.reads_zero_only) ||
            (view.has_bad_bitmap && !view.is_compressed)) {
            state->damaged_entries++;
        }
        check_corruption(state,
                         "L2 entry at 0x%" PRIx64 " is 0x%016" PRIx64 " (bitmap 0x%" PRIx64 "): %s",
                         at, descriptor, bitmap, complaint);
    }
    if (view.has_data_place) {
        state->result->allocated_clusters += active;
    }
    if (view.len_bytes == 0) {
        return 0;
    }
    if (view.is_bad_place) {
        return note_dangling(state, view.start, view.len_bytes);
    }
    if (active) {
        state->result->allocated_clusters += active;
        state->result->compressed_clusters += view.is_compressed ? active : 0;
    }
    if (active && !view.is_compressed && copied_is_wrong(state, view.start, descriptor)) {
        check_corruption(state,
                         "L2 entry at 0x%" PRIx64 " is 0x%016" PRIx64
                         ": COPIED does not match the refcount",
                         at, descriptor);
    }
    int rc = refer(state, NULL, view.start, view.len_bytes, count);
    return rc < 0 ? check_failed(state, rc, "") : 0;
}

static int visit_l2_table(struct check_state *state, uint64_t start, const uint8_t *table,
                          uint64_t count, uint64_t active)
{
    uint32_t entry_bytes = state->geo->l2_entry_bytes;
    guest_off guest = check_l2_guest(state, start >> state->geo->cluster_bits);

    for (uint64_t i = 0; i < state->geo->cluster_bytes; i += entry_bytes) {
        uint64_t descriptor = get_be64(table + i);
        uint64_t bitmap = state->geo->extended_l2 ? get_be64(table + i + 8) : 0;
        if (!descriptor && !bitmap) {
            continue;
        }
        int rc = visit_l2_entry(state, start + i, check_entry_guest(state, guest, i / entry_bytes),
                                descriptor, bitmap, count, active);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int co_walk_l2_tables(struct check_state *state)
{
    uint64_t end = refmap_end(&state->tables);
    int rc = 0;

    uint8_t *table = malloc(state->geo->cluster_bytes);
    if (!table) {
        return check_failed(state, -ENOMEM, "");
    }
    for (uint64_t cluster = 0; rc == 0 && refmap_next(&state->tables, &cluster); cluster++) {
        uint64_t start = cluster << state->geo->cluster_bits;
        bool is_hole = false;
        rc = co_check_read(state, start, table, state->geo->cluster_bytes, &is_hole);
        if (rc < 0) {
            check_failed(state, rc, "reading an L2 table");
            break;
        }
        if (!is_hole) {
            rc = visit_l2_table(state, start, table, refmap_get(&state->tables, cluster),
                                refmap_get(&state->active_tables, cluster));
        }
        check_progress(state, 100, 900, cluster, end);
    }
    free(table);
    return rc;
}

/*
 * Bitmaps.
 */

static int visit_bitmap_entry(struct check_state *state, uint64_t at, uint64_t entry,
                              uint64_t count, uint64_t active)
{
    uint64_t offset = entry & QCOW2_L2_OFFSET;
    (void)active;

    if ((entry & QCOW2_BITMAP_TABLE_RESERVED) || (offset && (entry & 1))) {
        state->damaged_entries++;
        check_corruption(
            state, "bitmap table entry at 0x%" PRIx64 " is 0x%016" PRIx64 ": reserved bits are set",
            at, entry);
    }
    if (offset == 0) {
        return 0;
    }
    if (!host_is_aligned(state->geo, (host_off){offset}) ||
        !is_in_file(state, offset, state->geo->cluster_bytes)) {
        state->damaged_entries++;
        check_corruption(state,
                         "bitmap table entry at 0x%" PRIx64 " is 0x%016" PRIx64
                         ": the cluster is not aligned, or outside of the file",
                         at, entry);
        return note_dangling(state, offset, state->geo->cluster_bytes);
    }
    int rc = refer(state, &state->exclusive, offset, state->geo->cluster_bytes, count);
    return rc < 0 ? check_failed(state, rc, "") : 0;
}

/* Collects the tables that the directory names. */
static void take_bitmap_directory(struct check_state *state, const uint8_t *directory,
                                  struct table_set *set)
{
    uint64_t len = state->header->bitmap_directory_len_bytes;
    uint64_t at = 0;

    for (uint32_t i = 0; i < state->header->bitmap_count; i++) {
        struct qcow2_disk_bitmap raw;
        if (len - at < sizeof(raw)) {
            state->damaged_entries++;
            check_corruption(state, "bitmap directory ends inside of entry %" PRIu32, i);
            return;
        }
        memcpy(&raw, directory + at, sizeof(raw));
        uint64_t table = get_be64(raw.bitmap_table_offset.bytes);
        uint64_t entries = get_be32(raw.bitmap_table_size.bytes);
        uint64_t entry_len = round_up_to(sizeof(raw) + get_be16(raw.name_size.bytes) +
                                             (uint64_t)get_be32(raw.extra_data_size.bytes),
                                         8);
        if (entry_len > len - at) {
            state->damaged_entries++;
            check_corruption(state,
                             "bitmap directory entry %" PRIu32 " is longer than the directory", i);
            return;
        }
        at += entry_len;
        struct errtext why;
        if (bitmap_entry_judge(&raw, i, state->geo, state->disk->size_bytes, state->path, &why) <
            0) {
            state->damaged_entries++;
            check_corruption(state, "%s", why.text);
            continue;
        }
        table_set_add(set, table, entries, false);
    }
}

/* What only shows when all entries are known. */
static int co_judge_names(struct check_state *state)
{
    struct bitmap_directory directory;
    struct errtext why;
    int rc = co_bitmap_directory_read(state->disk, state->header, &directory, &why);
    if (rc == -EINVAL) {
        check_corruption(state, "%s", why.text);
        return 0;
    }
    bitmap_directory_free(&directory);
    return rc < 0 ? check_failed(state, rc, "reading the bitmap directory") : 0;
}

static int co_walk_bitmaps(struct check_state *state)
{
    const struct header *header = state->header;
    bool is_hole = false;

    if (header->bitmap_count == 0) {
        return 0;
    }
    int rc = refer(state, &state->exclusive, header->bitmap_directory_offset.bytes,
                   header->bitmap_directory_len_bytes, 1);
    if (rc < 0) {
        return check_failed(state, rc, "");
    }
    uint8_t *directory = calloc(1, header->bitmap_directory_len_bytes);
    struct table_set set = {.edges = calloc(2 * (size_t)header->bitmap_count, sizeof(*set.edges))};
    if (!directory || !set.edges) {
        rc = check_failed(state, -ENOMEM, "");
    }
    if (rc == 0) {
        rc = co_check_read(state, header->bitmap_directory_offset.bytes, directory,
                           header->bitmap_directory_len_bytes, &is_hole);
        if (rc < 0) {
            check_failed(state, rc, "reading the bitmap directory");
        }
    }
    if (rc == 0) {
        uint64_t before = state->result->corruptions;
        take_bitmap_directory(state, directory, &set);
        rc = co_sweep(state, &set, visit_bitmap_entry);
        if (rc == 0 && state->result->corruptions == before) {
            rc = co_judge_names(state);
        }
    }
    free(directory);
    free(set.edges);
    return rc;
}

/*
 * The refcount table and what the header names.
 */

static const char *block_complaint(struct check_state *state, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_REFTABLE_OFFSET;

    if (entry & QCOW2_REFTABLE_RESERVED) {
        return "reserved bits are set";
    }
    if (!host_is_aligned(state->geo, (host_off){offset})) {
        return "the refcount block is not aligned to a cluster";
    }
    if (!is_in_file(state, offset, state->geo->cluster_bytes)) {
        return "the refcount block is outside of the file";
    }
    /* Only blocks have been counted so far. */
    if (refmap_get(&state->exclusive, offset >> state->geo->cluster_bits) > 0) {
        return "the refcount block is named twice";
    }
    return NULL;
}

static int take_reftable(struct check_state *state, const uint8_t *raw)
{
    for (size_t i = 0; i < state->reftable_entries; i++) {
        uint64_t entry = get_be64(raw + i * sizeof(be64_t));
        if (entry == 0) {
            continue;
        }
        const char *complaint = block_complaint(state, entry);
        state->reftable[i] = entry;
        if (complaint) {
            state->block_states[i] = BLOCK_BAD;
            state->structure_damaged = true;
            check_corruption(state, "refcount table entry %zu is 0x%016" PRIx64 ": %s", i, entry,
                             complaint);
            continue;
        }
        state->block_states[i] = BLOCK_GOOD;
        int rc = refer(state, &state->exclusive, entry, state->geo->cluster_bytes, 1);
        if (rc < 0) {
            return check_failed(state, rc, "");
        }
    }
    return 0;
}

static int co_walk_refcounts(struct check_state *state)
{
    uint64_t len = state->header->reftable_clusters * state->geo->cluster_bytes;
    bool is_hole = false;

    state->reftable_entries = len / sizeof(be64_t);
    state->reftable = calloc(state->reftable_entries, sizeof(*state->reftable));
    state->block_states = calloc(state->reftable_entries, sizeof(*state->block_states));
    uint8_t *raw = calloc(1, len);
    int rc = state->reftable && state->block_states && raw ? 0 : -ENOMEM;
    if (rc == 0) {
        rc = co_check_read(state, state->header->reftable_offset.bytes, raw, len, &is_hole);
    }
    if (rc < 0) {
        free(raw);
        return check_failed(state, rc, "reading the refcount table");
    }
    rc = take_reftable(state, raw);
    free(raw);
    if (rc == 0) {
        rc = refer(state, &state->exclusive, state->header->reftable_offset.bytes, len, 1);
    }
    return rc < 0 ? rc : 0;
}

static int refer_to_header_regions(struct check_state *state)
{
    const struct header *header = state->header;

    int rc = refer(state, &state->exclusive, 0, state->geo->cluster_bytes, 1);
    if (rc == 0 && header->snapshots_len_bytes > 0) {
        rc = refer(state, &state->exclusive, header->snapshots_offset.bytes,
                   header->snapshots_len_bytes, 1);
    }
    if (rc == 0 && header->crypto_header_len_bytes > 0) {
        rc = refer(state, &state->exclusive, header->crypto_header_offset.bytes,
                   header->crypto_header_len_bytes, 1);
    }
    return rc < 0 ? check_failed(state, rc, "") : 0;
}

int co_check_walk(struct check_state *state)
{
    state->end_cluster = div_round_up(state->disk->size_bytes, state->geo->cluster_bytes);
    int rc = co_walk_refcounts(state);
    if (rc == 0) {
        rc = co_check_load_counts(state);
    }
    if (rc == 0) {
        rc = refer_to_header_regions(state);
    }
    if (rc == 0) {
        rc = co_walk_l1_tables(state);
    }
    if (rc == 0) {
        rc = co_walk_bitmaps(state);
    }
    if (rc == 0) {
        rc = co_walk_l2_tables(state);
    }
    if (rc == 0) {
        state->end_cluster = MAX_OF(state->end_cluster, refmap_end(&state->refs));
    }
    return rc;
}
