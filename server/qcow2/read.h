/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reading, through the whole backing chain, and telling extents. A loop over the layers, not a
 * recursion: a long chain costs time but no stack.
 */
#ifndef QCOWD_QCOW2_READ_H
#define QCOWD_QCOW2_READ_H

#include <stddef.h>
#include <stdint.h>

#include "image.h"
#include "qcow2/geometry.h"

struct qcow2;

/* struct image_ops: co_read and co_extents. */
int co_qcow2_read(struct image *image, uint64_t offset, void *buf, size_t len,
                  struct read_holes *holes);
int co_qcow2_extents(struct image *image, uint64_t offset, uint64_t len, struct extent_list *list);

/* As co_qcow2_read(), without a request of its own: for copy on write, inside a request that holds
 * the range. Fills the buffer whole. Past the end of the disk it fills zeroes. */
int co_read_for_copy(struct qcow2 *q, guest_off guest, void *buf, size_t len);

/*
 * Whether [guest, guest + len) is known to read as zeroes, from the maps alone. Damage and disk
 * errors are returned. May suspend.
 */
int co_reads_zero(struct qcow2 *q, guest_off guest, uint64_t len, bool *zero);
/*
 * The same, and asks the file system for the holes of a raw file at the chain's end. Past the end
 * of the disk, and for len 0, all is zero.
 */
int co_reads_zero_deep(struct qcow2 *q, guest_off guest, uint64_t len, bool *zero);

/* The size of what is below the image, 0 if there is nothing. */
uint64_t backing_bytes(const struct qcow2 *q);

/* Whether anything shows through an unallocated cluster at `guest`. */
bool backing_covers(const struct qcow2 *q, guest_off guest);

#endif
