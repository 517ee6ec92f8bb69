/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A disk whose calls are seen before they are made: for the tests and fuzzers that watch what the
 * engine does to an image's file.
 */
#ifndef QCOWD_QCOW2_TEST_WATCH_H
#define QCOWD_QCOW2_TEST_WATCH_H

#include <stdint.h>
#include <sys/uio.h>

#include "io/world.h"

enum rig_call { RIG_READ, RIG_WRITE, RIG_FLUSH, RIG_ZERO, RIG_PUNCH, RIG_TRUNCATE };

/*
 * Told of each call: 0, or the -errno that it shall fail with. The buffers are there for writes
 * only; a flush has no range, and a truncation's offset is the new size.
 */
typedef int watch_fn(void *arg, enum rig_call call, uint64_t offset, uint64_t len,
                     const struct iovec *iov, int iov_count);

/* Watches an open disk until it is closed. One at a time. */
void watch_disk(struct disk *disk, watch_fn *look, void *arg);

#endif
