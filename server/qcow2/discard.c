/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whole (sub)clusters change their entry. A ragged end whose subcluster reads as zeroes everywhere
 * else is as good as whole; otherwise it is written as zeroes. What a cluster needs is decided by a
 * pure function from its entry; the loop then does a run of clusters at a time. A trimmed range
 * reads as zeroes: with a backing file the zero flag is set, never a bare empty entry that would
 * let old data of the backing file through. In an external data file the place of a cluster that is
 * given back is punched at once.
 */
#include "qcow2/discard.h"

#include <assert.h>
#include <errno.h>

#include "qcow2/alloc.h"
#include "qcow2/commit.h"
#include "qcow2/engine.h"
#include "qcow2/map.h"
#include "qcow2/read.h"
#include "qcow2/room.h"
#include "qcow2/write.h"
#include "sched/break_point.h"

enum zero_mode {
    ZERO_UNMAP,   /* give the clusters back */
    ZERO_KEEP,    /* keep those there are, make none */
    ZERO_RESERVE, /* NO_HOLE: every cluster has its space afterwards */
};

enum action {
    ACTION_NOTHING,
    ACTION_ENTRY,   /* change the entry */
    ACTION_RESERVE, /* allocate, then change the entry */
    ACTION_WRITE,   /* write zeroes as data */
};

/*
 * Pieces between two looks at the world: a huge range that is all holes must not starve the loop.
 */
#define PIECES_PER_TURN 64U

/* Never written, so it costs no memory: pages of the kernel's zero page. */
static uint8_t zero_bytes[1U << QCOW2_CLUSTER_BITS_MAX];

/* What one cluster gets. [start, end) is the part of it in the range, whole subclusters. */
struct cluster_part {
    guest_off cluster;
    guest_off start;
    guest_off end;
    bool whole;
};

static struct cluster_part part_at(const struct qcow2 *q, guest_off at, guest_off end)
{
    struct cluster_part part = {.cluster = {round_down_to(at.bytes, q->geo.cluster_bytes)},
                                .start = at};
    uint64_t cluster_end = part.cluster.bytes + q->geo.cluster_bytes;
    part.end.bytes = MIN_OF(end.bytes, cluster_end);
    part.whole = part.start.bytes == part.cluster.bytes && part.end.bytes == cluster_end;
    return part;
}

static uint64_t part_bits(const struct qcow2 *q, const struct cluster_part *part)
{
    uint64_t first = (part->start.bytes - part->cluster.bytes) >> q->geo.subcluster_bits;
    uint64_t count = (part->end.bytes - part->start.bytes) >> q->geo.subcluster_bits;
    return ((1ULL << count) - 1) << first;
}

/* The entry after the change; for clusters whose action is ACTION_ENTRY. */
static struct l2_entry zeroed_entry(const struct qcow2 *q, const struct cluster_part *part,
                                    struct l2_entry old, enum zero_mode mode)
{
    bool own = l2_entry_is_own(&q->geo, old);
    if (!part->whole) {
        uint64_t bits = part_bits(q, part);
        struct l2_entry entry = {old.descriptor, (old.bitmap & ~bits) | bits << 32};
        if (mode == ZERO_UNMAP && (entry.bitmap & SUBCLUSTERS_ALL) == 0) {
            entry.descriptor = 0; /* the last allocated subcluster went */
        }
        return entry;
    }
    bool shows_through = backing_covers(q, part->cluster);
    if (own && mode != ZERO_UNMAP) {
        return q->geo.extended_l2 ? (struct l2_entry){old.descriptor, SUBCLUSTERS_ALL << 32}
                                  : (struct l2_entry){old.descriptor | QCOW2_ZERO, 0};
    }
    if (!shows_through) {
        return (struct l2_entry){0, 0};
    }
    return q->geo.extended_l2 ? (struct l2_entry){0, SUBCLUSTERS_ALL << 32}
                              : (struct l2_entry){QCOW2_ZERO, 0};
}

/* Pure: what to do with one cluster. */
static enum action choose_action(const struct qcow2 *q, const struct cluster_part *part,
                                 struct l2_entry old, enum entry_class entry_class,
                                 enum zero_mode mode)
{
    bool own = entry_class == ENTRY_STANDARD && l2_entry_is_own(&q->geo, old);

