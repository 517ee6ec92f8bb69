/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where new clusters come from: freed runs first, then free space found by a scan of the refcount
 * blocks that goes along with the allocations, then the end of the file. What it keeps are hints; a
 * cluster is taken only by co_refcount_claim(). Positions past the end are reserved in one step,
 * before any wait (O7).
 */
#ifndef QCOWD_QCOW2_ALLOC_H
#define QCOWD_QCOW2_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

#include "sched/sync.h"

struct qcow2;

struct free_run {
    uint64_t first;
    uint64_t count;
    bool reads_zero; /* punched, or never written */
};

#define FREE_RUNS_MAX 1024U

struct alloc {
    struct free_run runs[FREE_RUNS_MAX]; /* by first; never touching with equal reads_zero */
    unsigned run_count;
    uint64_t append_next; /* first cluster past everything reserved so far */
    uint64_t zero_from;   /* clusters from here on were never written: they read as zeroes */
    uint64_t scan_next;   /* clusters before it have been looked at */
    uint64_t scan_end;
    bool tight; /* somebody looks for room: the lowest run is taken, however short */
    /*
     * Held while a position at the end is reserved, and while the file is extended to cover what is
     * reserved: ftruncate() would cut off a write beyond the size it was told.
     */
    struct co_mutex end_lock;
};

/* first_free: the first cluster past the end of the file and of all metadata. */
void alloc_init(struct alloc *alloc, uint64_t first_free, bool appended_reads_zero);

/*
 * Allocates up to `count` neighbouring clusters: at least one, counted 1. Nothing on disk refers to
 * them; if nothing comes to, co_alloc_undo() gives them back. *reads_zero: the clusters are known
 * to read as zeroes. -ENOSPC (file size or table limit), -EIO, -ENOMEM. May suspend.
 */
int co_alloc(struct qcow2 *q, uint64_t count, uint64_t *first, uint64_t *got, bool *reads_zero);

/* The same, and all of `count` or nothing. */
int co_alloc_contiguous(struct qcow2 *q, uint64_t count, uint64_t *first);

/* The same for a larger refcount table: the one allocation that does not wait for its place. */
int co_alloc_for_reftable(struct qcow2 *q, uint64_t count, uint64_t *first);

/*
 * Makes allocated clusters a place for a table that a commit will write: their space on the host is
 * allocated, as a commit must not meet ENOSPC, and they enter the map of metadata. On failure they
 * are given back. -ENOSPC, -EIO, -ENOMEM. May suspend.
 */
int co_alloc_make_table(struct qcow2 *q, uint64_t first, uint64_t count);

/* Gives back clusters that were never published. Failure to count them down leaks them, with a log
 * line. May suspend. */
void co_alloc_undo(struct qcow2 *q, uint64_t first, uint64_t count);

/* Makes the file as long as what is reserved, so that nothing counted lies past its end; where it
 * may not get so long, it stays short. */
int co_alloc_extend_file(struct qcow2 *q);

/*
 * For a disk without room (room.h): looks through all counts for free clusters, unless there are
 * hints enough, and gives the space of those that are free back to the file system. 0, -EIO,
 * -ENOMEM. May suspend.
 */
int co_alloc_search(struct qcow2 *q);

/* Hint: these clusters count 0 now. */
void alloc_add_free(struct alloc *alloc, uint64_t first, uint64_t count, bool reads_zero);

#endif
