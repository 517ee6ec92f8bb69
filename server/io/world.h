/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The one door to the world: disks, clock, random and worker threads, as a vtable with two sides.
 * The real one (world_real.h) stands on io_uring; its twin in memory (sim.h) is driven by a seed,
 * completes I/O in random order, fails and tears it, and can lose power. The engine above knows
 * only this header, so that what the simulator proves is the code that ships.
 *
 * All functions named co_* run in a coroutine and may suspend. Results: 0 or -errno.
 */
#ifndef QCOWD_IO_WORLD_H
#define QCOWD_IO_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/errtext.h"
#include "base/list.h"
#include "sched/timers.h" /* struct world_timer */

struct world;
struct disk;
struct coro;

/* How a disk is opened. */
enum disk_open_flags {
    DISK_READ_ONLY = 0,
    DISK_WRITABLE = 1U << 0,
    /* Bypass the page cache (O_DIRECT). The disk layer bounces what is not aligned. */
    DISK_DIRECT = 1U << 1,
    /* Make a new file; -EEXIST when there is one. Implies writable. */
    DISK_CREATE = 1U << 2,
    /* Take no lock (a second look at a file whose lock this process holds, or `info`). */
    DISK_NO_LOCK = 1U << 3,
};

struct world_ops {
    /* Monotonic, in nanoseconds. */
    uint64_t (*now_ns)(struct world *world);
    /* The same as of the present turn of the loop, which costs next to nothing. NULL: as now_ns. */
    uint64_t (*turn_ns)(struct world *world);
    uint64_t (*random64)(struct world *world);
    /*
     * Calls timer->fired on the loop's stack at deadline_ns or later. Starting a timer that is
     * armed moves it, stopping one that is not armed is fine. A timer begins as all zero but
     * `fired`.
     */
    void (*timer_start)(struct world *world, struct world_timer *timer, uint64_t deadline_ns);
    void (*timer_stop)(struct world *world, struct world_timer *timer);
    /*
     * Runs fn(arg) on a worker thread with a full-size stack and returns when it has finished. The
     * simulator runs it in place after a random delay. For inflate, deflate, hashing.
     */
    void (*co_work)(struct world *world, void (*fn)(void *arg), void *arg);
    /*
     * Opens a plain path (never a protocol: O10): a regular file or block device, everything else
     * is refused. Takes QEMU's byte-range locks unless DISK_NO_LOCK (see filelock.h): writable
     * excludes other writers, read-only shares with readers. On success *out is owned by the
     * caller, who ends it with disk_close(). On failure err names the path and what to do.
     */
    int (*co_disk_open)(struct world *world, const char *path, unsigned flags, struct disk **out,
                        struct errtext *err);
    /*
     * Removes a file that this process made with DISK_CREATE and has closed: cleaning up after a
     * failure. 0 or -errno. Does not suspend. NULL where files cannot be removed.
     */
    int (*remove)(struct world *world, const char *path);
};

struct world {
    const struct world_ops *ops;
};

struct disk_ops {
    /*
     * Reads exactly the bytes asked for: what lies past the end of the file reads as zeroes. The
     * iovec array is not changed.
     */
    int (*co_read)(struct disk *disk, uint64_t offset, const struct iovec *iov, int iov_count);
    /*
     * Writes all of it, growing the file as needed. After an error any part may have been written.
     * -ENOSPC: no room, be it the file system's, a quota's, or a limit of the file's size.
     */
    int (*co_write)(struct disk *disk, uint64_t offset, const struct iovec *iov, int iov_count);
    /* fdatasync: everything whose completion was seen before the call is durable, size included. */
    int (*co_flush)(struct disk *disk);
    /*
     * Makes the range read as zeroes with its space allocated, so that a later write cannot fail
     * with ENOSPC; grows the file as needed.
     */
    int (*co_zero)(struct disk *disk, uint64_t offset, uint64_t len);
    /*
     * Gives the range's space back; it reads as zeroes then. The size does not change. -EOPNOTSUPP
     * where the file system cannot: nothing has changed then.
     */
    int (*co_punch)(struct disk *disk, uint64_t offset, uint64_t len);
    /* Sets the size (ftruncate). -EOPNOTSUPP on a block device. */
    int (*co_truncate)(struct disk *disk, uint64_t size_bytes);
    /*
     * Where the run of data or of hole that begins at `offset` (inside the file) ends, as SEEK_HOLE
     * tells; a file system that cannot tell says "data until the end". Exported as raw extents.
     */
    int (*co_next_extent)(struct disk *disk, uint64_t offset, bool *is_hole, uint64_t *end);
    /* What the file system, or the device, has left for who writes. NULL: that is not known. */
    int (*co_free_bytes)(struct disk *disk, uint64_t *free_bytes);
    /* Releases the locks, closes, frees. No request may be running. Never suspends. */
    void (*close)(struct disk *disk);
};

struct disk {
    const struct disk_ops *ops;
    struct world *world;
    /* The size as of the last completed call; kept by the implementation. */
    uint64_t size_bytes;
    bool writable;
    /* Block devices keep old bytes: a new cluster there is not known to read zero. */
    bool is_block_device;
    /* The path as given to open, for messages; owned by the disk. */
    const char *path;
    /* Identity for "does this chain name itself": equal for two opens of one file. */
    uint64_t file_id[2];
};

/* Two opens of one file. */
static inline bool disk_is_same(const struct disk *a, const struct disk *b)
{
    return a->file_id[0] == b->file_id[0] && a->file_id[1] == b->file_id[1];
}

static inline uint64_t world_now_ns(struct world *world)
{
    return world->ops->now_ns(world);
}

static inline uint64_t world_turn_ns(struct world *world)
{
    return world->ops->turn_ns ? world->ops->turn_ns(world) : world->ops->now_ns(world);
}

static inline void disk_close(struct disk *disk)
{
    if (disk) {
        disk->ops->close(disk);
    }
}

static inline int co_disk_read(struct disk *disk, uint64_t offset, void *buf, size_t len)
{
    struct iovec iov = {buf, len};
    return disk->ops->co_read(disk, offset, &iov, 1);
}

static inline int co_disk_write(struct disk *disk, uint64_t offset, const void *buf, size_t len)
{
    struct iovec iov = {(void *)(uintptr_t)buf, len};
    return disk->ops->co_write(disk, offset, &iov, 1);
}

static inline int co_disk_flush(struct disk *disk)
{
    return disk->ops->co_flush(disk);
}

/* Sleeps for at least delay_ns. */
void co_sleep_ns(struct world *world, uint64_t delay_ns);

struct wait_queue;
/*
 * As co_wait(), but gives up after timeout_ns: 0 when woken through the queue, -ETIMEDOUT
 * otherwise.
 */
int co_wait_timeout(struct world *world, struct wait_queue *queue, uint64_t timeout_ns);

#endif
