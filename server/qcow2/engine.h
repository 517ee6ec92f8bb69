/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The running image: what the rooms of the engine share. A request's way through them:
 *
 *   encrypted_disk.c  before each disk below, where the image is encrypted
 *   read.c   map -> disk (or inflate, or the backing chain)
 *   write.c  table (hold) -> map -> [in place] disk
 *                                -> [new] alloc -> disk (head + data + tail) -> map (publish)
 *   discard.c  table (hold) -> map (publish zero) -> quarantine
 *   commit.c   slices and tables to disk in two waves -> quarantine (release) -> alloc
 *   room.c     where one of these found no room: commit, quarantine, alloc, and again
 *   resize.c   l1 -> discard.c, or map (drop) -> commit -> header
 *   bitmap_change.c  bitmap_store -> alloc -> commit -> header_extension -> quarantine
 *
 * The laws (O1..O10) are those of the README; each is marked where it is kept. What never happens
 * here: metadata I/O on the write path, a wait for a request that touches no common cluster, a read
 * that waits for a writer.
 */
#ifndef QCOWD_QCOW2_ENGINE_H
#define QCOWD_QCOW2_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/errtext.h"
#include "crypto/cipher.h"
#include "image.h"
#include "io/world.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmap_record.h"
#include "qcow2/bitmaps.h"
#include "qcow2/geometry.h"
#include "qcow2/header.h"
#include "qcow2/metamap.h"
#include "qcow2/qcow2.h"
#include "qcow2/quarantine.h"
#include "qcow2/slices.h"
#include "sched/sync.h"
#include "sched/table.h"

/* Inflated clusters kept for the next small read. */
#define INFLATED_MAX 4U
struct inflated {
    uint64_t descriptor; /* 0: empty */
    uint64_t last_used;
    uint8_t *bytes;
};

struct commit_state {
    bool running;
    uint64_t started; /* commits that took their snapshot */
    uint64_t finished;
    struct wait_queue done;
    struct world_timer timer;
    bool timer_armed;
};

/*
 * The refcount table in memory; entries beyond what the disk's table holds make a commit move it.
 */
struct reftable {
    uint64_t *entries; /* host offset of each refcount block; 0: none */
    uint64_t count;    /* entries in memory */
    uint64_t capacity;
    uint64_t dirty_first; /* entries to write, [first, end); empty when equal */
    uint64_t dirty_end;
    struct co_mutex lock; /* making a refcount block */
    /* The place that a commit moves the table to (reftable.h); 0 clusters: it stays. */
    uint64_t kept_first;
    uint32_t kept_clusters;
    bool moving;                /* a commit is at it */
    struct co_mutex place_lock; /* keeping a place */
};

#define L1_SECTOR_ENTRIES 64U /* entries in 512 bytes: what a disk writes whole */

struct l1_table {
    uint64_t *entries;
    uint32_t count;
    uint8_t *dirty_sectors; /* one byte for each 512 bytes of the table */
    bool dirty;
    struct co_mutex lock; /* making or copying an L2 table */
    /* The place of a longer table, which the next commit moves to (l1.h); 0 clusters: it stays. */
    uint64_t new_first;
    uint32_t new_clusters;
};

/* Since the image was opened; statistics.h. */
struct engine_counts {
    uint64_t clusters_allocated;
    uint64_t clusters_freed;
    uint64_t commit_ns;
    uint64_t fsyncs;
    uint64_t fsync_ns;
};

struct qcow2 {
    struct image image; /* first: the two are cast into each other */
    struct world *world;
    struct disk *disk;      /* the image file: metadata, and compressed clusters */
    struct disk *data_file; /* an external one, NULL: none */
    struct disk *encrypted; /* in front of the one or the other, NULL: not encrypted */
    struct disk *data;      /* where standard clusters of the guest lie: one of the three */
    /* Of an encrypted image: the key at work, until `encrypted` has it. */
    struct cipher *cipher;
    struct cipher_spec cipher_spec;
    struct header header;
    /*
     * header.geo, one step nearer. While the disk is resized its size is the one that the tables
     * are made ready for, and image.size_bytes is what clients may use.
     */
    struct geometry geo;
    char *path;
    struct qcow2_open_options options;

    /* What an image above says is below this one, until it is opened (chain.h). */
    bool below_given;
    struct json_name *below;
    /* The next layer down: at most one of the two. Owned. */
    struct qcow2 *backing;
    struct image *backing_raw;

    struct request_table *table;
    struct slice_cache cache;
    struct l1_table l1;
    struct reftable reftable;
    struct metamap metamap;         /* writable images only */
    struct metamap snapshot_tables; /* the L2 tables in it that snapshots name */
    struct alloc alloc;
    struct quarantine quarantine;
    struct commit_state commit;
    struct budget changers;    /* bounds slices that requests in progress may still dirty */
    struct budget copy_bytes;  /* bounds buffers of copy on write */
    struct co_mutex room_line; /* requests that look for room, one at a time */
    struct group background;
    struct co_mutex header_lock;
    struct co_mutex resize_lock;
    struct bitmaps bitmaps; /* of the top image only */
    struct bitmap_recording recording;

    struct inflated inflated[INFLATED_MAX];
    uint64_t inflated_clock;

    struct engine_counts counts;

    int failed; /* O8: the errno of the first failed metadata write or fsync */
    bool corrupt_marked;
    unsigned corrupt_logged;
    bool closing;
};

static inline struct qcow2 *qcow2_of(struct image *image)
{
    return (struct qcow2 *)(void *)image;
}

/*
 * O8: the first failure of a metadata write or fsync ends all changes. Logs it, keeps it, and
 * returns -EIO. `what` completes "...: <what>: <errno text>".
 */
int engine_fail(struct qcow2 *q, int errno_value, const char *what);

/*
 * O10: the image is damaged where a request came by. Logs (rate limited), marks the image corrupt
 * on disk in the background if it is writable, and returns -EIO for that request.
 */
/* The log line alone, for damaged guest data. */
void engine_log_damage(struct qcow2 *q, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
int engine_corrupt(struct qcow2 *q, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* First byte past everything that may be referenced in the file: its end, or what was reserved. */
static inline uint64_t engine_host_end(const struct qcow2 *q)
{
    uint64_t file_end = round_up_to(q->disk->size_bytes, q->geo.cluster_bytes);
    uint64_t reserved_end = q->alloc.append_next << q->geo.cluster_bits;
    return MAX_OF(file_end, reserved_end);
}

#endif
