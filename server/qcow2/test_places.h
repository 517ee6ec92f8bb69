/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What stands where in the file of a running image, and whether a call on its disk does harm there:
 * for the tests and fuzzers that watch an image's disk.
 */
#ifndef QCOWD_QCOW2_TEST_PLACES_H
#define QCOWD_QCOW2_TEST_PLACES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "qcow2/engine.h"
#include "qcow2/test_watch.h"

/* What stands at a place of the file, by the tables in memory. */
enum rig_place {
    RIG_HEADER = 'H',
    RIG_L1 = '1',
    RIG_REFTABLE = 'T',
    RIG_REFBLOCK = 'R',
    RIG_L2 = '2',
    RIG_DATA = 'd',
};

char rig_place_of(const struct qcow2 *q, uint64_t offset);

/* Whether it changes bytes of the file. */
bool rig_call_changes(enum rig_call call);

/*
 * Whether a call that changes bytes (of [offset, offset + len), len > 0) touches metadata and is
 * not the engine's own: *wrong is the first such host cluster then (O10).
 */
bool rig_harms_metadata(struct qcow2 *q, enum rig_call call, uint64_t offset, uint64_t len,
                        const struct iovec *iov, int iov_count, uint64_t *wrong);

#endif
