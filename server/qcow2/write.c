/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A write takes its whole range once: shared if all of it can be written in place, exclusive if any
 * cluster's mapping must change (O5). What was looked up to choose is only a hint; under the hold
 * it is looked up again (O7).
 */
#include "qcow2/write.h"

#include <assert.h>
#include <errno.h>
#include <sys/uio.h>

#include "io/buffers.h"
#include "qcow2/alloc.h"
#include "qcow2/commit.h"
#include "qcow2/engine.h"
#include "qcow2/map.h"
#include "qcow2/read.h"
#include "qcow2/room.h"
#include "sched/break_point.h"

static bool in_place(const struct mapping *mapping)
{
    return mapping->kind == MAPPING_DATA && mapping->copied;
}

/* O10: guest bytes never land on metadata, whatever an L2 entry says. */
static int check_not_metadata(struct qcow2 *q, host_off host, uint64_t len)
{
    if (q->geo.data_file) {
        return 0;
    }
    uint64_t first = host_cluster_index(&q->geo, host);
    uint64_t last = host_cluster_index(&q->geo, (host_off){host.bytes + len - 1});
    uint64_t hit = metamap_first_in(&q->metamap, first, last - first + 1);
    if (hit > last) {
        return 0;
    }
    return engine_corrupt(q, "an L2 entry names cluster %#llx for guest data, which holds metadata",
                          (unsigned long long)hit << q->geo.cluster_bits);
}

static int co_write_mapped(struct qcow2 *q, const struct mapping *mapping, const uint8_t *buf)
{
    int ret = check_not_metadata(q, mapping->host, mapping->len);
    if (ret < 0) {
        return ret;
    }
    return co_disk_write(q->data, mapping->host.bytes, buf, (size_t)mapping->len);
}

/* Writes from the start of the range as far as it is in place. *done: how far that was. */
static int co_write_in_place(struct qcow2 *q, guest_off guest, const uint8_t *buf, size_t len,
                             size_t *done)
{
    *done = 0;
    while (*done < len) {
        struct mapping mapping;
        int ret = co_map(q, (guest_off){guest.bytes + *done}, len - *done, &mapping);
        if (ret < 0) {
            return ret;
        }
        if (!in_place(&mapping)) {
            return 0;
        }
        co_break_point(BREAK_IN_PLACE_WRITE);
        ret = co_write_mapped(q, &mapping, buf + *done);
        if (ret < 0) {
            return ret;
        }
        *done += (size_t)mapping.len;
    }
    return 0;
}

/* Head and tail of a copy on write, around the guest's bytes. */
struct padding {
    guest_off start; /* of the head; the data's own start when there is none */
    guest_off end;   /* of the tail */
    size_t head_len;
    size_t tail_len;
    uint8_t *head;
    uint8_t *tail;
};

static void padding_free(struct qcow2 *q, struct padding *padding)
{
    budget_give(&q->copy_bytes, padding->head_len + padding->tail_len);
    buffer_put(padding->head, padding->head_len);
    buffer_put(padding->tail, padding->tail_len);
}

/*
 * Fills head [start, data) and tail [data end, end). O6: both lie inside the run that is being
 * written and held, never in a neighbour. Leaves out what reads as zeroes when the new bytes do,
 * too.
 */
static int co_padding_fill(struct qcow2 *q, guest_off data, size_t len, bool reads_zero,
                           struct padding *padding)
{
    guest_off data_end = {data.bytes + len};
    size_t head_len = (size_t)(data.bytes - padding->start.bytes);
    size_t tail_len = (size_t)(padding->end.bytes - data_end.bytes);
    bool zero;
    int ret;

