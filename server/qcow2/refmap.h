/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sparse counters, one for each host cluster: in two levels, so that a file of any size with
 * clusters in use at any place costs about two bytes for each cluster in use. Counts that outgrow
 * 16 bits widen their leaf. What all maps of one check take together is bounded (O10).
 */
#ifndef QCOWD_QCOW2_REFMAP_H
#define QCOWD_QCOW2_REFMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct refmap_leaf;

struct refmap {
    uint64_t *budget_bytes;     /* what may still be allocated; shared between maps */
    struct refmap_leaf **slots; /* open addressing; slot_count is a power of two or 0 */
    size_t slot_count;
    struct refmap_leaf **leaves; /* all of them; in order of key when leaves_sorted */
    size_t leaf_count;
    size_t leaf_capacity;
    bool leaves_sorted;
    struct refmap_leaf *last; /* found last: neighbours come together */
};

/* *budget_bytes must outlive the map. */
void refmap_init(struct refmap *map, uint64_t *budget_bytes);
void refmap_free(struct refmap *map);

/* Adds n, saturating at 2^64 - 1. 0 or -ENOMEM (also: the budget is used up). */
int refmap_add(struct refmap *map, uint64_t index, uint64_t n);
/* The count must be at least n. */
void refmap_subtract(struct refmap *map, uint64_t index, uint64_t n);
uint64_t refmap_get(struct refmap *map, uint64_t index);

/*
 * Moves *index to the first one at or after it whose count is not zero; false when there is none.
 */
bool refmap_next(struct refmap *map, uint64_t *index);
/* One past the highest index with a count; 0 when all are zero. */
uint64_t refmap_end(struct refmap *map);

#endif
