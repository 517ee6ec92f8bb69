/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The bits of persistent bitmaps on disk: tables and clusters. Two ways to change them:
 *
 *   in place    what was clear may become set: co_bitmap_save(). Whatever of it a crash leaves is
 *               what was there before, and parts of what was to be added.
 *   replaced    all else: new tables beside the old ones, then a new directory, then the header
 *               names it by one write of one sector: co_bitmap_directory_replace().
 *
 * O1: a cluster is counted, durably, before anything on disk names it; what nothing names any more
 * goes through the quarantine. O10: all clusters of bitmaps are in the map of metadata. Sections
 * "Bitmaps", "Bitmap table", "Bitmap data".
 */
#ifndef QCOWD_QCOW2_BITMAP_STORE_H
#define QCOWD_QCOW2_BITMAP_STORE_H

#include <stddef.h>
#include <stdint.h>

#include "base/errtext.h"
#include "qcow2/bitmap.h"
#include "qcow2/bitmap_directory.h"

struct qcow2;

/* Host clusters, in no order. */
struct cluster_list {
    uint64_t *clusters; /* owned */
    size_t count;
    size_t capacity;
};

void cluster_list_free(struct cluster_list *list);

/*
 * Calls visit() for each host cluster of a bitmap, its table's first, until that returns an error.
 * -EINVAL: an entry of the table is out of range, err says which; -EIO, -ENOMEM; what visit()
 * returned, err is visit's then. May suspend.
 */
int co_bitmap_visit_clusters(struct disk *disk, const struct geometry *geo,
                             const struct stored_bitmap *stored,
                             int (*visit)(void *arg, uint64_t cluster), void *arg,
                             struct errtext *err);

/*
 * Fills `bits`, all clear and of the disk's size, from the table. Errors
 * as above. May suspend.
 */
int co_bitmap_load(struct disk *disk, const struct geometry *geo,
                   const struct stored_bitmap *stored, struct bitmap *bits, struct errtext *err);

/*
 * Writes the snapshot that bitmap_snapshot() has taken of `bits` in place, durably; since the
 * bitmap was loaded or saved nothing may have been cleared in it. The caller says
 * bitmap_snapshot_done(). -ENOSPC, -ENOMEM: some of it may be there, the rest is not; -EIO: the
 * image has failed (O8). One call for a bitmap at a time. May suspend.
 */
int co_bitmap_save(struct qcow2 *q, const struct stored_bitmap *stored, const struct bitmap *bits);

/*
 * Writes `bits` into a new table of new clusters, which are noted in `taken`, and lets `stored`
 * name it; nothing on disk does. Errors: -ENOSPC, -EIO, -ENOMEM; what is in `taken` then was not
 * used. May suspend.
 */
int co_bitmap_save_new(struct qcow2 *q, struct stored_bitmap *stored, const struct bitmap *bits,
                       struct cluster_list *taken);

/*
 * Makes `next` the image's directory, durably, with what co_bitmap_save_new() has written for it;
 * `gone` are the clusters that then belong to nobody: they are given back, and the old directory's,
 * too. `taken` gets the new directory's. On success both lists are empty. -ENOSPC, -ENOMEM: the old
 * directory stays, and all that was taken is given back. -EIO: as well, or the image has failed
 * (O8), and has one or the other. May suspend.
 */
int co_bitmap_directory_replace(struct qcow2 *q, struct bitmap_directory *next,
                                struct cluster_list *taken, struct cluster_list *gone);

/* Gives back what was taken for nothing. May suspend. */
void co_cluster_list_undo(struct qcow2 *q, struct cluster_list *taken);

/* Adds the clusters of a bitmap to `list`: those that replacing or removing it gives back. */
int co_bitmap_collect(struct qcow2 *q, const struct stored_bitmap *stored,
                      struct cluster_list *list, struct errtext *err);

/*
 * Writes the flags of an entry in place, 4 bytes in one sector; stored->flags has them on success.
 * Not durable before the next flush. May suspend.
 */
int co_bitmap_set_flags(struct disk *disk, struct stored_bitmap *stored, uint32_t flags);

#endif
