/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The real world: disks through io_uring on the thread's loop. What the page cache can answer at
 * once is answered at once, without a trip through the ring; the rest goes through it.
 */
#ifndef QCOWD_IO_WORLD_REAL_H
#define QCOWD_IO_WORLD_REAL_H

#include "io/world.h"

struct loop;

/* NULL on out of memory. The loop must outlive the world. */
struct world *world_real_create(struct loop *loop);
/* No disk may be open. NULL is fine. */
void world_real_free(struct world *world);

struct loop *world_real_loop(struct world *world);

#endif
