/* SPDX-License-Identifier: BSD-2-Clause */
/*
 *   grow     drop what is left beyond the old end -> a longer L1 -> zeroes over what would show
 *            through -> commit -> larger bitmaps -> header -> the new size for all
 *   shrink   hold what goes -> header -> drop it -> smaller bitmaps -> commit
 *
 * An external data file gets the disk's size, too: before the header when it grows, after it when
 * it shrinks, so that it is never shorter than the disk.
 *
 * Beyond the end there may be entries: of a virtual machine's state, or of a shrink that a crash
 * ended. Nobody reads them there, and they are counted like all others.
 */
#include "qcow2/resize.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "qcow2/commit.h"
#include "qcow2/discard.h"
#include "qcow2/engine.h"
#include "qcow2/l1.h"
#include "qcow2/map.h"
#include "qcow2/read.h"
#include "qcow2/room.h"

#define SECTOR_BYTES 512U
/* L2 tables that are dropped between two commits: what the quarantine holds is bounded by that. */
#define TABLES_PER_COMMIT 16U

static uint64_t table_guest_bytes(const struct qcow2 *q)
{
    return (uint64_t)q->geo.l2_entries << q->geo.cluster_bits;
}

/* ---- What may be ---- */

static int check_snapshots(const struct qcow2 *q, struct errtext *err)
{
    char shown[100];
    if (q->header.snapshot_count > 0 && q->header.version < 3) {
        return err_set(err, ENOTSUP,
                       "%s: has version 2 and %" PRIu32 " internal snapshots: only images of "
                       "version 3, or without snapshots, can be resized",
                       q->path, q->header.snapshot_count);
    }
    for (uint32_t i = 0; i < q->header.snapshot_count; i++) {
        const struct snapshot *snapshot = &q->header.snapshots[i];
        if (!snapshot->disk_size_given) {
            return err_set(
                err, ENOTSUP,
                "%s: its snapshot '%s' does not say how large the disk was, and would "
                "get the new size: delete it first",
                q->path,
                err_sanitise(shown, sizeof(shown), snapshot->name, strlen(snapshot->name)));
        }
    }
    return 0;
}

static int check_size(const struct qcow2 *q, uint64_t size_bytes, struct errtext *err)
{
    uint64_t most = LIMIT_L1_BYTES / 8 * table_guest_bytes(q); /* at most 2^22 << (21 + 18) */
    most = MIN_OF(most, round_down_to(INT64_MAX, SECTOR_BYTES));
    if (size_bytes == 0 || size_bytes % SECTOR_BYTES != 0) {
        return err_set(err, EINVAL,
                       "%s: a size of %" PRIu64 " bytes: must be a multiple of %u, and not 0",
                       q->path, size_bytes, SECTOR_BYTES);
    }
    if (size_bytes > most) {
        return err_set(err, EFBIG,
                       "%s: a size of %" PRIu64 " bytes: with clusters of %" PRIu64
                       ", at most %" PRIu64 " are allowed",
                       q->path, size_bytes, q->geo.cluster_bytes, most);
    }
    return 0;
}

static int check_resize(const struct qcow2 *q, uint64_t size_bytes, struct errtext *err)
{
    if (q->image.read_only) {
        return err_set(err, EROFS, "%s: is open read-only", q->path);
    }
    if (q->failed) {
        return err_set(err, EIO, "%s: has failed, and takes no more changes", q->path); /* O8 */
    }
    if (q->recording.began && q->recording.count > 0) {
        return err_set(err, EBUSY,
                       "%s: its bitmaps are being recorded: resize it while nobody writes",
                       q->path);
    }
    int ret = check_size(q, size_bytes, err);
    if (ret == 0) {
        ret = bitmaps_check_size(q, size_bytes, err);
    }
    return ret < 0 ? ret : check_snapshots(q, err);
}

/* ---- What is beyond an end ---- */

static bool slice_is_empty(const struct qcow2 *q, const struct slice *slice, uint32_t index)
{
    for (; index < q->geo.slice_l2_entries; index++) {
        struct l2_entry entry = l2_entry_get(&q->geo, slice->bytes, index);
        if (entry.descriptor != 0 || entry.bitmap != 0) {
            return false;
        }
    }
    return true;
}

static int retire_rest_of_slice(struct qcow2 *q, guest_off guest, struct slice *slice,
                                uint32_t index)
{
    for (; index < q->geo.slice_l2_entries; index++) {
        struct l2_entry entry = l2_entry_get(&q->geo, slice->bytes, index);
        enum entry_class entry_class;
        int ret = map_entry_class(q, guest, entry, &entry_class);
        if (ret < 0) {
            return ret;
        }
        map_retire_entry(q, entry); /* O3: same step */
        l2_entry_set(&q->geo, slice->bytes, index, (struct l2_entry){0, 0});
        guest.bytes += q->geo.cluster_bytes;
    }
    return 0;
}