    if (reads_zero && head_len > 0) {
        ret = co_reads_zero(q, padding->start, head_len, &zero);
        if (ret < 0) {
            return ret;
        }
        head_len = zero ? 0 : head_len;
    }
    if (reads_zero && tail_len > 0) {
        ret = co_reads_zero(q, data_end, tail_len, &zero);
        if (ret < 0) {
            return ret;
        }
        tail_len = zero ? 0 : tail_len;
    }
    if (head_len + tail_len == 0) {
        return 0;
    }
    co_budget_take(&q->copy_bytes, head_len + tail_len);
    padding->head_len = head_len;
    padding->tail_len = tail_len;
    padding->head = head_len > 0 ? buffer_get(head_len) : NULL;
    padding->tail = tail_len > 0 ? buffer_get(tail_len) : NULL;
    if ((head_len > 0 && !padding->head) || (tail_len > 0 && !padding->tail)) {
        return -ENOMEM;
    }
    if (head_len > 0) {
        ret = co_read_for_copy(q, padding->start, padding->head, head_len);
        if (ret < 0) {
            return ret;
        }
    }
    if (tail_len > 0) {
        ret = co_read_for_copy(q, data_end, padding->tail, tail_len);
        if (ret < 0) {
            return ret;
        }
    }
    co_break_point(BREAK_DURING_COPY);
    return 0;
}

/* One I/O: head, data, tail. `host` is where the data goes. */
static int co_write_padded(struct qcow2 *q, const struct padding *padding, host_off host,
                           const uint8_t *buf, size_t len)
{
    struct iovec iov[3];
    int count = 0;

    if (padding->head_len > 0) {
        iov[count++] = (struct iovec){padding->head, padding->head_len};
    }
    iov[count++] = (struct iovec){(void *)(uintptr_t)buf, len};
    if (padding->tail_len > 0) {
        iov[count++] = (struct iovec){padding->tail, padding->tail_len};
    }
    return q->data->ops->co_write(q->data, host.bytes - padding->head_len, iov, count);
}

/* The bits of the subclusters of the cluster at `cluster` that [start, end) covers. */
static uint64_t subclusters_in(const struct geometry *geo, guest_off cluster, guest_off start,
                               guest_off end)
{
    uint64_t from = MAX_OF(start.bytes, cluster.bytes) - cluster.bytes;
    uint64_t to = MIN_OF(end.bytes, cluster.bytes + geo->cluster_bytes) - cluster.bytes;
    uint64_t first = from >> geo->subcluster_bits;
    uint64_t count = div_round_up(to, geo->subcluster_bytes) - first;
    return ((1ULL << count) - 1) << first;
}

/*
 * Publishes a write into host clusters that are there already: the subclusters become allocated, a
 * zero flag goes; an entry that did not name its place in a data file names it now. One step after
 * the last wait.
 */
static int co_publish_filled(struct qcow2 *q, guest_off start, guest_off end)
{
    struct slice *slice;
    uint32_t index;
    int ret = co_map_change(q, start, &slice, &index);
    if (ret < 0) {
        return ret;
    }
    for (guest_off at = {round_down_to(start.bytes, q->geo.cluster_bytes)}; at.bytes < end.bytes;
         at.bytes += q->geo.cluster_bytes) {
        struct l2_entry entry = l2_entry_get(&q->geo, slice->bytes, index);
        if (q->geo.data_file) {
            entry.descriptor = l2_descriptor((host_off){at.bytes});
        }
        if (q->geo.extended_l2) {
            uint64_t bits = subclusters_in(&q->geo, at, start, end);
            entry.bitmap = (entry.bitmap | bits) & ~(bits << 32);
        } else {
            entry.descriptor &= ~QCOW2_ZERO;
        }
        l2_entry_set(&q->geo, slice->bytes, index, entry);
        index++;
    }
    return 0;
}

/*
 * The padding of a write where clusters of our own stand: up to the ends of its subclusters. What a
 * data file held there before says nothing, so all of it is written; but it has no bytes behind the
 * disk's end. In a raw data file the bytes around are the guest's already.
 */
static struct padding own_padding(const struct qcow2 *q, guest_off guest, size_t len)
{
    uint64_t unit = q->geo.subcluster_bytes;
    guest_off end = {guest.bytes + len};

    if (q->geo.data_file_raw) {
        return (struct padding){.start = guest, .end = end};
    }
    struct padding padding = {
        .start = {round_down_to(guest.bytes, unit)},
        .end = {round_up_to(end.bytes, unit)},
    };
    if (q->geo.data_file) {
        padding.end.bytes = MIN_OF(padding.end.bytes, q->geo.size_bytes);
    }
    return padding;
}

/*
 * Writes where clusters of our own stand, but the bytes around are not theirs: behind a zero flag,
 * in subclusters not allocated yet, or anywhere in a data file. `mapping` starts at `guest`.
 */
