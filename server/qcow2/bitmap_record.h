/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Recording in persistent bitmaps while the image is written (O11): a bitmap never misses a change,
 * whatever happens.
 *
 *     nothing has changed yet   the image is as it was found
 *     first change              unknown autoclear bits are cleared; the bitmaps that are enabled
 *                               become "in use", and write-intent regions begin (bitmap_intent.h)
 *     each change               its regions are open, durably, before it goes out; in the step in
 *                               which that is seen its bits are set in memory
 *     from time to time         bits are saved, and regions without changes since then closed
 *     close                     bits are saved, and in the same step no bitmap is in use any more
 *
 * What others find after a crash is "in use": not to be trusted, and QEMU leaves it alone. What we
 * find is the bits that were saved and the regions that were open, together.
 */
#ifndef QCOWD_QCOW2_BITMAP_RECORD_H
#define QCOWD_QCOW2_BITMAP_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/errtext.h"
#include "io/world.h"
#include "qcow2/bitmap.h"
#include "qcow2/bitmap_intent.h"
#include "sched/sync.h"

struct qcow2;

struct bitmap_recording {
    bool settled; /* changes need nothing: the first one has been, and no bitmap is enabled */
    bool began;   /* the first change has been prepared */
    struct co_mutex lock; /* beginning, saving and ending */
    struct bitmap **bits; /* of the bitmaps that are recorded */
    uint32_t count;
    struct bitmap_intent intent;
    struct world_timer timer;
    bool timer_armed;
};

void bitmap_record_init(struct qcow2 *q);
void bitmap_record_free(struct qcow2 *q);

/* Use co_bitmap_record(). */
int co_bitmap_record_slowly(struct qcow2 *q, uint64_t offset, uint64_t len);

/*
 * Call before anything of a change of [offset, offset + len), len > 0, goes out: a write, zeroes, a
 * discard. Costs a branch where no bitmap is enabled, and no I/O where the regions are open. -EIO
 * (also O8), -ENOMEM: the change must not be made. May suspend.
 */
#define co_bitmap_record(q, offset, len) \
    ((q)->recording.settled ? 0 : co_bitmap_record_slowly((q), (offset), (len)))

/*
 * Saves bits, and closes regions that nobody has changed since. 0, also where there is no room:
 * then they stay open. -EIO. May suspend.
 */
int co_bitmap_checkpoint(struct qcow2 *q);

/*
 * At the end, when no request runs any more: all is saved, and whole for everybody. What cannot be
 * saved for want of room is found again by the next open, and logged. -EIO. May suspend.
 */
int co_bitmap_record_end(struct qcow2 *q);

/*
 * At a writable open, when the image is ready for changes: what a crash has left is saved and made
 * whole. 0, or -errno with err. May suspend.
 */
int co_bitmap_recover(struct qcow2 *q, struct errtext *err);

#endif