    if (!q->geo.has_zero_flag) {
        /* Version 2 can say "reads as zeroes" only by having nothing, anywhere. */
        bool nothing = mode == ZERO_UNMAP || (mode == ZERO_KEEP && !own);
        if (!nothing || backing_covers(q, part->cluster)) {
            return ACTION_WRITE;
        }
        return old.descriptor == 0 ? ACTION_NOTHING : ACTION_ENTRY;
    }
    if (!part->whole && entry_class == ENTRY_COMPRESSED) {
        return ACTION_WRITE;
    }
    if (mode == ZERO_RESERVE && !own) {
        /* A cluster that keeps data of its other subclusters moves with its data. */
        bool alone = part->whole || (old.bitmap & SUBCLUSTERS_ALL & ~part_bits(q, part)) == 0;
        return alone ? ACTION_RESERVE : ACTION_WRITE;
    }
    struct l2_entry fresh = zeroed_entry(q, part, old, mode);
    bool same = fresh.descriptor == old.descriptor && fresh.bitmap == old.bitmap;
    return same ? ACTION_NOTHING : ACTION_ENTRY;
}

/* The action for the cluster at `at`. Suspends before it looks, not after. */
static int co_action_at(struct qcow2 *q, guest_off at, guest_off end, enum zero_mode mode,
                        struct cluster_part *part, enum action *action)
{
    struct l2_entry entry = {0, 0};
    enum entry_class entry_class = ENTRY_EMPTY;

    *part = part_at(q, at, end);
    if (map_has_table(q, at)) {
        struct slice *slice;
        uint32_t index;
        int ret = co_map_slice(q, at, &slice, &index);
        if (ret < 0) {
            return ret;
        }
        entry = l2_entry_get(&q->geo, slice->bytes, index);
        ret = map_entry_class(q, at, entry, &entry_class);
        if (ret < 0) {
            return ret;
        }
    }
    *action = choose_action(q, part, entry, entry_class, mode);
    return 0;
}

/* Writes zeroes as data, where the range does not read as zeroes yet (or must have its space). */
static int co_write_zeroes(struct qcow2 *q, guest_off start, guest_off end, bool even_if_zero)
{
    end.bytes = MIN_OF(end.bytes, q->geo.size_bytes);
    while (start.bytes < end.bytes) {
        /* Pieces meet at aligned places: a sector is never zeroed by halves. */
        uint64_t reach = sizeof(zero_bytes) - start.bytes % sizeof(zero_bytes);
        uint64_t len = MIN_OF(end.bytes - start.bytes, reach);
        bool zero = false;
        if (!even_if_zero) {
            int ret = co_reads_zero(q, start, len, &zero);
            if (ret < 0) {
                return ret;
            }
        }
        if (!zero) {
            int ret = co_write_held(q, start, zero_bytes, (size_t)len);
            if (ret < 0) {
                return ret;
            }
        }
        start.bytes += len;
    }
    return 0;
}

/*
 * Gives back what is unused now in a data file. O3: no other cluster can come to lie there, and one
 * that is written again waits for the hold under which this is done, so its bytes are never hit. A
 * read that had looked before sees old bytes or zeroes, as it may; a crash that loses the mapping
 * change shows no more than that the trim, which nobody has flushed, was under way.
 */
static void co_punch_data(struct qcow2 *q, guest_off start, guest_off end)
{
    if (!q->geo.data_file || q->options.trim != TRIM_UNMAP || start.bytes >= end.bytes) {
        return;
    }
    co_break_point(BREAK_BEFORE_DATA_PUNCH);
    /* Not being able to punch costs space on the host, and nothing else. */
    q->data->ops->co_punch(q->data, start.bytes,
                           MIN_OF(end.bytes, q->geo.size_bytes) - start.bytes);
}

/*
 * Changes entries from `at` on for as long as that is all there is to do, in one step after the
 * wait. [*unused, *unused_end): from the first to the last place in it that has lost its data.
 */