static int co_write_into_own(struct qcow2 *q, guest_off guest, const uint8_t *buf,
                             const struct mapping *mapping)
{
    size_t len = (size_t)mapping->len;
    struct padding padding = own_padding(q, guest, len);
    host_off host = {mapping->host.bytes - (guest.bytes - padding.start.bytes)};

    int ret = check_not_metadata(q, host, padding.end.bytes - padding.start.bytes);
    if (ret < 0) {
        return ret;
    }
    /* The entry's slice is in our own table already, unless a snapshot shares the table. */
    ret = co_map_prepare(q, guest);
    if (ret < 0) {
        return ret;
    }
    ret = co_padding_fill(q, guest, len, false, &padding);
    co_break_point(BREAK_BEFORE_DATA_WRITE);
    if (ret == 0) {
        ret = co_write_padded(q, &padding, mapping->host, buf, len);
    }
    co_break_point(BREAK_BEFORE_PUBLISH);
    if (ret == 0) {
        ret = co_publish_filled(q, padding.start, padding.end);
    }
    padding_free(q, &padding);
    return ret;
}

/* A run of clusters that all need a new place. */
struct new_run {
    guest_off start; /* cluster aligned */
    uint64_t clusters;
    host_off host;
    bool reads_zero;
};

/*
 * The subclusters that the cluster at `guest`, whose table exists, takes with it when it moves:
 * none of an empty one, all of one without subclusters.
 */
static int co_subclusters_to_move(struct qcow2 *q, guest_off guest, uint32_t *bits)
{
    struct slice *slice;
    uint32_t index;
    enum entry_class entry_class;
    int ret = co_map_slice(q, guest, &slice, &index);
    if (ret < 0) {
        return ret;
    }
    struct l2_entry entry = l2_entry_get(&q->geo, slice->bytes, index);
    ret = map_entry_class(q, guest, entry, &entry_class);
    if (entry_class == ENTRY_EMPTY) {
        *bits = 0;
    } else if (entry_class == ENTRY_STANDARD && q->geo.extended_l2) {
        *bits = (uint32_t)(entry.bitmap & SUBCLUSTERS_ALL);
    } else {
        *bits = (uint32_t)(SUBCLUSTERS_ALL >> (32 - q->geo.subclusters));
    }
    return ret;
}

static bool needs_new_cluster(struct l2_entry entry, enum entry_class entry_class)
{
    return entry_class != ENTRY_STANDARD || !(entry.descriptor & QCOW2_COPIED);
}

/*
 * How many clusters from the one of `guest` on, up to the end of the request and of the slice, need
 * a new place. At least one: the caller has seen the first.
 */
static int co_measure_run(struct qcow2 *q, guest_off guest, size_t len, struct new_run *run)
{
    struct slice *slice;
    uint32_t index;
    int ret = co_map_slice(q, guest, &slice, &index);
    if (ret < 0) {
        return ret;
    }
    uint64_t end = guest.bytes + len;
    run->start.bytes = round_down_to(guest.bytes, q->geo.cluster_bytes);
    run->clusters = 0;
    for (guest_off at = run->start; at.bytes < end && index < q->geo.slice_l2_entries;
         at.bytes += q->geo.cluster_bytes, index++) {
        struct l2_entry entry = l2_entry_get(&q->geo, slice->bytes, index);
        enum entry_class entry_class;
        ret = map_entry_class(q, at, entry, &entry_class);
        if (ret < 0 || !needs_new_cluster(entry, entry_class)) {
            break;
        }
        run->clusters++;
    }
    return run->clusters > 0 ? 0 : ret;
}

/*
 * Where the padding of a run begins and ends (O6: computed from the new run alone): it fills
 * subclusters, and holds all of those that have data elsewhere.
 */
