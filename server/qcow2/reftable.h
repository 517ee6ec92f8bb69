/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The place of the refcount table. A table in memory that has more entries than the one on the disk
 * is moved by the next commit, and a commit must not need room: on a full disk, what is freed can
 * be given back only by a commit. So the larger place is allocated before an entry for it is, and
 * kept until a commit moves the table there.
 */
#ifndef QCOWD_QCOW2_REFTABLE_H
#define QCOWD_QCOW2_REFTABLE_H

#include <stdbool.h>
#include <stdint.h>

struct qcow2;

/*
 * Whether the table's place, or the one that is kept, has too few entries for clusters up to
 * `end_cluster`, and for those that a larger table would take. Does not suspend.
 */
bool reftable_too_short(const struct qcow2 *q, uint64_t end_cluster);

/*
 * Keeps a place that is not too short for `end_cluster`, if there is none. -ENOSPC, -EIO, -ENOMEM:
 * the place is as it was. May suspend; waits for a commit that is moving the table.
 */
int co_reftable_keep_place(struct qcow2 *q, uint64_t end_cluster);

/* Entries for which the table on the disk has room. */
uint64_t reftable_disk_entries(const struct qcow2 *q);

#endif
