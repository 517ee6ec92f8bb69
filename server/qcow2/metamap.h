/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Which host clusters hold metadata: header, L1, L2 tables, refcount table and blocks, snapshot
 * table, snapshots' L1 and L2 tables, bitmap directory, bitmap tables and their data. Asked before
 * each allocation and each in-place write, so that no guest byte ever lands on metadata, whatever
 * refcounts and L2 entries claim (O10). A hash set of cluster numbers; pure.
 */
#ifndef QCOWD_QCOW2_METAMAP_H
#define QCOWD_QCOW2_METAMAP_H

#include <stdbool.h>
#include <stdint.h>

struct metamap {
    uint64_t *slots; /* cluster number + 1; 0 is free */
    uint64_t mask;
    uint64_t count;
};

int metamap_init(struct metamap *map); /* -ENOMEM */
void metamap_free(struct metamap *map);

/* 0: added; 1: was there already; -ENOMEM. */
int metamap_add(struct metamap *map, uint64_t cluster);
void metamap_remove(struct metamap *map, uint64_t cluster);
bool metamap_contains(const struct metamap *map, uint64_t cluster);

/*
 * The first cluster of [first, first + count) that is metadata; first + count when there is none.
 */
uint64_t metamap_first_in(const struct metamap *map, uint64_t first, uint64_t count);

#endif