static int co_change_entries(struct qcow2 *q, guest_off *at, guest_off end, enum zero_mode mode,
                             guest_off *unused, guest_off *unused_end)
{
    *unused = *unused_end = *at;
    int ret = co_map_prepare(q, *at);
    if (ret < 0) {
        return ret;
    }
    struct slice *slice;
    uint32_t index;
    ret = co_map_change(q, *at, &slice, &index);
    if (ret < 0) {
        return ret;
    }
    while (at->bytes < end.bytes && index < q->geo.slice_l2_entries) {
        struct cluster_part part = part_at(q, *at, end);
        struct l2_entry old = l2_entry_get(&q->geo, slice->bytes, index);
        enum entry_class entry_class;
        ret = map_entry_class(q, *at, old, &entry_class);
        if (ret < 0) {
            return ret;
        }
        enum action action = choose_action(q, &part, old, entry_class, mode);
        if (action != ACTION_NOTHING && action != ACTION_ENTRY) {
            break;
        }
        if (action == ACTION_ENTRY) {
            struct l2_entry fresh = zeroed_entry(q, &part, old, mode);
            if (fresh.descriptor == 0 || fresh.descriptor == QCOW2_ZERO) {
                map_retire_entry(q, old); /* O3: same step */
            }
            if (mode == ZERO_UNMAP && l2_entry_has_host(&q->geo, old)) {
                *unused = unused->bytes == unused_end->bytes ? part.start : *unused;
                *unused_end = part.end;
            }
            l2_entry_set(&q->geo, slice->bytes, index, fresh);
        }
        *at = part.end;
        index++;
    }
    return 0;
}

/* A place for a cluster that has none of its own: in a data file it is waiting there. */
static int co_find_place(struct qcow2 *q, guest_off cluster, host_off *host)
{
    uint64_t first, got;
    bool reads_zero;

    if (q->geo.data_file) {
        host->bytes = cluster.bytes;
        return 0;
    }
    int ret = co_alloc(q, 1, &first, &got, &reads_zero);
    *host = host_cluster_start(&q->geo, ret == 0 ? first : 0);
    return ret;
}

static void co_leave_place(struct qcow2 *q, host_off host)
{
    if (!q->geo.data_file) {
        co_alloc_undo(q, host_cluster_index(&q->geo, host), 1);
    }
}

/* Gives one cluster a place of its own behind a zero flag, its space on the host allocated. */
static int co_reserve_cluster(struct qcow2 *q, const struct cluster_part *part)
{
    uint64_t len = q->geo.cluster_bytes;
    struct slice *slice;
    uint32_t index;
    host_off host;

    int ret = co_map_prepare(q, part->start);
    if (ret < 0) {
        return ret;
    }
    ret = co_find_place(q, part->cluster, &host);
    if (ret < 0) {
        return ret;
    }
    if (q->geo.data_file) {
        len = MIN_OF(len, q->geo.size_bytes - host.bytes);
    }
    ret = q->data->ops->co_zero(q->data, host.bytes, len);
    if (ret == 0) {
        ret = co_map_change(q, part->start, &slice, &index);
    }
    if (ret < 0) {
        co_leave_place(q, host);
        return ret;
    }
    struct l2_entry old = l2_entry_get(&q->geo, slice->bytes, index);
    struct l2_entry fresh = {l2_descriptor(host), 0};
    if (q->geo.extended_l2) {
        uint64_t bits = part->whole ? SUBCLUSTERS_ALL : part_bits(q, part);
        uint64_t still_zero = part->whole ? 0 : old.bitmap >> 32;
        fresh.bitmap = (bits | still_zero) << 32;
    } else {
        fresh.descriptor |= QCOW2_ZERO;
    }
    map_retire_entry(q, old);
    l2_entry_set(&q->geo, slice->bytes, index, fresh);
    return 0;
}

