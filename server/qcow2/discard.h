/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * TRIM and WRITE_ZEROES: mapping changes that move no data, worked off slice by slice so that a
 * request of any length holds up only those who touch the piece at hand.
 */
#ifndef QCOWD_QCOW2_DISCARD_H
#define QCOWD_QCOW2_DISCARD_H

#include <stdint.h>

#include "image.h"
#include "qcow2/geometry.h"

struct qcow2;

/* struct image_ops: co_zero and co_trim. */
int co_qcow2_zero(struct image *image, uint64_t offset, uint64_t len, unsigned flags);
int co_qcow2_trim(struct image *image, uint64_t offset, uint64_t len, unsigned flags);

/*
 * Makes [start, end) read as zeroes, whatever --discard says: for a disk that grows, whose tables
 * describe the range already (q->geo). Version 2 allocates what shows through. As the first two.
 */
int co_zero_grown(struct qcow2 *q, guest_off start, guest_off end);

#endif
