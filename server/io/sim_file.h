/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A file of the simulated world: its bytes as readers see them now, its bytes as the platter holds
 * them, and the log of changes between the two.
 *
 * The present view is the page store, so that reads and writes cost no search. A page that was
 * changed since it was last durable keeps its durable bytes beside it (it is split). The log has
 * every change since, in order: a flush applies a prefix of it to the durable side, a power cut a
 * random subset. Pages exist only where something was written, so a sparse file of many GiB costs
 * nothing.
 */
#ifndef QCOWD_IO_SIM_FILE_H
#define QCOWD_IO_SIM_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/list.h"
#include "io/sim_random.h"

#define SIM_SECTOR_BYTES   512U
#define SIM_PAGE_BYTES     4096U
#define SIM_FILE_MAX_BYTES (8ULL << 40)

/* What all files of a world share. */
struct sim_store {
    uint64_t allocated_sectors; /* in the present view */
    void *free_pages;           /* recycled page buffers */
};

void sim_store_drain(struct sim_store *store);

struct sim_page;
struct sim_change;

struct sim_file {
    struct list link; /* in the world's list */
    struct sim_store *store;
    char *path;
    uint64_t id;
    uint64_t size_bytes;
    uint64_t durable_size_bytes;
    struct sim_page **chunks;
    size_t chunk_count;
    struct sim_change *log;
    struct sim_change **log_end;
    uint64_t last_sequence; /* of the newest change ever made */
    unsigned open_count;
    unsigned locked_writers;
    unsigned locked_readers;
};

/* NULL on out of memory; so for a path that cannot be copied. */
struct sim_file *sim_file_create(struct sim_store *store, const char *path, uint64_t id);
void sim_file_free(struct sim_file *file);

/* Copies [offset, offset + len) of the present view; zeroes past the end. */
void sim_file_read(const struct sim_file *file, uint64_t offset, void *buf, size_t len);

/*
 * Changes of the present view; each is logged as pending. Running out of memory ends the process:
 * this is a test bed. `iov_skip` bytes of the iovec are passed over first.
 */
void sim_file_write(struct sim_file *file, uint64_t offset, const struct iovec *iov, int iov_count,
                    uint64_t iov_skip, uint64_t len);
/* Reads as zeroes after; grows the file and allocates, or punches inside the file. */
void sim_file_zero(struct sim_file *file, uint64_t offset, uint64_t len);
void sim_file_punch(struct sim_file *file, uint64_t offset, uint64_t len);
void sim_file_truncate(struct sim_file *file, uint64_t size_bytes);

/* Sectors of the range that are not allocated yet. */
uint64_t sim_file_unallocated_sectors(const struct sim_file *file, uint64_t offset, uint64_t len);
/* See world.h co_next_extent: page granularity. */
void sim_file_next_extent(const struct sim_file *file, uint64_t offset, bool *is_hole,
                          uint64_t *end);

/* Makes all changes up to and including `sequence` durable. */
void sim_file_flush(struct sim_file *file, uint64_t sequence, struct sim_rng *rng);
/*
 * The flush failed: each of those changes may have been dropped by the host, so that no later flush
 * makes it durable although readers still see it.
 */
void sim_file_flush_failed(struct sim_file *file, uint64_t sequence);

/*
 * How much of the pending changes a power cut keeps.
 */
enum sim_keep {
    SIM_KEEP_NONE,
    SIM_KEEP_ALL,
    SIM_KEEP_SECTORS, /* each sector with a chance */
    SIM_KEEP_CHANGES, /* each change whole with a chance */
    SIM_KEEP_PREFIX,  /* the older ones */
    SIM_KEEP_SUFFIX,  /* the younger ones */
    SIM_KEEP_ALL_BUT_ONE,
    SIM_KEEP_ONLY_ONE,
    SIM_KEEP_MODES,
};

/* The file becomes what survives. */
void sim_file_crash(struct sim_file *file, enum sim_keep keep, unsigned keep_ppm,
                    struct sim_rng *rng);

#endif
