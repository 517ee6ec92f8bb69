/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Making it durable. A commit is
 *
 *   snapshot     the dirty slices, L1 sectors and refcount table entries, in one step
 *   first wave   refcount blocks, fsync: covers guest data (O2), counts (O1), blank new tables; an
 *                external data file has its fsync before
 *                [new refcount blocks: table entries, fsync; a table that moved: header, fsync]
 *   second wave  L2 slices and L1 sectors, fsync [a longer L1 table: header, fsync]
 *   release      the quarantine of that snapshot (O3)
 *
 * Asked for by FLUSH, FUA, a timer, memory pressure and close; who asks while one runs shares the
 * next. Without a dirty mapping it is one fsync, of the file where guest data lies.
 */
#ifndef QCOWD_QCOW2_COMMIT_H
#define QCOWD_QCOW2_COMMIT_H

#include <stdbool.h>

struct qcow2;

/*
 * Everything that completed before the call is durable when it returns 0 (O4). -EIO: the image has
 * failed, now or before (O8). -ENOSPC: a larger refcount table found no room, on a block device
 * that had none for it from the beginning; nothing is lost, and asking again is right. May suspend.
 */
int co_commit(struct qcow2 *q);

/*
 * As co_commit(), and counts are on disk, too, where no mapping of the guest's has changed: before
 * something else names what was allocated. All that was written to the image file is durable.
 */
int co_commit_counts(struct qcow2 *q);

/*
 * For close: commits until counts, too, are on disk and the quarantine is empty. No request may
 * run.
 */
int co_commit_all(struct qcow2 *q);

/* Whether mappings differ from the disk's. */
bool commit_mapping_dirty(const struct qcow2 *q);

/*
 * Called before a request changes metadata: waits for a commit when dirty slices near their share
 * of the cache, and makes sure that the timer runs. 0, or -EIO as co_commit(). May suspend.
 */
int co_commit_make_room(struct qcow2 *q);

/* Arms the commit timer; call when something was made dirty. */
void commit_arm_timer(struct qcow2 *q);

#endif