static int co_padding_measure(struct qcow2 *q, const struct new_run *run, guest_off data,
                              size_t len, struct padding *padding)
{
    guest_off run_end = {run->start.bytes + (run->clusters << q->geo.cluster_bits)};
    guest_off last = {run_end.bytes - q->geo.cluster_bytes};
    uint64_t unit = q->geo.subcluster_bytes;
    uint32_t bits;

    padding->start.bytes = round_down_to(data.bytes, unit);
    padding->end.bytes = round_up_to(data.bytes + len, unit);
    int ret = co_subclusters_to_move(q, run->start, &bits);
    if (ret == 0 && bits != 0) {
        uint64_t first = (uint64_t)__builtin_ctz(bits);
        padding->start.bytes = MIN_OF(padding->start.bytes, run->start.bytes + first * unit);
    }
    if (ret == 0) {
        ret = co_subclusters_to_move(q, last, &bits);
    }
    if (ret == 0 && bits != 0) {
        uint64_t end = 32 - (uint64_t)__builtin_clz(bits);
        padding->end.bytes = MAX_OF(padding->end.bytes, last.bytes + end * unit);
    }
    return ret;
}

/*
 * The new clusters become the guest's, what they replace goes into the quarantine (O3). One step
 * after the last wait.
 */
static int co_publish_new(struct qcow2 *q, const struct new_run *run, const struct padding *padding)
{
    struct slice *slice;
    uint32_t index;
    int ret = co_map_change(q, run->start, &slice, &index);
    if (ret < 0) {
        return ret;
    }
    for (uint64_t i = 0; i < run->clusters; i++) {
        uint64_t in_run = i << q->geo.cluster_bits;
        guest_off at = {run->start.bytes + in_run};
        struct l2_entry old = l2_entry_get(&q->geo, slice->bytes, index + (uint32_t)i);
        struct l2_entry fresh = {l2_descriptor((host_off){run->host.bytes + in_run}), 0};
        if (q->geo.extended_l2) {
            uint64_t bits = subclusters_in(&q->geo, at, padding->start, padding->end);
            uint64_t still_zero = (old.descriptor & QCOW2_COMPRESSED) ? 0 : old.bitmap >> 32;
            fresh.bitmap = bits | (still_zero & ~bits) << 32;
        }
        map_retire_entry(q, old);
        l2_entry_set(&q->geo, slice->bytes, index + (uint32_t)i, fresh);
    }
    return 0;
}

/* Fills and publishes an allocated run. Nothing is published when it fails. */
static int co_fill_run(struct qcow2 *q, const struct new_run *run, guest_off guest,
                       const uint8_t *buf, size_t len)
{
    struct padding padding = {0};
    host_off host = {run->host.bytes + (guest.bytes - run->start.bytes)};

    int ret = co_padding_measure(q, run, guest, len, &padding);
    if (ret == 0) {
        ret = co_padding_fill(q, guest, len, run->reads_zero, &padding);
    }
    co_break_point(BREAK_BEFORE_DATA_WRITE);
    if (ret == 0) {
        ret = co_write_padded(q, &padding, host, buf, len);
    }
    co_break_point(BREAK_BEFORE_PUBLISH);
    if (ret == 0) {
        ret = co_publish_new(q, run, &padding);
    }
    padding_free(q, &padding);
    return ret;
}

/* Writes as much of the range as one new run takes; *done says how much that was. */
static int co_write_new(struct qcow2 *q, guest_off guest, const uint8_t *buf, size_t len,
                        size_t *done)
{
    struct new_run run;
    uint64_t first;

    int ret = co_map_prepare(q, guest);
    if (ret < 0) {
        return ret;
    }
    ret = co_measure_run(q, guest, len, &run);
    if (ret < 0) {
        return ret;
    }
    ret = co_alloc(q, run.clusters, &first, &run.clusters, &run.reads_zero);
    if (ret < 0) {
        return ret;
    }
    run.host = host_cluster_start(&q->geo, first);
    run.reads_zero = run.reads_zero && !q->encrypted;
    uint64_t run_end = run.start.bytes + (run.clusters << q->geo.cluster_bits);
    size_t part = (size_t)(MIN_OF(guest.bytes + len, run_end) - guest.bytes);
    ret = co_fill_run(q, &run, guest, buf, part);
    if (ret < 0) {
        co_alloc_undo(q, first, run.clusters);
        return ret;
    }
    *done = part;
    return 0;
}

