/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Writing guest data: in place, or to new clusters with copy on write.
 */
#ifndef QCOWD_QCOW2_WRITE_H
#define QCOWD_QCOW2_WRITE_H

#include <stddef.h>
#include <stdint.h>

#include "image.h"
#include "qcow2/geometry.h"

struct qcow2;

/* struct image_ops: co_write. */
int co_qcow2_write(struct image *image, uint64_t offset, const void *buf, size_t len,
                   unsigned flags);

/*
 * Writes inside a range that the caller holds exclusively: whatever each part needs. Same errors.
 * May suspend.
 */
int co_write_held(struct qcow2 *q, guest_off guest, const uint8_t *buf, size_t len);

#endif
