/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Free runs are a small array sorted by position: first fit keeps the file dense, and a bounded set
 * is enough because what falls out is found again by the scan.
 */
#include "qcow2/alloc.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "qcow2/commit.h"
#include "qcow2/engine.h"
#include "qcow2/refcount.h"
#include "qcow2/reftable.h"

/* Refcount slices looked at for one allocation that found no hint. */
#define SCAN_SLICES_PER_ALLOC 8

void alloc_init(struct alloc *alloc, uint64_t first_free, bool appended_reads_zero)
{
    alloc->run_count = 0;
    alloc->append_next = first_free;
    alloc->zero_from = appended_reads_zero ? first_free : UINT64_MAX;
    alloc->scan_next = 0;
    alloc->scan_end = first_free;
    alloc->tight = false;
    co_mutex_init(&alloc->end_lock);
}

static void remove_run(struct alloc *alloc, unsigned at)
{
    alloc->run_count--;
    memmove(&alloc->runs[at], &alloc->runs[at + 1],
            (alloc->run_count - at) * sizeof(struct free_run));
}

/* The set is full: the shortest run makes room, to be found again by the scan. */
static void drop_shortest(struct alloc *alloc)
{
    unsigned shortest = 0;
    for (unsigned i = 1; i < alloc->run_count; i++) {
        if (alloc->runs[i].count < alloc->runs[shortest].count) {
            shortest = i;
        }
    }
    alloc->scan_next = MIN_OF(alloc->scan_next, alloc->runs[shortest].first);
    alloc->scan_end =
        MAX_OF(alloc->scan_end, alloc->runs[shortest].first + alloc->runs[shortest].count);
    remove_run(alloc, shortest);
}