/* Whole subclusters [at, end) inside one slice's reach, under an exclusive hold. */
static int co_zero_subclusters(struct qcow2 *q, guest_off at, guest_off end, enum zero_mode mode)
{
    while (at.bytes < end.bytes) {
        struct cluster_part part;
        enum action action;
        guest_off unused, unused_end;
        int ret = co_commit_make_room(q);
        if (ret < 0) {
            return ret;
        }
        ret = co_action_at(q, at, end, mode, &part, &action);
        if (ret < 0) {
            return ret;
        }
        guest_off next = part.end;
        switch (action) {
        case ACTION_NOTHING:
            break;
        case ACTION_ENTRY:
            next = at;
            ret = co_change_entries(q, &next, end, mode, &unused, &unused_end);
            co_punch_data(q, unused, unused_end);
            break;
        case ACTION_RESERVE:
            ret = co_reserve_cluster(q, &part);
            break;
        case ACTION_WRITE:
            ret = co_write_zeroes(q, part.start, part.end, mode == ZERO_RESERVE);
            if (q->geo.has_zero_flag) {
                next = at; /* a place of its own now: its bytes need not be looked at */
            }
            break;
        }
        if (ret < 0) {
            return ret;
        }
        at = next;
    }
    return 0;
}

/* The whole subclusters of a range; the disk's ragged end counts as whole. Empty: end <= start. */
static void whole_subclusters(const struct qcow2 *q, guest_off start, guest_off end,
                              guest_off *whole_start, guest_off *whole_end)
{
    uint64_t unit = q->geo.subcluster_bytes;
    whole_start->bytes = round_up_to(start.bytes, unit);
    whole_end->bytes = end.bytes == q->geo.size_bytes ? round_up_to(end.bytes, unit)
                                                      : round_down_to(end.bytes, unit);
}

/* A part of one subcluster, and what it takes. */
struct ragged {
    guest_off start;
    guest_off end;
    guest_off unit_start; /* of the subcluster */
    guest_off unit_end;
    enum action action;
    bool as_whole; /* the action is for the whole subcluster */
};

/* Whether the subcluster reads as zeroes outside of the part. */
static int co_rest_reads_zero(struct qcow2 *q, const struct ragged *ragged, bool *zero)
{
    int ret = co_reads_zero_deep(q, ragged->unit_start,
                                 ragged->start.bytes - ragged->unit_start.bytes, zero);
    if (ret < 0 || !*zero) {
        return ret;
    }
    return co_reads_zero_deep(q, ragged->end, ragged->unit_end.bytes - ragged->end.bytes, zero);
}

/*
 * What to do with [start, end), a part of one subcluster. All of the subcluster is made zeroes when
 * the rest of it reads so already: true for as long as it is held exclusively (O5), however long
 * looking takes (O7). Version 2 has no flag to say so with: there such a cluster is nothing, and
 * reads as zeroes, or needs its bytes. A place kept behind a zero flag stays: the rest of it was
 * not asked about.
 */
static int co_ragged_at(struct qcow2 *q, guest_off start, guest_off end, enum zero_mode mode,
                        struct ragged *ragged)
{
    uint64_t unit = q->geo.subcluster_bytes;
    struct cluster_part part;
    bool zero = false;
    int ret = 0;

    *ragged = (struct ragged){.start = start,
                              .end = end,
                              .unit_start = {round_down_to(start.bytes, unit)},
                              .unit_end = {round_up_to(end.bytes, unit)},
                              .action = ACTION_WRITE};
    if (mode != ZERO_RESERVE) {
        ret = co_reads_zero_deep(q, start, end.bytes - start.bytes, &zero);
    }
    if (ret < 0 || zero) {
        ragged->action = ACTION_NOTHING;
        return ret;
    }
    if (!q->geo.has_zero_flag) {
        return 0;
    }
    ret = co_rest_reads_zero(q, ragged, &zero);
    if (ret < 0 || !zero) {
        return ret;
    }
    ragged->as_whole = true;
    return co_action_at(q, ragged->unit_start, ragged->unit_end, mode, &part, &ragged->action);
}

/* Zeroes a part of one subcluster, under an exclusive hold. Does nothing for an empty range. */
static int co_zero_ragged(struct qcow2 *q, guest_off start, guest_off end, enum zero_mode mode)
{
    struct ragged ragged;

    if (start.bytes >= end.bytes) {
        return 0;
    }
    int ret = co_ragged_at(q, start, end, mode, &ragged);
    if (ret < 0 || ragged.action == ACTION_NOTHING) {
        return ret;
    }
    if (ragged.as_whole) {
        return co_zero_subclusters(q, ragged.unit_start, ragged.unit_end, mode);
    }
    return co_write_zeroes(q, start, end, mode == ZERO_RESERVE);
}