/* The entries from `guest` to the end of its slice. */
static int co_drop_in_slice(struct qcow2 *q, guest_off guest)
{
    struct slice *slice;
    uint32_t index;
    int ret = co_map_slice(q, guest, &slice, &index);
    if (ret < 0 || slice_is_empty(q, slice, index)) {
        return ret;
    }
    ret = co_commit_make_room(q);
    if (ret == 0) {
        ret = co_map_prepare(q, guest);
    }
    if (ret == 0) {
        ret = co_map_change(q, guest, &slice, &index);
    }
    return ret < 0 ? ret : retire_rest_of_slice(q, guest, slice, index);
}

/* The same, with room for the copy of a table that a snapshot shares. */
static int co_drop_in_slice_surely(struct qcow2 *q, struct request *request, guest_off guest)
{
    struct room_search search = {0};
    int ret;
    do {
        co_budget_take(&q->changers, 1);
        ret = co_drop_in_slice(q, guest);
        budget_give(&q->changers, 1);
        if (ret != -ENOSPC) {
            break;
        }
        ret = co_room_search(q, request, &search, false);
    } while (ret == 0);
    room_search_end(q, &search);
    return ret;
}

/* The entries from `guest` to the end of its table. */
static int co_drop_in_table(struct qcow2 *q, struct request *request, guest_off guest)
{
    uint64_t end = round_up_to(guest.bytes, table_guest_bytes(q));
    while (guest.bytes < end && map_has_table(q, guest)) {
        int ret = co_drop_in_slice_surely(q, request, guest);
        if (ret < 0) {
            return ret;
        }
        request_renew(q->table, request);
        guest.bytes =
            round_down_to(guest.bytes, slice_guest_bytes(&q->geo)) + slice_guest_bytes(&q->geo);
    }
    return 0;
}

/*
 * Drops what is mapped from the first whole cluster behind `start` to the end of the last table
 * that describes a part of [start, end): what follows there belongs to nobody, and the state of a
 * virtual machine begins with a table of its own. Nobody changes mappings there meanwhile.
 */
static int co_drop_beyond(struct qcow2 *q, guest_off start, guest_off end)
{
    uint64_t table_bytes = table_guest_bytes(q);
    uint64_t table_start;
    unsigned dropped = 0;
    struct request request;
    int ret = 0;

    start.bytes = round_up_to(start.bytes, q->geo.cluster_bytes);
    end.bytes = MIN_OF(end.bytes, q->l1.count * table_bytes);
    table_start = round_up_to(start.bytes, table_bytes);
    request_enter(q->table, &request);
    if (start.bytes < end.bytes && start.bytes < table_start) {
        ret = co_drop_in_table(q, &request, start);
    }
    for (; ret == 0 && table_start < end.bytes; table_start += table_bytes) {
        if (!map_has_table(q, (guest_off){table_start})) {
            continue;
        }
        ret = co_map_drop_table(q, (guest_off){table_start});
        request_renew(q->table, &request);
        if (ret == 0 && ++dropped % TABLES_PER_COMMIT == 0) {
            ret = co_commit(q);
        }
    }
    request_leave(q->table, &request);
    return ret;
}

/* ---- The header ---- */

static int co_set_size(struct qcow2 *q, uint64_t size_bytes)
{
    co_mutex_lock(&q->header_lock);
    int ret = co_header_set_size(q->disk, &q->header, size_bytes);
    co_mutex_unlock(&q->header_lock);
    if (ret == 0) {
        ret = co_disk_flush(q->disk);
    }
    return ret < 0 ? engine_fail(q, -ret, "writing the disk's size") : 0;
}

/* ---- Growing ---- */

/* Where zeroes must be written over what would be read: the rest of the last cluster, and as far as
 * the backing chain reaches. */
static guest_off end_of_show_through(const struct qcow2 *q, uint64_t old_bytes, uint64_t size_bytes)
{
    uint64_t end = round_up_to(old_bytes, q->geo.cluster_bytes);
    end = MAX_OF(end, backing_bytes(q));
    if (q->geo.data_file_raw) {
        end = MAX_OF(end, q->data->size_bytes); /* read without a look at entries */
    }
    return (guest_off){MIN_OF(end, size_bytes)};
}

/* What is new of the file reads as zeroes. A device has the size that it has. */
static int co_grow_data_file(struct qcow2 *q, uint64_t size_bytes)
{
    if (!q->geo.data_file || q->data->size_bytes >= size_bytes) {
        return 0;
    }
    if (q->geo.data_file_raw && q->encrypted) {
        return -ENOTSUP; /* no entry would say that what is new reads as zeroes */
    }
    return q->data->is_block_device ? -ENOSPC : q->data->ops->co_truncate(q->data, size_bytes);
}

static int co_shrink_data_file(struct qcow2 *q, uint64_t size_bytes)
{
    if (!q->geo.data_file || q->data->is_block_device || q->data->size_bytes <= size_bytes) {
        return 0;
    }
    return q->data->ops->co_truncate(q->data, size_bytes);
}