/* Index of the first run that ends behind `cluster`. */
static unsigned first_run_behind(const struct alloc *alloc, uint64_t cluster)
{
    unsigned low = 0, high = alloc->run_count;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        if (alloc->runs[middle].first + alloc->runs[middle].count <= cluster) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Adds a run that overlaps none that is there. */
static void insert_run(struct alloc *alloc, struct free_run run)
{
    unsigned at = first_run_behind(alloc, run.first);
    struct free_run *before = at > 0 ? &alloc->runs[at - 1] : NULL;
    struct free_run *after = at < alloc->run_count ? &alloc->runs[at] : NULL;

    if (after && run.first + run.count == after->first && run.reads_zero == after->reads_zero) {
        run.count += after->count;
        remove_run(alloc, at);
    }
    if (before && before->first + before->count == run.first &&
        before->reads_zero == run.reads_zero) {
        before->count += run.count;
        return;
    }
    if (alloc->run_count == FREE_RUNS_MAX) {
        drop_shortest(alloc);
        at = first_run_behind(alloc, run.first);
    }
    memmove(&alloc->runs[at + 1], &alloc->runs[at],
            (alloc->run_count - at) * sizeof(struct free_run));
    alloc->runs[at] = run;
    alloc->run_count++;
}

void alloc_add_free(struct alloc *alloc, uint64_t first, uint64_t count, bool reads_zero)
{
    uint64_t end = first + count;
    while (first < end) {
        /* The scan may meet what is known already: only the gaps are news. */
        unsigned at = first_run_behind(alloc, first);
        if (at < alloc->run_count && alloc->runs[at].first <= first) {
            first = alloc->runs[at].first + alloc->runs[at].count;
            continue;
        }
        uint64_t gap_end = at < alloc->run_count ? MIN_OF(end, alloc->runs[at].first) : end;
        insert_run(alloc, (struct free_run){first, gap_end - first, reads_zero});
        first = gap_end;
    }
}

/*
 * Takes the first run that is long enough, else (if any_length) the longest; where room is tight
 * the first of any length, as that is the one most likely to have its space in the file already.
 */
static bool take_run(struct alloc *alloc, uint64_t count, bool any_length, struct free_run *taken)
{
    unsigned best = alloc->run_count;
    for (unsigned i = 0; i < alloc->run_count; i++) {
        if (alloc->runs[i].count >= count || (any_length && alloc->tight)) {
            best = i;
            break;
        }
        if (any_length &&
            (best == alloc->run_count || alloc->runs[i].count > alloc->runs[best].count)) {
            best = i;
        }
    }
    if (best == alloc->run_count) {
        return false;
    }
    struct free_run *run = &alloc->runs[best];
    *taken = *run;
    taken->count = MIN_OF(run->count, count);
    run->first += taken->count;
    run->count -= taken->count;
    if (run->count == 0) {
        remove_run(alloc, best);
    }
    return true;
}

static void scan_found(struct qcow2 *q, uint64_t first, uint64_t count)
{
    /* What is not written yet belongs to the append position, whoever finds it. */
    if (first >= q->alloc.scan_end) {
        return;
    }
    count = MIN_OF(count, q->alloc.scan_end - first);
    alloc_add_free(&q->alloc, first, count, false);
}

static int co_scan_some(struct qcow2 *q)
{
    struct alloc *alloc = &q->alloc;
    for (int i = 0; i < SCAN_SLICES_PER_ALLOC && alloc->scan_next < alloc->scan_end; i++) {
        uint64_t from = alloc->scan_next;
        uint64_t next;
        int ret = co_refcount_scan(q, from, scan_found, &next);
        if (ret < 0) {
            return ret;
        }
        /* O7: another request may have moved it on, or back, meanwhile. */
        if (alloc->scan_next == from) {
            alloc->scan_next = next;
        }
    }
    return 0;
}

/* Whom an allocation is for. */
enum alloc_for {
    FOR_ANY,
    FOR_REFTABLE, /* what makes room for entries must not need it */
};

/*
 * O7: the position is computed and reserved in one step, with end_lock held. -EAGAIN: the refcount
 * table needs another place first.
 */
static int reserve_at_end_locked(struct qcow2 *q, uint64_t count, enum alloc_for whom,
                                 struct free_run *taken)
{
    struct alloc *alloc = &q->alloc;
    uint64_t end_bytes;

    if (!mul_u64(alloc->append_next + count, q->geo.cluster_bytes, &end_bytes) ||
        end_bytes > QCOW2_L2_OFFSET) {
        return -ENOSPC; /* beyond what an L2 entry can name */
    }
    if (q->disk->is_block_device && end_bytes > q->disk->size_bytes) {
        return -ENOSPC;
    }
    if (whom == FOR_ANY && reftable_too_short(q, alloc->append_next + count)) {
        return -EAGAIN;
    }
    *taken = (struct free_run){alloc->append_next, count, alloc->append_next >= alloc->zero_from};
    alloc->append_next += count;
    return 0;
}

static int co_reserve_at_end(struct qcow2 *q, uint64_t count, enum alloc_for whom,
                             struct free_run *taken)
{
    for (;;) {
        co_mutex_lock(&q->alloc.end_lock);
        uint64_t end = q->alloc.append_next + count;
        int ret = reserve_at_end_locked(q, count, whom, taken);
        co_mutex_unlock(&q->alloc.end_lock);
        if (ret != -EAGAIN) {
            return ret;
        }
        ret = co_reftable_keep_place(q, end);
        if (ret < 0) {
            return ret;
        }
    }
}

int co_alloc_extend_file(struct qcow2 *q)
{
    int ret = 0;

    if (q->disk->is_block_device) {
        return 0;
    }
    co_mutex_lock(&q->alloc.end_lock);
    uint64_t end = q->alloc.append_next << q->geo.cluster_bits;
    if (q->disk->size_bytes < end) {
        ret = q->disk->ops->co_truncate(q->disk, end);
        /* What is written past a limit was refused where it was written: no more than a claim on
         * nothing stands there, and a commit of all else must not fail for it. */
        ret = ret == -ENOSPC ? 0 : ret;
    }
    co_mutex_unlock(&q->alloc.end_lock);
    return ret;
}

/* any_length: a shorter run will do, too. */
static int co_choose(struct qcow2 *q, uint64_t count, bool any_length, enum alloc_for whom,
                     struct free_run *taken)
{
    if (take_run(&q->alloc, count, q->alloc.tight && any_length, taken)) {
        return 0;
    }
    if (q->alloc.scan_next < q->alloc.scan_end) {
        int ret = co_scan_some(q);
        if (ret < 0) {
            return ret;
        }
    }
    if (take_run(&q->alloc, count, any_length, taken)) {
        return 0;
    }
    int ret = co_reserve_at_end(q, count, whom, taken);
    while (ret == -ENOSPC && q->alloc.scan_next < q->alloc.scan_end) {
        /* The end is reached before all has been looked at. */
        int scanned = co_scan_some(q);
        if (scanned < 0) {
            return scanned;
        }
        ret = take_run(&q->alloc, count, any_length, taken) ? 0 : -ENOSPC;
    }
    return ret;
}

/* Returns the unclaimed part behind `from` to where it came from. */
static void give_back(struct alloc *alloc, const struct free_run *taken, uint64_t from)
{
    uint64_t end = taken->first + taken->count;
    if (from >= end) {
        return;
    }
    if (end == alloc->append_next) {
        alloc->append_next = from;
        return;
    }
    alloc_add_free(alloc, from, end - from, taken->reads_zero);
}

static int co_alloc_some(struct qcow2 *q, uint64_t count, enum alloc_for whom, uint64_t *first,
                         uint64_t *got, bool *reads_zero)
{
    assert(count > 0);
    if (q->disk->is_block_device && whom == FOR_ANY &&
        reftable_too_short(q, q->alloc.append_next)) {
        /* All of it may come to be counted, and there is most room in the beginning. */
        int ret = co_reftable_keep_place(q, q->alloc.append_next);
        if (ret < 0 && ret != -ENOSPC) {
            return ret;
        }
    }
    for (;;) {
        struct free_run taken;
        int ret = co_choose(q, count, true, whom, &taken);
        if (ret < 0) {
            return ret;
        }
        uint64_t start = taken.first;
        uint64_t claimed;
        ret = co_refcount_claim(q, &start, taken.count, &claimed);
        if (ret == 0) {
            give_back(&q->alloc, &taken, start + claimed);
            *first = start;
            *got = claimed;
            *reads_zero = taken.reads_zero;
            q->counts.clusters_allocated += claimed;
            return 0;
        }
        if (ret != -ENOSPC || start < taken.first + taken.count) {
            /* A real failure; the hint stays good. */
            give_back(&q->alloc, &taken, start);
            return ret;
        }
        /* Every cluster of the hint was taken already: try the next one. */
    }
}

int co_alloc(struct qcow2 *q, uint64_t count, uint64_t *first, uint64_t *got, bool *reads_zero)
{
    return co_alloc_some(q, count, FOR_ANY, first, got, reads_zero);
}

/*
 * Takes the first run from `from` on that may have space in the file, as far as it can be claimed:
 * a hint may be out of date, and what is in use must not be punched (O6). -ENOENT: there is none.
 */
static int co_claim_kept(struct qcow2 *q, uint64_t from, uint64_t *first, uint64_t *count)
{
    struct alloc *alloc = &q->alloc;

    for (unsigned i = first_run_behind(alloc, from); i < alloc->run_count; i++) {
        struct free_run run = alloc->runs[i];
        if (run.reads_zero || !refcount_block_exists(q, run.first)) {
            continue;
        }
        remove_run(alloc, i);
        *first = run.first;
        int ret = co_refcount_claim(q, first, run.count, count);
        if (ret < 0) {
            *count = 0;
            ret = ret == -ENOSPC ? 0 : ret; /* all of it is in use */
        } else {
            give_back(alloc, &run, *first + *count);
        }
        return ret;
    }
    return -ENOENT;
}

/* Punches what is free and not known to be a hole. */
static int co_punch_free(struct qcow2 *q)
{
    uint64_t first, count;
    int ret;

    for (uint64_t from = 0;; from = first + count) {
        ret = co_commit_make_room(q);
        if (ret == 0) {
            ret = co_claim_kept(q, from, &first, &count);
        }
        if (ret < 0) {
            return ret == -ENOENT || ret == -ENOSPC ? 0 : ret;
        }
        if (count == 0) {
            continue;
        }
        int punched = q->disk->ops->co_punch(q->disk, first << q->geo.cluster_bits,
                                             count << q->geo.cluster_bits);
        ret = co_refcount_down(q, first, count);
        if (ret < 0) {
            return ret;
        }
        alloc_add_free(&q->alloc, first, count, punched == 0);
        if (punched < 0) {
            return 0; /* it stays as it is: usable where it is */
        }
    }
}

int co_alloc_search(struct qcow2 *q)
{
    while (q->alloc.scan_next < q->alloc.scan_end && q->alloc.run_count < FREE_RUNS_MAX) {
        int ret = co_scan_some(q);
        if (ret < 0) {
            return ret;
        }
    }
    /* A block device has no space to give back. */
    bool punches = q->options.trim == TRIM_UNMAP && !q->disk->is_block_device;
    return punches ? co_punch_free(q) : 0;
}

/*
 * Gives refcount blocks to those regions of a reserved run that have none. They stand outside of
 * the run: a block inside would cut it, and no run longer than a region could ever be had.
 */
static int co_prepare_counts(struct qcow2 *q, uint64_t first, uint64_t count, enum alloc_for whom)
{
    uint64_t end = first + count;
    for (uint64_t at = first; at < end; at = round_up_to(at + 1, q->geo.refblock_entries)) {
        uint64_t block, got;
        bool reads_zero;
        if (refcount_block_exists(q, at)) {
            continue;
        }
        int ret = co_alloc_some(q, 1, whom, &block, &got, &reads_zero);
        if (ret < 0) {
            return ret;
        }
        ret = co_refcount_place_block(q, at, block);
        if (ret < 0) {
            co_alloc_undo(q, block, 1);
        }
        if (ret < 0 && ret != -EEXIST) {
            return ret;
        }
    }
    return 0;
}

static int co_alloc_all(struct qcow2 *q, uint64_t count, enum alloc_for whom, uint64_t *first)
{
    for (;;) {
        struct free_run taken;
        int ret = co_choose(q, count, false, whom, &taken);
        if (ret < 0) {
            return ret;
        }
        ret = co_prepare_counts(q, taken.first, count, whom);
        if (ret < 0) {
            give_back(&q->alloc, &taken, taken.first);
            return ret;
        }
        uint64_t start = taken.first;
        uint64_t claimed;
        ret = co_refcount_claim(q, &start, count, &claimed);
        if (ret == 0 && start == taken.first && claimed == count) {
            *first = start;
            return 0;
        }
        if (ret == 0) {
            /* Something that was counted already stood in the way: go on behind it. */
            give_back(&q->alloc, &taken, start + claimed);
            co_alloc_undo(q, start, claimed);
        } else if (ret != -ENOSPC || start < taken.first + taken.count) {
            give_back(&q->alloc, &taken, start);
            return ret;
        }
    }
}

int co_alloc_contiguous(struct qcow2 *q, uint64_t count, uint64_t *first)
{
    return co_alloc_all(q, count, FOR_ANY, first);
}

int co_alloc_for_reftable(struct qcow2 *q, uint64_t count, uint64_t *first)
{
    return co_alloc_all(q, count, FOR_REFTABLE, first);
}

void co_alloc_undo(struct qcow2 *q, uint64_t first, uint64_t count)
{
    int ret = co_refcount_down(q, first, count);
    if (ret < 0) {
        log_warning("%s: %llu clusters at %#llx stay allocated without use: %s", q->path,
                    (unsigned long long)count, (unsigned long long)first << q->geo.cluster_bits,
                    strerror(-ret));
        return;
    }
    alloc_add_free(&q->alloc, first, count, false);
}

int co_alloc_make_table(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t added = 0;
    int ret =
        q->disk->ops->co_zero(q->disk, first << q->geo.cluster_bits, count << q->geo.cluster_bits);
    while (ret == 0 && added < count) {
        ret = metamap_add(&q->metamap, first + added);
        added += ret == 0;
    }
    if (ret != 0) {
        while (added > 0) {
            metamap_remove(&q->metamap, first + --added);
        }
        co_alloc_undo(q, first, count);
        return ret < 0 ? ret : -EIO;
    }
    return 0;
}
