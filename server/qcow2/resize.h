/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Another size for the guest's disk. The size in the header is one write of one sector, and what it
 * takes is durable before it when the disk grows, and done after it when the disk shrinks: a crash
 * at any moment leaves the disk with its old size and all of its bytes, or with its new one, and at
 * most leaks.
 */
#ifndef QCOWD_QCOW2_RESIZE_H
#define QCOWD_QCOW2_RESIZE_H

#include <stdint.h>

#include "base/errtext.h"
#include "image.h"

/*
 * Gives an open, writable qcow2 image another size, a multiple of 512, and not 0; image->size_bytes
 * is the new one when it returns 0. What is new reads as zeroes, whatever lies below in the backing
 * chain or was left beyond the old end; on version 2, what a longer backing file would show is
 * allocated. What is beyond a new end is given back. Bitmaps get the disk's
 * size, and what is new is dirty in them. Snapshots keep their size and their bytes, and
 * the state of a virtual machine beyond the old end stays unless the disk grows over it.
 *
 * An external data file gets the same size; a block device must have it already (-ENOSPC).
 *
 * Requests may run meanwhile; when the disk shrinks, none beyond the new end may run or come.
 * -EINVAL, -EROFS; -EFBIG (what an L1 table can describe); -ENOTSUP (snapshots that do not say how
 * large the disk was); -ENOSPC, -EIO, -ENOMEM. The size is the old one then, but if the disk
 * shrinks: after an error that says so it has the new size, and some space was not given back. One
 * call at a time runs, others wait. May suspend for long.
 */
int co_qcow2_resize(struct image *image, uint64_t size_bytes, struct errtext *err);

#endif
