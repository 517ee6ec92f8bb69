/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reference counts of host clusters, in memory first (slices.h), on disk with the next commit.
 *
 * O1: counts go up here before anything refers to the cluster, and commit.c writes counts before
 * mappings; counts go down only by the quarantine. A claim (0 -> 1) is one step without a wait, so
 * two requests never claim one cluster, whatever the allocator's hints said (O7).
 */
#ifndef QCOWD_QCOW2_REFCOUNT_H
#define QCOWD_QCOW2_REFCOUNT_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/geometry.h"

struct qcow2;

/* Whether there is a block that counts `cluster`. Does not suspend. */
bool refcount_block_exists(const struct qcow2 *q, uint64_t cluster);

/*
 * Claims a prefix of the free clusters [*first, *first + count) by setting their counts from 0
 * to 1. *first moves up past clusters that turned out to be taken, or that became a new refcount
 * block for the region; *claimed (> 0) is how many follow there. -ENOSPC when nothing in the range
 * was free. -ENOSPC/-EFBIG from growing, -EIO, -ENOMEM: nothing is claimed. May suspend.
 */
int co_refcount_claim(struct qcow2 *q, uint64_t *first, uint64_t count, uint64_t *claimed);

/*
 * Makes `at`, a cluster that the caller has allocated (or that is free, in the region of `counted`
 * itself), the refcount block of the region of `counted`. -EEXIST: it has one; `at` is unchanged.
 * Other errors as above. May suspend.
 */
int co_refcount_place_block(struct qcow2 *q, uint64_t counted, uint64_t at);

/*
 * Counts [first, first + count) down by one each. Errors leave the rest of the range counted (a
 * leak, logged by the caller). A count that is 0 already is damage: logged, skipped. May suspend.
 */
int co_refcount_down(struct qcow2 *q, uint64_t first, uint64_t count);

/*
 * The count of `cluster`, and for how many clusters from there on (at most `count`, at least 1) it
 * is the same. Clusters without a refcount block count 0. May suspend.
 */
int co_refcount_run(struct qcow2 *q, uint64_t cluster, uint64_t count, uint64_t *refcount,
                    uint64_t *run);

/*
 * Finds free runs in the one cached slice that describes `cluster`: calls found() for each run of
 * clusters with count 0 between `cluster` and the slice's end. *next is the first cluster behind
 * the slice. Regions without a refcount block
 * yield nothing in a file, which is longer than what it counts only when somebody made it so; on a
 * block device all of the region is free. May suspend before the first call of
 * found(), never after.
 */
int co_refcount_scan(struct qcow2 *q, uint64_t cluster,
                     void (*found)(struct qcow2 *q, uint64_t first, uint64_t count),
                     uint64_t *next);

#endif
