/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Files and block devices as disks of the real world (contract: world.h), in two rooms: disk_real.c
 * opens them, and does everything through the page cache; disk_direct.c reads and writes past it.
 */
#ifndef QCOWD_IO_DISK_REAL_H
#define QCOWD_IO_DISK_REAL_H

#include "io/world.h"

struct loop;
struct hold;
struct request_table;

struct disk_real {
    struct disk base;
    struct loop *loop;
    unsigned *open_disks; /* the world's count */
    int fd;
    uint32_t block_bytes; /* logical block of a block device, 1 otherwise */

    bool cached_reads;           /* RWF_NOWAIT works here */
    bool in_memory;              /* tmpfs: nothing ever waits for a device */
    bool zero_range_lacking;     /* found out on first use */
    bool name_unsynced;          /* made by us, directory not yet synced */
    unsigned fallocates_running; /* each locks the file, so that an inline write would wait */
    uint64_t suspect_until_ns;   /* an inline write was slow: look why the next ones are */
    uint64_t ring_until_ns;      /* they had to wait: write through the ring until then */

    /*
     * Direct I/O only. align_bytes is that of offsets, lengths and memory. Who reads, modifies and
     * writes back a block holds it exclusively, everybody else who changes bytes holds it shared.
     */
    bool direct;
    uint32_t align_bytes;
    struct request_table *blocks;

    char *path;
};

/* world_ops.co_disk_open of the real world. */
int co_disk_real_open(struct world *world, struct loop *loop, unsigned *open_disks,
                      const char *path, unsigned flags, struct disk **out, struct errtext *err);

/* Whether [offset, offset + len) can be a range of a file at all, rounding outward included. */
bool disk_real_range_ok(uint64_t offset, uint64_t len);

/*
 * Through the ring, from byte `done` of the buffers on: reads zero what is past the end. Short
 * transfers go on where they stopped.
 */
int co_disk_real_read(struct disk_real *d, uint64_t offset, const struct iovec *iov, int iov_count,
                      uint64_t done);
/* -ENOSPC for every way in which a host can be out of room; else the result as it is. */
int disk_real_no_room(int result);
int co_disk_real_write(struct disk_real *d, uint64_t offset, const struct iovec *iov, int iov_count,
                       uint64_t done);
/* The file reaches at least to `end` now. */
void disk_real_note_end(struct disk_real *d, uint64_t end);

/* disk_direct.c */

/* Sets alignment and table up. -EINVAL or -ENOMEM with err set. */
int disk_direct_prepare(struct disk_real *d, struct errtext *err);
/*
 * Keeps read-modify-writes off the blocks that the range touches while something else changes them.
 * Without direct I/O: *out = NULL, 0. Ended by disk_direct_release().
 */
int co_disk_direct_share(struct disk_real *d, uint64_t offset, uint64_t len, struct hold **out);
/* As above, for all blocks, against everybody. */
int co_disk_direct_own_all(struct disk_real *d, struct hold **out);
void disk_direct_release(struct hold *hold);

int co_disk_direct_read(struct disk *disk, uint64_t offset, const struct iovec *iov, int iov_count);
int co_disk_direct_write(struct disk *disk, uint64_t offset, const struct iovec *iov,
                         int iov_count);

#endif