static int co_prepare_growth(struct qcow2 *q, uint64_t old_bytes, uint64_t size_bytes)
{
    struct room_search search = {0};
    struct request request;
    int ret = co_drop_beyond(q, (guest_off){old_bytes}, (guest_off){size_bytes});
    q->geo.size_bytes = size_bytes;
    if (ret < 0) {
        return ret;
    }
    request_enter(q->table, &request);
    do {
        ret = co_l1_grow(q, l1_entries_needed(&q->geo));
        if (ret != -ENOSPC) {
            break;
        }
        ret = co_room_search(q, &request, &search, false);
    } while (ret == 0);
    room_search_end(q, &search);
    request_leave(q->table, &request);
    guest_off end = end_of_show_through(q, old_bytes, size_bytes);
    if (ret == 0 && old_bytes < end.bytes) {
        ret = co_zero_grown(q, (guest_off){old_bytes}, end);
    }
    if (ret == 0) {
        ret = co_grow_data_file(q, size_bytes);
    }
    return ret < 0 ? ret : co_commit(q); /* O1, O2: before the size that shows it */
}

static int co_grow(struct qcow2 *q, uint64_t size_bytes, struct errtext *err)
{
    uint64_t old_bytes = q->geo.size_bytes;
    int ret = co_prepare_growth(q, old_bytes, size_bytes);
    if (ret == 0) {
        ret = co_bitmaps_resize(q, err);
    }
    if (ret == 0) {
        ret = co_set_size(q, size_bytes);
    }
    if (ret < 0) {
        q->geo.size_bytes = old_bytes;
        if (!q->failed && (co_drop_beyond(q, (guest_off){old_bytes}, (guest_off){size_bytes}) < 0 ||
                           co_shrink_data_file(q, old_bytes) < 0)) {
            log_warning("%s: what was written beyond the end keeps its space", q->path);
        }
        if (!q->failed) {
            co_bitmaps_resize(q, err); /* larger ones do no harm */
        }
        return err_set(err, -ret, "%s: cannot grow to %" PRIu64 " bytes: %s", q->path, size_bytes,
                       strerror(-ret));
    }
    q->image.size_bytes = size_bytes;
    return 0;
}

/* ---- Shrinking ---- */

static int co_shrink_held(struct qcow2 *q, uint64_t size_bytes, struct errtext *err)
{
    uint64_t old_bytes = q->geo.size_bytes;
    int ret = co_set_size(q, size_bytes);
    if (ret < 0) {
        return err_set(err, -ret, "%s: cannot shrink to %" PRIu64 " bytes: %s", q->path, size_bytes,
                       strerror(-ret));
    }
    q->image.size_bytes = size_bytes;
    q->geo.size_bytes = size_bytes;
    ret = co_drop_beyond(q, (guest_off){size_bytes}, (guest_off){old_bytes});
    if (ret == 0) {
        ret = co_shrink_data_file(q, size_bytes);
    }
    if (ret == 0) {
        ret = co_bitmaps_resize(q, err);
    }
    if (ret < 0) {
        return err_set(err, -ret,
                       "%s: has %" PRIu64 " bytes now, but the space of those beyond was not all "
                       "given back: %s",
                       q->path, size_bytes, strerror(-ret));
    }
    return 0;
}

static int co_shrink(struct qcow2 *q, uint64_t size_bytes, struct errtext *err)
{
    struct hold *hold;
    uint64_t first = round_down_to(size_bytes, q->geo.cluster_bytes);
    uint64_t end = round_up_to(q->geo.size_bytes, q->geo.cluster_bytes);
    int ret = co_hold(q->table, HOLD_EXCLUSIVE, first, end - first, &hold); /* O5 */
    if (ret < 0) {
        return err_set(err, -ret, "%s: out of memory", q->path);
    }
    ret = co_shrink_held(q, size_bytes, err);
    hold_release(hold);
    if (ret == 0 && co_commit(q) < 0) {
        ret = err_set(err, EIO, "%s: what is beyond the new end could not be given back", q->path);
    }
    return ret;
}

int co_qcow2_resize(struct image *image, uint64_t size_bytes, struct errtext *err)
{
    struct qcow2 *q = qcow2_of(image);
    int ret;

    co_mutex_lock(&q->resize_lock);
    co_mutex_lock(&q->recording.lock); /* no bitmap begins to be recorded meanwhile */
    ret = check_resize(q, size_bytes, err);
    if (ret == 0 && size_bytes > q->geo.size_bytes) {
        ret = co_grow(q, size_bytes, err);
    } else if (ret == 0 && size_bytes < q->geo.size_bytes) {
        ret = co_shrink(q, size_bytes, err);
    }
    co_mutex_unlock(&q->recording.lock);
    co_mutex_unlock(&q->resize_lock);
    return ret;
}