/*
 * One piece: ragged head, whole subclusters, ragged tail; without a whole one, as many parts as
 * there are subclusters. Exclusive hold taken.
 */
static int co_zero_piece(struct qcow2 *q, guest_off start, guest_off end, enum zero_mode mode)
{
    guest_off whole_start, whole_end;

    whole_subclusters(q, start, end, &whole_start, &whole_end);
    if (whole_start.bytes > whole_end.bytes) {
        return co_zero_ragged(q, start, end, mode);
    }
    int ret = co_zero_ragged(q, start, whole_start, mode);
    if (ret < 0) {
        return ret;
    }
    ret = co_zero_subclusters(q, whole_start, whole_end, mode);
    if (ret < 0) {
        return ret;
    }
    return co_zero_ragged(q, whole_end, end, mode);
}

/*
 * In a raw data file the bytes themselves become zeroes, and no entry changes: one that names them
 * goes on to, and what others say was true before.
 */
static int co_zero_raw_piece(struct qcow2 *q, guest_off start, guest_off end, enum zero_mode mode)
{
    struct disk *data = q->data;
    uint64_t len = end.bytes - start.bytes;

    if (q->encrypted) { /* where a hole does not read as zeroes */
        return co_write_zeroes(q, start, end, true);
    }
    int ret = mode == ZERO_UNMAP ? data->ops->co_punch(data, start.bytes, len) : -EOPNOTSUPP;
    return ret == -EOPNOTSUPP ? data->ops->co_zero(data, start.bytes, len) : ret;
}

static int co_zero_piece_holding(struct qcow2 *q, struct request *request, guest_off start,
                                 guest_off end, enum zero_mode mode)
{
    struct room_search search = {0};
    uint64_t first = round_down_to(start.bytes, q->geo.cluster_bytes);
    uint64_t last = round_up_to(end.bytes, q->geo.cluster_bytes);
    struct hold *hold;

    int ret = co_hold_for(q->table, request, HOLD_EXCLUSIVE, first, last - first, &hold); /* O5 */
    if (ret < 0) {
        return ret;
    }
    do {
        co_budget_take(&q->changers, 1);
        co_break_point(BREAK_BEFORE_DISCARD);
        ret = q->geo.data_file_raw ? co_zero_raw_piece(q, start, end, mode)
                                   : co_zero_piece(q, start, end, mode);
        budget_give(&q->changers, 1);
        if (ret != -ENOSPC) {
            break;
        }
        ret = co_room_search(q, request, &search, false);
    } while (ret == 0);
    room_search_end(q, &search);
    hold_release(hold);
    return ret;
}

/* Nothing stands there and nothing shows through: not worth a hold. */
static bool nothing_there(const struct qcow2 *q, guest_off start, enum zero_mode mode)
{
    return mode != ZERO_RESERVE && !map_has_table(q, start) && !backing_covers(q, start) &&
           !q->geo.data_file_raw;
}

static int co_zero_range(struct qcow2 *q, struct request *request, guest_off start, guest_off end,
                         enum zero_mode mode)
{
    unsigned pieces = 0;

    while (start.bytes < end.bytes) {
        if (q->image.ending) {
            return -ESHUTDOWN;
        }
        bool skip = nothing_there(q, start, mode);
        uint64_t reach =
            skip ? slice_guest_bytes(&q->geo) * (q->geo.l2_entries / q->geo.slice_l2_entries)
                 : slice_guest_bytes(&q->geo);
        uint64_t in_reach = start.bytes & (reach - 1);
        guest_off piece_end = {start.bytes + MIN_OF(end.bytes - start.bytes, reach - in_reach)};
        if (!skip) {
            int ret = co_zero_piece_holding(q, request, start, piece_end, mode);
            if (ret < 0) {
                return ret;
            }
        }
        start = piece_end;
        request_renew(q->table, request); /* so that a long range frees as it goes */
        if (++pieces % PIECES_PER_TURN == 0) {
            co_sleep_ns(q->world, 0);
        }
    }
    return 0;
}

static bool is_fast(enum action action)
{
    return action == ACTION_NOTHING || action == ACTION_ENTRY;
}

