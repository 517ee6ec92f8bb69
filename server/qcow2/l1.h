/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Growing the L1 table. The longer table has a place of its own: in memory the new entries are
 * there at once, and the next commit writes all of it there, and lets the header name it once it is
 * durable (O1). The old place goes through the quarantine.
 */
#ifndef QCOWD_QCOW2_L1_H
#define QCOWD_QCOW2_L1_H

#include <stdint.h>

struct qcow2;

/*
 * Makes the table at least `entries` long (within LIMIT_L1_BYTES). Nothing that names more than the
 * old table had may be written to the header before the next commit has finished. 0, -ENOSPC, -EIO,
 * -ENOMEM: it is as long as it was. One call at a time. May suspend.
 */
int co_l1_grow(struct qcow2 *q, uint64_t entries);

#endif