/* As co_write_held(); *written says how far it came. */
static int co_write_some(struct qcow2 *q, guest_off guest, const uint8_t *buf, size_t len,
                         size_t *written)
{
    *written = 0;
    while (*written < len) {
        struct mapping mapping;
        int ret = co_commit_make_room(q);
        if (ret < 0) {
            return ret;
        }
        guest_off at = {guest.bytes + *written};
        size_t left = len - *written;
        ret = co_map(q, at, left, &mapping);
        if (ret < 0) {
            return ret;
        }
        size_t done = (size_t)mapping.len;
        if (in_place(&mapping)) {
            ret = co_write_mapped(q, &mapping, buf + *written);
        } else if (mapping.has_host && mapping.copied) {
            ret = co_write_into_own(q, at, buf + *written, &mapping);
        } else {
            ret = co_write_new(q, at, buf + *written, left, &done);
        }
        if (ret < 0) {
            return ret;
        }
        *written += done;
    }
    return 0;
}

int co_write_held(struct qcow2 *q, guest_off guest, const uint8_t *buf, size_t len)
{
    size_t written;
    return co_write_some(q, guest, buf, len, &written);
}

static int co_all_in_place(struct qcow2 *q, guest_off guest, size_t len, bool *all)
{
    *all = true;
    for (size_t done = 0; done < len && *all;) {
        struct mapping mapping;
        int ret = co_map(q, (guest_off){guest.bytes + done}, len - done, &mapping);
        if (ret < 0) {
            return ret;
        }
        *all = in_place(&mapping);
        done += (size_t)mapping.len;
    }
    return 0;
}

/* A write's way through a range that is held. */
typedef int write_fn(struct qcow2 *q, guest_off guest, const uint8_t *buf, size_t len,
                     size_t *written);

static int co_write_changing(struct qcow2 *q, guest_off guest, const uint8_t *buf, size_t len,
                             size_t *written)
{
    co_budget_take(&q->changers, 1);
    int ret = co_write_some(q, guest, buf, len, written);
    budget_give(&q->changers, 1);
    return ret;
}

/* Writes what it can of a range that it takes; *written: how much that was. */
static int co_write_holding(struct qcow2 *q, struct request *request, enum hold_kind kind,
                            guest_off guest, const uint8_t *buf, size_t len, size_t *written)
{
    write_fn *co_write = kind == HOLD_SHARED ? co_write_in_place : co_write_changing;
    uint64_t start = round_down_to(guest.bytes, q->geo.cluster_bytes);
    uint64_t end = round_up_to(guest.bytes + len, q->geo.cluster_bytes);
    struct room_search search = {0};
    struct hold *hold;
    size_t part;

    *written = 0;
    int ret = co_hold_for(q->table, request, kind, start, end - start, &hold); /* O5 */
    if (ret < 0) {
        return ret;
    }
    do {
        ret =
            co_write(q, (guest_off){guest.bytes + *written}, buf + *written, len - *written, &part);
        *written += part;
        if (ret != -ENOSPC) {
            break;
        }
        ret = co_room_search(q, request, &search, part > 0);
    } while (ret == 0);
    room_search_end(q, &search);
    hold_release(hold);
    return ret;
}

static int co_write_request(struct qcow2 *q, struct request *request, guest_off guest,
                            const uint8_t *buf, size_t len)
{
    size_t written = 0;
    bool all;

    int ret = co_all_in_place(q, guest, len, &all);
    if (ret < 0) {
        return ret;
    }
    if (all) {
        ret = co_write_holding(q, request, HOLD_SHARED, guest, buf, len, &written);
        if (ret < 0 || written == len) {
            return ret;
        }
        /* A discard came between look-up and hold: the rest needs the exclusive way. */
        guest.bytes += written;
        buf += written;
        len -= written;
    }
    return co_write_holding(q, request, HOLD_EXCLUSIVE, guest, buf, len, &written);
}

int co_qcow2_write(struct image *image, uint64_t offset, const void *buf, size_t len,
                   unsigned flags)
{
    struct qcow2 *q = qcow2_of(image);
    struct request request;

    assert(range_inside(offset, len, image->size_bytes) && len > 0);
    if (image->read_only) {
        return -EROFS;
    }
    if (q->failed) {
        return -EIO; /* O8 */
    }
    int ret = co_bitmap_record(q, offset, len); /* O11 */
    if (ret < 0) {
        return ret;
    }
    request_enter(q->table, &request);
    ret = co_write_request(q, &request, (guest_off){offset}, buf, len);
    request_leave(q->table, &request);
    if (ret == 0 && (flags & IMAGE_FUA)) {
        ret = co_commit(q); /* O4 */
    }
    return ret;
}