static int co_ragged_is_fast(struct qcow2 *q, guest_off start, guest_off end, enum zero_mode mode,
                             bool *fast)
{
    struct ragged ragged;

    *fast = true;
    if (start.bytes >= end.bytes) {
        return 0;
    }
    int ret = co_ragged_at(q, start, end, mode, &ragged);
    *fast = ret == 0 && is_fast(ragged.action);
    return ret;
}

/* Whether the whole subclusters [at, end) can be zeroed by changing entries only. */
static int co_whole_is_fast(struct qcow2 *q, guest_off at, guest_off end, enum zero_mode mode,
                            bool *fast)
{
    /* Only the first and the last cluster can be partial; NO_HOLE must look at all. */
    *fast = true;
    while (at.bytes < end.bytes && *fast) {
        struct cluster_part part;
        enum action action;
        int ret = co_action_at(q, at, end, mode, &part, &action);
        if (ret < 0) {
            return ret;
        }
        *fast = is_fast(action);
        at = part.end;
        uint64_t last_cluster = round_down_to(end.bytes - 1, q->geo.cluster_bytes);
        if (mode != ZERO_RESERVE && at.bytes < last_cluster) {
            at.bytes = last_cluster;
        }
    }
    return 0;
}

/* Whether [start, end) can be zeroed by changing entries only: what co_zero_piece() would do. */
static int co_zero_is_fast(struct qcow2 *q, guest_off start, guest_off end, enum zero_mode mode,
                           bool *fast)
{
    guest_off whole_start, whole_end;

    *fast = false;
    if (q->geo.data_file_raw) {
        *fast = !q->encrypted && mode == ZERO_UNMAP && !q->data->is_block_device;
        return 0;
    }
    if (!q->geo.has_zero_flag) {
        return 0;
    }
    whole_subclusters(q, start, end, &whole_start, &whole_end);
    if (whole_start.bytes > whole_end.bytes) {
        return co_ragged_is_fast(q, start, end, mode, fast);
    }
    int ret = co_ragged_is_fast(q, start, whole_start, mode, fast);
    if (ret == 0 && *fast) {
        ret = co_ragged_is_fast(q, whole_end, end, mode, fast);
    }
    if (ret == 0 && *fast) {
        ret = co_whole_is_fast(q, whole_start, whole_end, mode, fast);
    }
    return ret;
}

static int co_zero_request(struct qcow2 *q, struct request *request, guest_off start, guest_off end,
                           enum zero_mode mode, unsigned flags)
{
    if (flags & IMAGE_FAST_ZERO) {
        bool fast;
        int ret = co_zero_is_fast(q, start, end, mode, &fast);
        if (ret < 0) {
            return ret;
        }
        if (!fast) {
            return -ENOTSUP;
        }
    }
    return co_zero_range(q, request, start, end, mode);
}

static int co_discard(struct qcow2 *q, uint64_t offset, uint64_t len, enum zero_mode mode,
                      unsigned flags)
{
    struct request request;

    assert(range_inside(offset, len, q->image.size_bytes) && len > 0);
    if (q->image.read_only) {
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
    ret = co_zero_request(q, &request, (guest_off){offset}, (guest_off){offset + len}, mode, flags);
    request_leave(q->table, &request);
    if (ret == 0 && (flags & IMAGE_FUA)) {
        ret = co_commit(q); /* O4 */
    }
    return ret;
}

int co_qcow2_zero(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    struct qcow2 *q = qcow2_of(image);
    enum zero_mode mode = q->options.trim == TRIM_IGNORE ? ZERO_KEEP : ZERO_UNMAP;
    if (flags & IMAGE_NO_HOLE) {
        mode = ZERO_RESERVE;
    }
    return co_discard(q, offset, len, mode, flags);
}

int co_qcow2_trim(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    struct qcow2 *q = qcow2_of(image);

    if (q->options.trim == TRIM_IGNORE && !image->read_only) {
        return flags & IMAGE_FUA ? co_commit(q) : 0;
    }
    return co_discard(q, offset, len, ZERO_UNMAP, flags);
}

int co_zero_grown(struct qcow2 *q, guest_off start, guest_off end)
{
    struct request request;

    assert(end.bytes <= q->geo.size_bytes);
    request_enter(q->table, &request);
    int ret = co_zero_range(q, &request, start, end, ZERO_UNMAP);
    request_leave(q->table, &request);
    return ret;
}
