/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Gives a closed image what the engine never makes: compressed clusters and an internal snapshot.
 * Works on the bytes of the file, and leaves refcounts and COPIED flags to a repair.
 */
#ifndef QCOWD_SIMULATOR_DRESS_H
#define QCOWD_SIMULATOR_DRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "io/world.h"

/* Where the snapshot's mapping lies. */
struct dressed_snapshot {
    uint64_t l1_offset;
    uint32_t l1_entries;
    uint64_t size_bytes; /* of the disk then */
};

/* Turns some of the image's clusters into compressed ones. */
void dress_compress(struct world *world, const char *path);
/* Adds a snapshot of what the image holds. The refcounts must have more than one bit. */
void dress_snapshot(struct world *world, const char *path, struct dressed_snapshot *snapshot);
/* Makes `copy` an image without snapshots that holds what the snapshot of `path` holds. */
void dress_copy_snapshot(struct world *world, const char *path,
                         const struct dressed_snapshot *snapshot, const char *copy);

#endif
