/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The metadata cache: L2 tables and refcount blocks in slices of at most 4 KiB, keyed by their
 * place in the image file. Changes happen here only, in memory; commit.c writes them (the write
 * path does no metadata I/O).
 *
 * A slice pointer is valid until the next suspension (O7): look it up, use it, forget it. Before a
 * change slice_modify() is called: it marks the slice dirty and, if a commit is writing the slice
 * just now, moves the old bytes aside for the commit, so that a commit writes one moment's state
 * while requests go on.
 *
 * Budget: `capacity` slices. Clean ones are evicted (second chance); dirty ones never are: commit.c
 * keeps them under three quarters (see co_commit_make_room()).
 */
#ifndef QCOWD_QCOW2_SLICES_H
#define QCOWD_QCOW2_SLICES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "io/world.h"
#include "qcow2/geometry.h"
#include "sched/sync.h"

enum slice_kind { SLICE_L2, SLICE_REFCOUNT, SLICE_KINDS };

struct slice {
    struct slice *hash_next;
    struct list link; /* in the cache's clean, dirty or committing list */
    host_off offset;
    uint8_t *bytes;
    uint8_t *committing_bytes; /* what the running commit writes, when it differs from bytes */
    enum slice_kind kind;
    bool loading;
    bool dirty;      /* changed since the last snapshot */
    bool committing; /* part of the running commit */
    bool referenced; /* second chance */
    struct wait_queue loaded;
};

/* So many slices, allocated at once. */
struct slab {
    uint8_t *bytes;
    uint32_t slices;
};

struct slice_cache {
    struct disk *disk;
    uint32_t slice_bytes;
    uint32_t capacity;
    uint32_t count;
    uint32_t dirty_count[SLICE_KINDS];
    uint64_t hits;
    uint64_t misses;
    struct slice **buckets;
    uint32_t bucket_mask;
    struct list clean; /* coldest first */
    struct list dirty[SLICE_KINDS];
    struct list committing[SLICE_KINDS];
    /* Memory for the bytes of slices. */
    struct slab *slabs;
    uint32_t slab_count;
    uint32_t slab_slices; /* of all slabs together */
    uint8_t **spare;      /* parts of slabs that nobody uses; room for all of them */
    uint32_t spare_count;
};

/* Slices that fit into a budget, their bookkeeping included; at least 32. */
uint32_t slice_cache_capacity(uint32_t slice_bytes, uint64_t budget_bytes);

/* -ENOMEM. Allocates the slices themselves as they are needed. */
int slice_cache_init(struct slice_cache *cache, struct disk *disk, uint32_t slice_bytes,
                     uint32_t capacity);
/* Drops everything, dirty slices too. Nothing may be loading. */
void slice_cache_free(struct slice_cache *cache);

/* Lowers or raises the budget; takes effect as slices are needed. */
void slice_cache_set_capacity(struct slice_cache *cache, uint32_t capacity);

/*
 * The slice at `offset` (aligned to slice_bytes), read from disk if it is not cached. -EIO,
 * -ENOMEM, and -EUCLEAN when the place is cached as the other kind (a damaged image). May suspend;
 * not when slice_peek() would find it.
 */
int co_slice_get(struct slice_cache *cache, enum slice_kind kind, host_off offset,
                 struct slice **out);

/* The slice if it is cached and loaded, else NULL. */
struct slice *slice_peek(struct slice_cache *cache, host_off offset);

/*
 * A slice of a cluster that was just made and reads as zeroes: cached without reading. Must not be
 * cached yet. -ENOMEM.
 */
int slice_create_zeroed(struct slice_cache *cache, enum slice_kind kind, host_off offset,
                        struct slice **out);

/* Call before changing slice->bytes (the pointer may change by this call). -ENOMEM: not changed. */
int slice_modify(struct slice_cache *cache, struct slice *slice);

/* Forgets clean slices inside a cluster that was freed, so that its next owner starts afresh. */
void slice_forget_range(struct slice_cache *cache, host_off start, uint64_t len_bytes);

/* Moves all dirty slices of a kind to the committing list (O1: one step). Returns how many. */
unsigned slice_commit_begin(struct slice_cache *cache, enum slice_kind kind);
/*
 * Writes all committing slices of a kind, neighbours in one write. On success they are clean (or
 * dirty again, if changed meanwhile); on failure all stay, as the image is then failed for good.
 * May suspend.
 */
int co_slice_commit_write(struct slice_cache *cache, enum slice_kind kind);

#endif
